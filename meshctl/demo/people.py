"""Who takes part in the demonstration's story, and how its chapters write money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MERCHANT = "10086"
# A title and what it does.
Step = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Access tokens of the people in the story."""

    operator: str
    cashier: str
    auditor: str
    risk: str


def cny(yuan: str) -> dict[str, str]:
    """An amount of yuan with two decimals as Money in JSON: "150.00" → 15000 fen."""
    return {"currency_code": "CNY", "amount_minor": yuan.replace(".", "").lstrip("0") or "0"}
