"""Instants as milliseconds since 1970 UTC, and how they are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

# 9999-12-31 UTC: the end of a period that has none yet.
NEVER_MS = 253_402_214_400_000


def format_utc(instant_ms: int) -> str:
    """RFC 3339 with whole seconds, or milliseconds where there are any: "2026-01-01T00:00:00Z"."""
    timespec = "milliseconds" if instant_ms % 1000 else "seconds"
    return utc_datetime(instant_ms).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def utc_datetime(instant_ms: int) -> datetime:
    """The instant as a datetime in UTC, exact to the millisecond."""
    return datetime.fromtimestamp(instant_ms // 1000, UTC).replace(microsecond=instant_ms % 1000 * 1000)


def month_of(instant_ms: int) -> int:
    """The UTC month as yyyymm: the journal's partition."""
    moment = utc_datetime(instant_ms)
    return moment.year * 100 + moment.month


def transaction_id(instant_ms: int, time_zone: str, number: int) -> str:
    """TX, the date in the batch's zone, then the 19 digits of `number`, which carries the shard."""
    local = utc_datetime(instant_ms).astimezone(ZoneInfo(time_zone))
    return f"TX{local:%Y%m%d}{number:019d}"


def day_start_ms(instant_ms: int, time_zone: str, days_later: int) -> int:
    """The start, in a zone, of the day that is `days_later` after the day of an instant.

    Where clocks change at midnight, a day whose 00:00 comes twice starts at the first, and one whose 00:00 is skipped
    at the change: both are what fold=0 means (PEP 495).
    """
    zone = ZoneInfo(time_zone)
    day = utc_datetime(instant_ms).astimezone(zone).date() + timedelta(days=days_later)
    return round(datetime(day.year, day.month, day.day, tzinfo=zone, fold=0).timestamp()) * 1000
