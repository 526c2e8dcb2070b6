"""What reserving, confirming, cancelling and releasing share: replies' facts, journal facts, and giving holds up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from coupon_svc.app.coupon_steps import CouponSteps, StepFacts
from coupon_svc.app.ports import TransactionRow
from coupon_svc.app.reservation_ports import ReservationKey, ReservationUnit
from coupon_svc.domain.hold import Hold, HoldState, recounted
from coupon_svc.domain.journal import JournalKind, Origin, Sign
from coupon_svc.domain.order_lines import spread
from coupon_svc.domain.reservation import Reservation, released


@dataclass(frozen=True, slots=True)
class Outcome:
    """A reservation with its holds and, once confirmed, its consumptions: what a reply says. Amounts are fen."""

    reservation: Reservation
    holds: Sequence[Hold]
    transactions: Sequence[TransactionRow] = ()

    @property
    def payable_minor(self) -> int:
        """What the shopper has to pay."""
        return self.reservation.amount_minor - sum(hold.effect_minor for hold in self.holds)

    def shares_minor(self) -> list[list[int]]:
        """For each hold its deduction per line of the order; empty lists when there are no lines."""
        return spread([hold.effect_minor for hold in self.holds], self.reservation.lines)


def hold_facts(
    kind: JournalKind, origin: Origin, reservation: Reservation, hold: Hold, deduction_minor: int
) -> StepFacts:
    """What the journal says of a step that a hold takes."""
    return StepFacts(
        kind=kind,
        origin=origin,
        merchant_id=reservation.merchant_id,
        order_id=reservation.order_id,
        order_amount_minor=hold.base_minor,
        deduction_minor=deduction_minor,
        settlement_held=reservation.settlement_held,
    )


async def release_holds(unit: ReservationUnit, ended: Sequence[Reservation], origin: Origin, sign: Sign) -> int:
    """Gives up what locked reservations still hold, stores their new states, and gives how many holds that were."""
    by_key = {ReservationKey.of(reservation): reservation for reservation in ended}
    held = [hold for hold in await unit.holds_of(list(by_key)) if hold.state is HoldState.HELD]
    if held:
        keys = {(hold.shard, hold.coupon_id) for hold in held}
        steps = CouponSteps(await unit.lock_coupons(keys), sign)
        unreleased: defaultdict[str, list[Hold]] = defaultdict(list)
        for hold in await unit.unreleased_holds(keys):
            unreleased[hold.coupon_id].append(hold)
        for hold in held:
            left = unreleased[hold.coupon_id]
            left.remove(hold)
            facts = hold_facts(
                JournalKind.HOLD_RELEASED, origin, by_key[ReservationKey.of(hold)], hold, hold.deduction_minor
            )
            steps.take(recounted(steps.current(hold.coupon_id), left), facts)
        await unit.update_held_coupons(steps.updates)
        await unit.append_journal(steps.rows)
        await unit.update_holds([released(hold) for hold in held])
    await unit.update_reservations(ended)
    return len(held)
