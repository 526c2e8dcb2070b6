"""Instants as milliseconds since 1970 UTC, and how they are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo


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

    Where clocks change at midnight, so that 00:00 happens twice or not at all, the later reading counts: the day before
    is over then under either. A day begins at the change itself when that skips its 00:00.
    """
    zone = ZoneInfo(time_zone)
    day = utc_datetime(instant_ms).astimezone(zone).date() + timedelta(days=days_later)
    readings = (datetime(day.year, day.month, day.day, tzinfo=zone, fold=fold) for fold in (0, 1))
    return max(round(reading.timestamp()) for reading in readings) * 1000
