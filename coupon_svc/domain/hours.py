"""Weekdays and hours at which a coupon is usable, on the clocks of its batch's zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from coupon_svc.domain.times import utc_datetime

MINUTES_PER_DAY = 1_440
_DAYS_PER_WEEK = 7
EVERY_DAY = frozenset(range(1, _DAYS_PER_WEEK + 1))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Hours:
    """[start_minute, end_minute) of each of `days`, counted from midnight; days are ISO numbers, Monday is 1."""

    days: frozenset[int]
    start_minute: int
    end_minute: int


def minute_of(text: str) -> int:
    """Minutes since midnight of a time of day: "09:30" → 570, "24:00" → 1440."""
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def time_text(minute: int) -> str:
    """A time of day: 570 → "09:30"."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def is_open(windows: Sequence[Hours], time_zone: str, now_ms: int) -> bool:
    """Whether the local time lies in one of the windows; no windows mean always."""
    if not windows:
        return True
    local = utc_datetime(now_ms).astimezone(ZoneInfo(time_zone))
    minute = local.hour * 60 + local.minute
    return any(local.isoweekday() in each.days and each.start_minute <= minute < each.end_minute for each in windows)


def next_opening_ms(windows: Sequence[Hours], time_zone: str, now_ms: int) -> int:
    """The first moment after `now_ms` at which a window begins, in milliseconds since 1970 UTC."""
    zone = ZoneInfo(time_zone)
    today = utc_datetime(now_ms).astimezone(zone).date()
    starts = []
    for ahead in range(_DAYS_PER_WEEK + 1):
        day = today + timedelta(days=ahead)
        for each in windows:
            if day.isoweekday() in each.days:
                begin = time(each.start_minute // 60, each.start_minute % 60)
                moment = datetime.combine(day, begin, tzinfo=zone)
                starts.append((moment.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1))
    return min(start for start in starts if start > now_ms)
