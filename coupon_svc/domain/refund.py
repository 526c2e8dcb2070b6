"""What a refund gives back: how it spreads over an order, and what it does to a coupon.

An order is a table: a row per line, a column per tender (a transaction, or cash), and in each cell what that tender
paid of that line. A refund takes from what is left in the cells, in proportion to it and by largest remainder, so that
the last refund of a line or of a transaction closes it exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from coupon_svc.domain.coupon import Coupon, CouponStatus, move
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.order_lines import largest_remainder
from coupon_svc.domain.refund_terms import ExpiredCardPolicy, UsedCouponPolicy
from coupon_svc.domain.terms import GiftCard, Terms
from coupon_svc.domain.times import day_start_ms, format_utc
from meshkit.errors import MeshError

# The tender that is no transaction.
CASH = ""
# The line that stands for what was consumed without lines.
NO_LINE = ""


class Cell(NamedTuple):
    """What one tender, a transaction_id or CASH, pays of one line."""

    line_id: str
    tender: str


Cells = Mapping[Cell, int]


@dataclass(frozen=True, slots=True)
class PaidLine:
    """A line's price and what one transaction took off it, in fen."""

    line_id: str
    amount_minor: int
    deduction_minor: int


@dataclass(frozen=True, slots=True)
class Tender:
    """A transaction as the refund of its order sees it.

    `order_minor` is what its order amounts to as far as it says: a gift card that was consumed without a reservation
    says nothing, 0. `lines` are empty when it was consumed without.
    """

    transaction_id: str
    deduction_minor: int
    order_minor: int = 0
    lines: tuple[PaidLine, ...] = ()

    @property
    def cells(self) -> dict[Cell, int]:
        """What it paid of each line."""
        if not self.lines:
            return {Cell(NO_LINE, self.transaction_id): self.deduction_minor}
        return {Cell(line.line_id, self.transaction_id): line.deduction_minor for line in self.lines}


@dataclass(frozen=True, slots=True)
class WantedLine:
    """A line to refund; without an amount, all that is left of it."""

    line_id: str
    amount_minor: int | None = None


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What contra rows of the journal gave back of one transaction so far, in fen."""

    deduction_minor: int = 0
    order_amount_minor: int = 0
    refunded_minor: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One state change of a coupon, and the coupon after it."""

    kind: JournalKind
    coupon: Coupon


def paid_cells(tenders: Sequence[Tender]) -> dict[Cell, int]:
    """Everything that was paid for an order: what its transactions took, and the rest in cash.

    The lines come in their order, what was consumed without lines last; within a line the transactions in theirs, cash
    last. Without lines the order is as large as its transactions say, and at least what they took together.
    """
    cells = {cell: minor for tender in tenders for cell, minor in tender.cells.items()}
    prices: dict[str, int] = {}
    for line in (line for tender in tenders for line in tender.lines):
        prices[line.line_id] = max(line.amount_minor, prices.get(line.line_id, 0))
    if not prices:
        prices[NO_LINE] = max((tender.order_minor for tender in tenders), default=0)
    elif any(cell.line_id == NO_LINE for cell in cells):
        prices.setdefault(NO_LINE, 0)
    paid: dict[Cell, int] = {}
    for line_id, price_minor in prices.items():
        row = {cell: minor for cell, minor in cells.items() if cell.line_id == line_id}
        paid |= row
        paid[Cell(line_id, CASH)] = max(0, price_minor - sum(row.values()))
    return paid


def left_cells(paid: Cells, refunded: Cells) -> dict[Cell, int]:
    """What is left of each cell. Cash that later consumes made less than was refunded of it counts as nothing left."""
    return {cell: max(0, minor - refunded.get(cell, 0)) for cell, minor in paid.items()}


def refund_of_transaction(left: Cells, amount_minor: int | None, *, of: str) -> dict[Cell, int]:
    """What goes back of the cells of one transaction; `amount_minor` None is all that is left.

    Raises:
        MeshError: ALREADY_REFUNDED, REFUND_EXCEEDS_PAID.
    """
    whole = sum(left.values())
    if amount_minor is None:
        if whole == 0:
            raise MeshError("ALREADY_REFUNDED", of=of)
        return dict(left)
    return _part(left, amount_minor, of=of)


def refund_of_lines(left: Cells, wanted: Sequence[WantedLine], *, order_id: str) -> dict[Cell, int]:
    """What goes back of each cell for the wanted lines; none means all that is left of the order.

    Raises:
        MeshError: ORDER_LINE_NOT_FOUND, ALREADY_REFUNDED, REFUND_EXCEEDS_PAID.
    """
    if not wanted:
        if not any(left.values()):
            raise MeshError("ALREADY_REFUNDED", of=order_id)
        return dict(left)
    given: dict[Cell, int] = {}
    for line in wanted:
        row = {cell: minor for cell, minor in left.items() if cell.line_id == line.line_id}
        if not row:
            raise MeshError("ORDER_LINE_NOT_FOUND", order_id=order_id, line_id=line.line_id)
        given |= refund_of_transaction(row, line.amount_minor, of=line.line_id or order_id)
    return given


def _part(left: Cells, amount_minor: int, *, of: str) -> dict[Cell, int]:
    whole = sum(left.values())
    if amount_minor > whole:
        raise MeshError("REFUND_EXCEEDS_PAID", of=of, amount=format_yuan(amount_minor), left=format_yuan(whole))
    return dict(zip(left, largest_remainder(amount_minor, [*left.values()]), strict=True))


def by_tender(cells: Cells) -> dict[str, int]:
    """Sums over the lines."""
    sums: dict[str, int] = {}
    for cell, minor in cells.items():
        sums[cell.tender] = sums.get(cell.tender, 0) + minor
    return sums


def by_line_with_cash(cells: Iterable[tuple[Cell, int]]) -> dict[str, tuple[int, int]]:
    """(all of it, what of it is cash) of each line, in the order of the lines."""
    sums: dict[str, tuple[int, int]] = {}
    for cell, minor in cells:
        whole, cash = sums.get(cell.line_id, (0, 0))
        sums[cell.line_id] = whole + minor, cash + (minor if cell.tender == CASH else 0)
    return sums


def order_part_minor(order_left_minor: int, part_minor: int, left_minor: int) -> int:
    """The order amount that goes with a part of the deduction, rounded half-up; the last part takes the rest."""
    return (2 * order_left_minor * part_minor + left_minor) // (2 * left_minor)


def give_back(
    coupon: Coupon,
    terms: Terms,
    *,
    amount_minor: int,
    closes: bool,
    ended_from: CouponStatus | None,
    now_ms: int,
) -> tuple[Step, ...]:
    """The steps by which a coupon gets back what it gave.

    Args:
        coupon: The coupon as it is.
        terms: Its terms.
        amount_minor: What goes back, in fen.
        closes: Whether nothing is left of the transaction then.
        ended_from: For an EXPIRED card, the status it had before; None when it was voided and stays so.
        now_ms: The time.

    Raises:
        MeshError: REFUND_CARD_EXPIRED, STATUS_TRANSITION_REFUSED.
    """
    if isinstance(terms.kind, GiftCard):
        return _credit(coupon, terms, amount_minor=amount_minor, ended_from=ended_from, now_ms=now_ms)
    refunded = move(coupon, CouponStatus.REFUNDED)
    return (Step(JournalKind.REFUNDED, refunded if closes else coupon),)


def _credit(
    card: Coupon, terms: Terms, *, amount_minor: int, ended_from: CouponStatus | None, now_ms: int
) -> tuple[Step, ...]:
    over = card.status is CouponStatus.EXPIRED or now_ms >= card.expires_at_ms
    policy = terms.refund.expired_card
    if over and policy is ExpiredCardPolicy.REFUSE:
        raise MeshError("REFUND_CARD_EXPIRED", coupon_id=card.coupon_id, expires_at=format_utc(card.expires_at_ms))
    credited = replace(card, balance_minor=card.balance_minor + amount_minor)
    if card.status is CouponStatus.USED:
        refunded = move(credited, CouponStatus.REFUNDED)
        steps = [
            Step(JournalKind.REFUNDED, refunded),
            Step(JournalKind.REACTIVATED, move(refunded, CouponStatus.ACTIVATED)),
        ]
    else:
        steps = [Step(JournalKind.REFUNDED, credited)]
    voided = card.status is CouponStatus.EXPIRED and ended_from is None
    if over and policy is ExpiredCardPolicy.CREDIT_AND_EXTEND and not voided:
        until_ms = day_start_ms(now_ms, terms.time_zone, terms.refund.extend_days + 1)
        extended = replace(steps[-1].coupon, expires_at_ms=max(until_ms, card.expires_at_ms))
        if extended.status is CouponStatus.EXPIRED and ended_from is not None:
            # A card that was frozen when it expired is frozen again.
            extended = move(extended, ended_from)
        steps.append(Step(JournalKind.EXTENDED, extended))
    return tuple(steps)


def replacement_expiry_ms(coupon: Coupon, terms: Terms, *, now_ms: int) -> int | None:
    """When the new coupon that stands in for a refunded one expires; None when there shall be none."""
    policy = terms.refund.used_coupon
    if policy is UsedCouponPolicy.REISSUE_FRESH_EXPIRY:
        return day_start_ms(now_ms, terms.time_zone, terms.refund.fresh_days + 1)
    if policy is UsedCouponPolicy.REISSUE_ORIGINAL_EXPIRY and now_ms < coupon.expires_at_ms:
        return coupon.expires_at_ms
    return None
