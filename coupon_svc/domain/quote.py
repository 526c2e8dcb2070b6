"""The best combination of coupons for an order, as docs/reference/stacking.md defines it.

`combine` applies a given combination, line by line, and is the definition; `quote` finds the best one (`quote_search`),
lets gift cards pay the rest, and says of every other coupon why it is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from coupon_svc.domain.checks import Use, refuse_unusable
from coupon_svc.domain.deduction import deduct, taken_minor
from coupon_svc.domain.order import Order
from coupon_svc.domain.quote_search import MAX_NODES, Candidate, search
from coupon_svc.domain.spending import LineShare
from coupon_svc.domain.terms import Base, GiftCard, Terms

# How many coupons, gift cards included, one quote weighs against each other.
MAX_CONSIDERED = 30


@dataclass(frozen=True, slots=True)
class Offer:
    """A coupon that may be used for the order: every check but stacking has passed."""

    coupon_id: str
    terms: Terms
    balance_minor: int
    expires_at_ms: int

    def alone_minor(self, order: Order) -> int:
        """What it takes when it is the only one; for a gift card what it can pay."""
        base_minor = sum(order.prices_minor[at] for at in _lines_of(self, order))
        return taken_minor(
            self.terms.kind, base_minor=base_minor, left_minor=base_minor, balance_minor=self.balance_minor
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """A coupon of the combination: what it takes, in fen, and from which lines."""

    offer: Offer
    deduction_minor: int
    lines: tuple[LineShare, ...]


@dataclass(frozen=True, slots=True)
class Unused:
    """A coupon that is left out, and why; `in_favour_of` names the coupon that keeps it out, where one does."""

    coupon_id: str
    reason: str
    in_favour_of: str = ""


@dataclass(frozen=True, slots=True)
class Quote:
    """The best combination. `proven` is False when the search ended at its bound, with the best that it had found."""

    coupons: tuple[Applied, ...]
    gift_cards: tuple[Applied, ...]
    unused: tuple[Unused, ...]
    payable_minor: int
    proven: bool
    nodes: int


def admit(use: Use) -> Offer:
    """The coupon as one that may be combined with others for the order; a gift card pays what it can of it.

    Raises:
        MeshError: the first check that fails.
    """
    coupon = use.coupon
    if isinstance(use.terms.kind, GiftCard):
        payable_minor = max(min(coupon.available_minor, use.eligible_minor), 1)
        use = replace(use, order=replace(use.order, amount_minor=payable_minor))
    refuse_unusable(use)
    return offer_of(use)


def offer_of(use: Use) -> Offer:
    """The coupon as an offer, whether or not it can be used."""
    coupon = use.coupon
    return Offer(coupon.coupon_id, use.terms, coupon.available_minor, coupon.expires_at_ms)


def in_order(offers: Iterable[Offer]) -> list[Offer]:
    """Coupons in the order in which they apply: by level, then the earlier expiry, then the smaller id."""
    return sorted(offers, key=lambda each: (each.terms.stacking.level, each.expires_at_ms, each.coupon_id))


def conflict(one: Offer, other: Offer, order: Order) -> bool:
    """Whether two coupons exclude each other: one is exclusive, or they share level, group and an eligible line."""
    first, second = one.terms.stacking, other.terms.stacking
    if first.exclusive or second.exclusive:
        return True
    if (first.level, first.group) != (second.level, second.group):
        return False
    return not set(_lines_of(one, order)).isdisjoint(_lines_of(other, order))


def combine(offers: Sequence[Offer], order: Order) -> list[Applied] | None:
    """Applies coupons, none of them a gift card, together; None when that combination is not allowed.

    It is not allowed when two of them exclude each other, or when one of them would take nothing.
    """
    chosen = in_order(offers)
    if any(conflict(one, other, order) for at, one in enumerate(chosen) for other in chosen[:at]):
        return None
    price = order.prices_minor
    left = list(price)
    # What earlier levels left: the amounts at which coupons of the present level look.
    level, entry = None, list(price)
    applied = []
    for offer in chosen:
        if offer.terms.stacking.level is not level:
            level, entry = offer.terms.stacking.level, list(left)
        lines = _lines_of(offer, order)
        looked_at = price if offer.terms.stacking.base is Base.ORIGINAL else entry
        step = _take(offer, order, lines, left, base_minor=sum(looked_at[at] for at in lines))
        if step.deduction_minor == 0:
            return None
        applied.append(step)
    return applied


def choose(offers: Sequence[Offer], order: Order) -> tuple[list[Offer], list[Offer]]:
    """The `MAX_CONSIDERED` coupons that take most on their own (of equals those that expire first); the others."""
    ranked = sorted(offers, key=lambda each: (-each.alone_minor(order), each.expires_at_ms, each.coupon_id))
    return ranked[:MAX_CONSIDERED], ranked[MAX_CONSIDERED:]


def quote(offers: Sequence[Offer], order: Order, *, max_nodes: int = MAX_NODES) -> Quote:
    """The best combination for an order with lines, or for one whose amount alone is known.

    No allowed combination takes more, and none of its coupons could be left out without taking less. Gift cards then
    pay what is left.
    """
    coupons = in_order(offer for offer in offers if not isinstance(offer.terms.kind, GiftCard))
    found = search([_candidate(offer, order) for offer in coupons], order.prices_minor, max_nodes=max_nodes)
    applied = combine([coupons[number] for number in found.chosen], order)
    assert applied is not None, "the search chooses allowed combinations"
    assert _total_minor(applied) == found.total_minor, "search and definition agree"
    left = list(order.prices_minor)
    for each in applied:
        _subtract(each, order, left)
    cards, idle = _pay([offer for offer in offers if isinstance(offer.terms.kind, GiftCard)], order, left)
    used = {each.offer.coupon_id for each in applied}
    unused = [_why_not(offer, applied, order) for offer in coupons if offer.coupon_id not in used]
    return Quote(
        coupons=tuple(applied),
        gift_cards=tuple(cards),
        unused=(*unused, *(Unused(offer.coupon_id, "NOTHING_LEFT_TO_PAY") for offer in idle)),
        payable_minor=sum(left),
        proven=found.proven,
        nodes=found.nodes,
    )


def _total_minor(applied: Sequence[Applied]) -> int:
    return sum(each.deduction_minor for each in applied)


def _pay(cards: Sequence[Offer], order: Order, left: list[int]) -> tuple[list[Applied], list[Offer]]:
    """Gift cards pay from `left`: those valid for fewer lines first, then the earlier expiry, then the smaller id."""
    paying, idle = [], []
    for card in sorted(cards, key=lambda each: (len(_lines_of(each, order)), each.expires_at_ms, each.coupon_id)):
        lines = _lines_of(card, order)
        if any(left[at] for at in lines):
            paying.append(_take(card, order, lines, left, base_minor=0))
        else:
            idle.append(card)
    return paying, idle


def _take(offer: Offer, order: Order, lines: Sequence[int], left: list[int], *, base_minor: int) -> Applied:
    """What the coupon takes; subtracts it from `left`."""
    taken = deduct(
        offer.terms.kind,
        base_minor=base_minor,
        left_minor=[left[at] for at in lines],
        balance_minor=offer.balance_minor,
    )
    for at, share in zip(lines, taken.shares_minor, strict=True):
        left[at] -= share
    shares = zip(lines, taken.shares_minor, strict=True)
    return Applied(offer, taken.total_minor, tuple(LineShare(order.parts[at].line_id, share) for at, share in shares))


def _subtract(applied: Applied, order: Order, left: list[int]) -> None:
    for at, share in zip(_lines_of(applied.offer, order), applied.lines, strict=True):
        left[at] -= share.amount_minor


def _why_not(offer: Offer, applied: Sequence[Applied], order: Order) -> Unused:
    for each in applied:
        if conflict(offer, each.offer, order):
            exclusive = offer.terms.stacking.exclusive or each.offer.terms.stacking.exclusive
            reason = "EXCLUSIVE" if exclusive else "STACKING_GROUP_TAKEN"
            return Unused(offer.coupon_id, reason, each.offer.coupon_id)
    return Unused(offer.coupon_id, "NOT_IN_BEST_COMBINATION")


def _lines_of(offer: Offer, order: Order) -> tuple[int, ...]:
    return offer.terms.eligible(order.parts, order.merchant_id)


def _candidate(offer: Offer, order: Order) -> Candidate:
    stacking = offer.terms.stacking
    return Candidate(
        level=stacking.level,
        kind=offer.terms.kind,
        looks_at_price=stacking.base is Base.ORIGINAL,
        group=stacking.group,
        exclusive=stacking.exclusive,
        lines=_lines_of(offer, order),
    )
