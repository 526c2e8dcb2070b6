"""The terms of a batch: what a coupon is worth, where and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from coupon_svc.domain.hours import MINUTES_PER_DAY, Hours
from coupon_svc.domain.money import discounted_minor, format_yuan
from coupon_svc.domain.order_lines import Line
from coupon_svc.domain.refund_terms import ExpiredCardPolicy, RefundTerms, UsedCouponPolicy
from coupon_svc.domain.times import NEVER_MS, day_start_ms, format_utc
from meshkit.errors import MeshError

DEFAULT_TIME_ZONE = "Asia/Shanghai"


@dataclass(frozen=True, slots=True)
class Discount:
    """折扣券: `rate_e4` / 10,000 of the order stays to pay; at most `max_deduction_minor` is taken off."""

    rate_e4: int
    max_deduction_minor: int | None = None
    min_amount_minor: int = 0

    def deduction_minor(self, amount_minor: int) -> int:
        """What the coupon takes off an order, in fen."""
        taken = discounted_minor(amount_minor, self.rate_e4)
        return taken if self.max_deduction_minor is None else min(taken, self.max_deduction_minor)


@dataclass(frozen=True, slots=True)
class Threshold:
    """满减券: `reduce_minor` off an order of at least `min_amount_minor`."""

    min_amount_minor: int
    reduce_minor: int

    def deduction_minor(self, amount_minor: int) -> int:
        """What the coupon takes off an order, in fen."""
        return min(self.reduce_minor, amount_minor)


@dataclass(frozen=True, slots=True)
class CashVoucher:
    """代金券: `face_value_minor` off, but never more than is left to pay; used once, no change given."""

    face_value_minor: int
    min_amount_minor: int = 0

    def deduction_minor(self, amount_minor: int) -> int:
        """What the coupon takes off an order, in fen."""
        return min(self.face_value_minor, amount_minor)


@dataclass(frozen=True, slots=True)
class GiftCard:
    """礼品卡: a balance, spent in parts until it is zero."""

    balance_minor: int


Kind = Discount | Threshold | CashVoucher | GiftCard
_KINDS: dict[str, type[Discount] | type[Threshold] | type[CashVoucher] | type[GiftCard]] = {
    "discount": Discount,
    "threshold": Threshold,
    "cash_voucher": CashVoucher,
    "gift_card": GiftCard,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Level(IntEnum):
    """When a coupon applies, in this order; gift cards pay after all of them."""

    ITEM = 1
    SHOP = 2
    PLATFORM = 3


class Base(IntEnum):
    """Which amount of the eligible lines a coupon looks at: the price, or what earlier levels left of it."""

    ORIGINAL = 1
    REMAINING = 2


@dataclass(frozen=True, slots=True)
class Stacking:
    """How a coupon goes together with others; docs/reference/stacking.md is the rule.

    Coupons of one level and one group do not share a line. Those that name no group are a group as well.
    """

    level: Level = Level.PLATFORM
    base: Base = Base.REMAINING
    group: str = ""
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What one batch promises. The period is [valid_from_ms, expires_at_ms), in milliseconds since 1970 UTC.

    A line is eligible when its merchant, its category and its sku are each in the set that names any.
    With `days_after_claim` a coupon's own period may end earlier, and `expires_at_ms` may be None: see `expiry_ms`.
    """

    kind: Kind
    expires_at_ms: int | None
    valid_from_ms: int | None = None
    time_zone: str = DEFAULT_TIME_ZONE
    merchant_ids: frozenset[str] = field(default_factory=frozenset)
    days_after_claim: int | None = None
    refund: RefundTerms = field(default_factory=RefundTerms)
    categories: frozenset[str] = field(default_factory=frozenset)
    skus: frozenset[str] = field(default_factory=frozenset)
    hours: tuple[Hours, ...] = ()
    stacking: Stacking = Stacking()

    @property
    def needs_lines(self) -> bool:
        """Whether an order must name its lines, so that the eligible ones can be told."""
        return bool(self.categories or self.skus)

    def eligible(self, lines: Sequence[Line], merchant_id: str) -> tuple[int, ...]:
        """Positions of the eligible lines; `merchant_id` sells the lines that name no merchant."""
        return tuple(
            number
            for number, line in enumerate(lines)
            if (not self.merchant_ids or (line.merchant_id or merchant_id) in self.merchant_ids)
            and (not self.categories or line.category in self.categories)
            and (not self.skus or line.sku in self.skus)
        )

    @property
    def opening_balance_minor(self) -> int:
        """The balance of a new coupon: that of a gift card, zero for every other kind."""
        return self.kind.balance_minor if isinstance(self.kind, GiftCard) else 0

    @property
    def most_minor(self) -> int | None:
        """The most that one coupon takes apart from a balance, in fen; None when nothing bounds it."""
        kind = self.kind
        if isinstance(kind, Discount):
            return kind.max_deduction_minor
        if isinstance(kind, Threshold):
            return kind.reduce_minor
        return kind.face_value_minor if isinstance(kind, CashVoucher) else 0

    def expiry_ms(self, claim_ms: int | None) -> int:
        """When a coupon of these terms is expired; `claim_ms` is when its user got it, None for one without a user.

        Days are counted in the batch's zone: the coupon lasts through the day of the claim (or of `valid_from_ms` when
        that is later) and `days_after_claim` days after it. NEVER_MS while nothing ends the period yet.
        """
        ends = [NEVER_MS if self.expires_at_ms is None else self.expires_at_ms]
        if self.days_after_claim is not None and claim_ms is not None:
            first_ms = max(claim_ms, self.valid_from_ms or claim_ms)
            ends.append(day_start_ms(first_ms, self.time_zone, self.days_after_claim + 1))
        return min(ends)

    def refuse_when_over(self, *, batch_id: str, now_ms: int) -> None:
        """Refuses to give away what is expired at once.

        Raises:
            MeshError: COUPON_EXPIRED.
        """
        if self.expires_at_ms is not None and now_ms >= self.expires_at_ms:
            raise MeshError("COUPON_EXPIRED", batch_id=batch_id, expires_at=format_utc(self.expires_at_ms))

    def to_json(self) -> str:
        """The stored form; the same terms always give the same text."""
        return json.dumps(
            {
                "kind": _NAMES[type(self.kind)],
                **asdict(self.kind),
                "expires_at_ms": self.expires_at_ms,
                "valid_from_ms": self.valid_from_ms,
                "time_zone": self.time_zone,
                "merchant_ids": sorted(self.merchant_ids),
                "days_after_claim": self.days_after_claim,
                "refund": asdict(self.refund),
                "categories": sorted(self.categories),
                "skus": sorted(self.skus),
                "hours": [[sorted(each.days), each.start_minute, each.end_minute] for each in self.hours],
                "stacking": {
                    "level": self.stacking.level.name,
                    "base": self.stacking.base.name,
                    "group": self.stacking.group,
                    "exclusive": self.stacking.exclusive,
                },
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """Reads what `to_json` wrote, now or before a field was added: what is absent has its default."""
        stored: dict[str, Any] = json.loads(text)
        kind = _KINDS[stored["kind"]]
        return cls(
            kind=kind(**{name: stored[name] for name in kind.__dataclass_fields__}),
            expires_at_ms=stored["expires_at_ms"],
            valid_from_ms=stored["valid_from_ms"],
            time_zone=stored["time_zone"],
            merchant_ids=frozenset(stored["merchant_ids"]),
            days_after_claim=stored.get("days_after_claim"),
            refund=RefundTerms.of_numbers(stored["refund"]) if "refund" in stored else RefundTerms(),
            categories=frozenset(stored.get("categories", ())),
            skus=frozenset(stored.get("skus", ())),
            hours=tuple(Hours(frozenset(days), start, end) for days, start, end in stored.get("hours", ())),
            stacking=_stacking(stored["stacking"]) if "stacking" in stored else Stacking(),
        )


def _stacking(stored: dict[str, Any]) -> Stacking:
    return Stacking(Level[stored["level"]], Base[stored["base"]], stored["group"], stored["exclusive"])


def check_terms(terms: Terms, *, now_ms: int) -> None:
    """Refuses terms that contradict themselves.

    Raises:
        MeshError: BATCH_TERMS_INVALID with the `problem`.
    """
    ends_ms = terms.expires_at_ms
    if ends_ms is None and terms.days_after_claim is None:
        raise MeshError("BATCH_TERMS_INVALID", problem="expires_at or days_after_claim must be given")
    if ends_ms is not None and ends_ms <= now_ms:
        raise MeshError("BATCH_TERMS_INVALID", problem="expires_at is in the past")
    if ends_ms is not None and terms.valid_from_ms is not None and terms.valid_from_ms >= ends_ms:
        raise MeshError("BATCH_TERMS_INVALID", problem="valid_from must be before expires_at")
    try:
        ZoneInfo(terms.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise MeshError("BATCH_TERMS_INVALID", problem=f"time_zone {terms.time_zone} is not known") from exc
    kind = terms.kind
    if isinstance(kind, Threshold) and kind.reduce_minor >= kind.min_amount_minor:
        raise MeshError(
            "BATCH_TERMS_INVALID",
            problem=f"reduce {format_yuan(kind.reduce_minor)} must be below min_amount "
            f"{format_yuan(kind.min_amount_minor)}",
        )
    _check_refund(terms)
    _check_scope(terms)


def _check_refund(terms: Terms) -> None:
    refund, defaults = terms.refund, RefundTerms()
    if isinstance(terms.kind, GiftCard):
        if refund.used_coupon is not defaults.used_coupon:
            raise MeshError("BATCH_TERMS_INVALID", problem="refund.used_coupon is not for gift cards")
    elif refund.expired_card is not defaults.expired_card:
        raise MeshError("BATCH_TERMS_INVALID", problem="refund.expired_card is for gift cards only")
    if refund.used_coupon is not UsedCouponPolicy.REISSUE_FRESH_EXPIRY and refund.fresh_days != defaults.fresh_days:
        raise MeshError("BATCH_TERMS_INVALID", problem="refund.fresh_days needs REISSUE_FRESH_EXPIRY")
    if refund.expired_card is not ExpiredCardPolicy.CREDIT_AND_EXTEND and refund.extend_days != defaults.extend_days:
        raise MeshError("BATCH_TERMS_INVALID", problem="refund.extend_days needs CREDIT_AND_EXTEND")


def _check_scope(terms: Terms) -> None:
    if isinstance(terms.kind, GiftCard) and terms.stacking != Stacking():
        raise MeshError("BATCH_TERMS_INVALID", problem="a gift card pays after all coupons and has no stacking")
    for each in terms.hours:
        if not each.days or not 0 <= each.start_minute < each.end_minute <= MINUTES_PER_DAY:
            raise MeshError("BATCH_TERMS_INVALID", problem="usable_hours must begin before they end, within one day")
