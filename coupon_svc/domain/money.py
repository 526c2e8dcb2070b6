"""Amounts of money as integers of minor units, and every conversion to and from them."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

from meshkit.errors import MeshError

CURRENCY = "CNY"
# What DECIMAL(12,2) holds: 9,999,999,999.99 yuan.
MAX_AMOUNT_MINOR = 999_999_999_999
_MINOR_PER_MAJOR = 100


def positive_minor(amount_minor: int, currency_code: str, *, field: str = "amount") -> int:
    """Returns `amount_minor` when it is a positive amount of the one supported currency.

    Raises:
        MeshError: CURRENCY_NOT_SUPPORTED, AMOUNT_ZERO, AMOUNT_NEGATIVE or AMOUNT_TOO_LARGE.
    """
    if currency_code != CURRENCY:
        raise MeshError("CURRENCY_NOT_SUPPORTED", currency_code=currency_code, field=field)
    if amount_minor == 0:
        raise MeshError("AMOUNT_ZERO", field=field)
    if amount_minor < 0:
        raise MeshError("AMOUNT_NEGATIVE", field=field, value=format_yuan(amount_minor))
    if amount_minor > MAX_AMOUNT_MINOR:
        raise MeshError("AMOUNT_TOO_LARGE", field=field, value=format_yuan(amount_minor))
    return amount_minor


def minor_from_yuan(yuan: float, *, field: str = "amount") -> int:
    """Converts a decimal number of yuan, as JSON carries it, to fen, exactly.

    A double is taken for the shortest decimal that names it, so 150.1 is 150.10 and 0.1 + 0.2 has too many decimals.

    Raises:
        MeshError: AMOUNT_NOT_FINITE, AMOUNT_PRECISION, AMOUNT_ZERO, AMOUNT_NEGATIVE or AMOUNT_TOO_LARGE.
    """
    if not math.isfinite(yuan):
        raise MeshError("AMOUNT_NOT_FINITE", field=field, value=str(yuan))
    if yuan > MAX_AMOUNT_MINOR:
        raise MeshError("AMOUNT_TOO_LARGE", field=field, value=repr(yuan))
    if yuan < 0:
        raise MeshError("AMOUNT_NEGATIVE", field=field, value=repr(yuan))
    minor = Decimal(repr(yuan)) * _MINOR_PER_MAJOR
    if minor != minor.to_integral_value():
        raise MeshError("AMOUNT_PRECISION", field=field, value=repr(yuan))
    return positive_minor(int(minor), CURRENCY, field=field)


def format_yuan(amount_minor: int) -> str:
    """Writes fen as yuan with two decimals: 15000 → "150.00"."""
    sign = "-" if amount_minor < 0 else ""
    major, minor = divmod(abs(amount_minor), _MINOR_PER_MAJOR)
    return f"{sign}{major}.{minor:02d}"


def discounted_minor(amount_minor: int, rate_e4: int) -> int:
    """What a rate takes off an amount, rounded half-up to the fen; `rate_e4` is what stays to pay, in 1/10,000."""
    taken_e4 = amount_minor * (10_000 - rate_e4)
    return (taken_e4 + 5_000) // 10_000


def rate_e4_from_text(text: str) -> int:
    """Reads an exact rate such as "0.8" as 1/10,000: 8000.

    Raises:
        MeshError: BATCH_TERMS_INVALID when it is not above 0 and below 1, or has more than four decimals.
    """
    try:
        rate = Decimal(text) * 10_000
    except InvalidOperation as exc:
        raise MeshError("BATCH_TERMS_INVALID", problem="discount_rate is not a decimal number") from exc
    if rate != rate.to_integral_value() or not 0 < rate < 10_000:
        raise MeshError("BATCH_TERMS_INVALID", problem="discount_rate must be above 0 and below 1, with 4 decimals")
    return int(rate)
