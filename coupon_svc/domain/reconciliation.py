"""Whether the books agree: issued = available + held + consumed - refunded + expired + recalled, per batch and shard.

What is available and held is read from the coupons, everything else from the journal, so a difference on either side
breaks the sum. It is kept twice: in coupons, and in fen of gift cards' balances.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Self

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.money import format_yuan

# Where coupons are counted whose batch is not known, since the coupon itself is gone.
NO_BATCH = ""


@dataclass(frozen=True, slots=True)
class BookedCoupon:
    """A coupon as it is. `moved_on` says that its owner has it under another id; held figures are of two tables."""

    coupon_id: str
    batch_id: str
    status: int
    balance_minor: int
    version: int
    moved_on: bool
    held_minor: int = 0
    holds: int = 0
    hold_rows_minor: int = 0
    hold_rows: int = 0


@dataclass(frozen=True, slots=True)
class JournalSums:
    """What a coupon's journal sums up to; amounts are fen.

    Attributes:
        coupon_id: Whose.
        rows: How many rows there are.
        last_seq: The number of the last one.
        issued: 1 when the first row issued or imported it; 0 when it came by activation.
        drawn: 1 when that was drawn from the batch; 0 when it stands in for a refunded coupon.
        opened_minor: Its first balance.
        consumed_minor: What was taken from it.
        refunded_minor: What was given back to it.
        used: How often it was used up.
        returned: How often it became usable again.
        expired: How often it expired, less how often it was extended.
        recalled: Whether it was voided.
        status: Where it stands by its last row.
        balance_minor: Its balance by its last row.
    """

    coupon_id: str
    rows: int
    last_seq: int
    issued: int
    drawn: int
    opened_minor: int
    consumed_minor: int
    refunded_minor: int
    used: int
    returned: int
    expired: int
    recalled: int
    status: int
    balance_minor: int


@dataclass(frozen=True, slots=True)
class Sums:
    """One side of the books of a batch in a shard, in coupons or in fen."""

    issued: int = 0
    moved_in: int = 0
    moved_out: int = 0
    available: int = 0
    held: int = 0
    consumed: int = 0
    refunded: int = 0
    expired: int = 0
    recalled: int = 0

    @property
    def difference(self) -> int:
        """What the two sides of the equation differ by; 0 when the books agree."""
        opened = self.issued + self.moved_in - self.moved_out
        return opened - (self.available + self.held + self.consumed - self.refunded + self.expired + self.recalled)

    def plus(self, other: Sums) -> Sums:
        """The sum of both."""
        return Sums(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(frozen=True, slots=True)
class BatchBooks:
    """The books of one batch in one shard."""

    coupons: Sums = field(default_factory=Sums)
    minor: Sums = field(default_factory=Sums)
    drawn: int = 0

    def plus(self, other: BatchBooks) -> Self:
        """The sum of both."""
        return replace(
            self,
            coupons=self.coupons.plus(other.coupons),
            minor=self.minor.plus(other.minor),
            drawn=self.drawn + other.drawn,
        )


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One coupon, or one batch, whose records do not agree."""

    shard: int
    batch_id: str
    coupon_id: str
    problem: str


def books_of(coupon: BookedCoupon | None, journal: JournalSums | None) -> BatchBooks:
    """What one coupon adds to the books of its batch."""
    counted, minor = Sums(), Sums()
    drawn = 0
    if journal is not None:
        came = 1 - journal.issued
        moved_on = coupon is not None and coupon.moved_on and journal.status == CouponStatus.ACTIVATED
        counted = Sums(
            issued=journal.issued,
            moved_in=came,
            moved_out=int(moved_on),
            consumed=journal.used,
            refunded=journal.returned,
            expired=journal.expired,
            recalled=journal.recalled,
        )
        ended = journal.balance_minor if journal.status == CouponStatus.EXPIRED else 0
        minor = Sums(
            issued=journal.issued * journal.opened_minor,
            moved_in=came * journal.opened_minor,
            moved_out=journal.balance_minor if moved_on else 0,
            consumed=journal.consumed_minor,
            refunded=journal.refunded_minor,
            expired=0 if journal.recalled else ended,
            recalled=ended if journal.recalled else 0,
        )
        drawn = journal.drawn
    if coupon is not None and not (coupon.moved_on and coupon.status == CouponStatus.ACTIVATED):
        usable = coupon.status in {CouponStatus.UNACTIVATED, CouponStatus.ACTIVATED, CouponStatus.FROZEN}
        held = int(usable and coupon.holds > 0)
        counted = replace(counted, available=int(usable) - held, held=held)
        if coupon.status != CouponStatus.EXPIRED:
            available_minor = coupon.balance_minor - coupon.held_minor
            minor = replace(minor, available=available_minor, held=coupon.held_minor)
    return BatchBooks(counted, minor, drawn)


def problems_of(coupon: BookedCoupon | None, journal: JournalSums | None) -> list[str]:
    """In what a coupon and its journal disagree; none when they agree."""
    if journal is None:
        return ["coupon_info has it, but its journal is empty"]
    if coupon is None:
        return ["it has a journal, but coupon_info lacks it"]
    found = [
        f"{name} is {stored} in coupon_info, {journaled} by its journal"
        for name, stored, journaled in (
            ("balance", format_yuan(coupon.balance_minor), format_yuan(journal.balance_minor)),
            ("status", _status(coupon.status), _status(journal.status)),
            ("version", str(coupon.version), str(journal.last_seq)),
        )
        if stored != journaled
    ]
    summed = journal.opened_minor - journal.consumed_minor + journal.refunded_minor
    if summed != journal.balance_minor:
        last = format_yuan(journal.balance_minor)
        found.append(f"its journal's amounts sum to {format_yuan(summed)}, its last row says {last}")
    if journal.rows != journal.last_seq:
        found.append(f"its journal has {journal.rows} rows, the last of which is number {journal.last_seq}")
    if (coupon.held_minor, coupon.holds) != (coupon.hold_rows_minor, coupon.hold_rows):
        found.append(
            f"{coupon.holds} holds of {format_yuan(coupon.held_minor)} in coupon_info, "
            f"{coupon.hold_rows} of {format_yuan(coupon.hold_rows_minor)} in coupon_hold"
        )
    if not found and (difference := books_of(coupon, journal).coupons.difference):
        found.append(f"its journal's steps do not lead to its status: off by {difference}")
    return found


def _status(number: int) -> str:
    return CouponStatus(number).name if number in {status.value for status in CouponStatus} else str(number)
