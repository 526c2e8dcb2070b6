"""Reserve, confirm, cancel and reverse in every order, each sent three times: one legal outcome, the same on each try.

The rules stand here once more, as a plain model of one reservation; the service must agree with it call by call, and
calls that cross each other must have come to something that one order of them explains.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from google.protobuf.message import Message

from coupon_svc.domain.coupon import CouponStatus
from tests.integration.coupon.orders import Holding, Order, assert_holds_agree, holding
from tests.integration.coupon.world import (
    OwnedCoupon,
    Refusal,
    World,
    cash_voucher,
    gift_card,
    outcomes,
)

TRY, CONFIRM, CANCEL, REVERSE = OPERATIONS = ("try", "confirm", "cancel", "reverse")
COPIES = 3


# What the first call that is not a repetition does, by where the reservation stands: the new state, or the reason.
STEPS = {
    (TRY, "none"): "held",
    (TRY, "cancelled"): "RESERVATION_CANCELLED",
    (CONFIRM, "none"): "RESERVATION_NOT_FOUND",
    (CONFIRM, "held"): "confirmed",
    (CONFIRM, "cancelled"): "RESERVATION_CANCELLED",
    (CANCEL, "none"): "cancelled",
    (CANCEL, "held"): "cancelled",
    (CANCEL, "confirmed"): "RESERVATION_CONFIRMED",
    (CANCEL, "reversed"): "reversed",
    (REVERSE, "none"): "none",
    (REVERSE, "held"): "held",
    (REVERSE, "confirmed"): "reversed",
    (REVERSE, "cancelled"): "cancelled",
}


@dataclass(frozen=True)
class Model:
    """One reservation: where it stands, which requests took effect, and whether the confirmation was reversed."""

    state: str = "none"
    done: frozenset[str] = frozenset()
    reversed: bool = False

    def after(self, operation: str) -> tuple[Model, str]:
        """What a call makes of it, and "OK" or the reason why it is refused."""
        if operation == CONFIRM and self.reversed:
            return self, "TRANSACTION_REVERSED"
        if operation in self.done:
            return self, "OK"
        step = STEPS[operation, self.state]
        if step.isupper():
            return self, step
        return Model(step, self.done | {operation}, self.reversed or operation == REVERSE), "OK"


@dataclass
class Attempt:
    """A fresh order for 60.00: a voucher of 5.00 and 55.00 of a gift card of 100.00."""

    world: World
    voucher: OwnedCoupon
    card: OwnedCoupon
    order: Order

    def request(self, operation: str) -> Message:
        order = self.order
        requests: dict[str, Message] = {
            TRY: order.reserve(),
            CONFIRM: order.confirm(),
            CANCEL: order.cancel(),
            REVERSE: order.reverse(),
        }
        return requests[operation]

    async def send(self, operation: str, copies: int) -> list[tuple[str, object]]:
        """What copies of one call, over both processes at once, came to: "OK" or the reason, and the reply."""
        request = self.request(operation)
        results = await outcomes(
            self.world.both[number % 2].call_bytes(request, self.order.till) for number in range(copies)
        )
        return [(result.reason if isinstance(result, Refusal) else "OK", result) for result in results]

    def check(self, model: Model) -> None:
        """The books say what the model says."""
        books = self.world.books
        held, taken = model.state == "held", model.state == "confirmed"
        voucher, card = books.coupon(self.voucher.coupon_id), books.coupon(self.card.coupon_id)
        assert voucher.status == (CouponStatus.USED if taken else CouponStatus.ACTIVATED)
        assert card.status == CouponStatus.ACTIVATED
        assert card.balance == (45 if taken else 100)
        assert holding(books, self.voucher) == (Holding(0, 1) if held else Holding(0, 0))
        assert holding(books, self.card) == (Holding(5_500, 1) if held else Holding(0, 0))
        for coupon in (self.voucher, self.card):
            assert_holds_agree(books, coupon)


async def attempts(world: World, count: int) -> list[Attempt]:
    vouchers, cards = await world.batch(cash_voucher("5.00")), await world.batch(gift_card("100.00"))

    async def one() -> Attempt:
        user, till = world.user(), world.cashier()
        (voucher,), (card,) = await asyncio.gather(world.issue(vouchers, user), world.issue(cards, user))
        return Attempt(world, voucher, card, Order(till, [voucher, card], "60.00"))

    return [await one() for _ in range(count)]


ARRIVALS = [order for length in range(1, 5) for order in itertools.permutations(OPERATIONS, length)]


async def test_every_order_of_first_arrivals_with_three_copies_each_and_each_repeated_after_each_later_one(
    world: World,
) -> None:
    assert len(ARRIVALS) == 4 + 12 + 24 + 24
    for arrivals, attempt in zip(ARRIVALS, await attempts(world, len(ARRIVALS)), strict=True):
        model = Model()
        replies: dict[str, object] = {}
        for position, operation in enumerate(arrivals):
            # Three copies at once over two processes, then everything that was sent before once more.
            for again in (operation, *arrivals[:position]):
                model, expected = model.after(again)
                results = await attempt.send(again, COPIES if again == operation else 1)
                told = f"{again} of {arrivals[: position + 1]}"
                assert [outcome for outcome, _ in results] == [expected] * len(results), told
                if expected == "OK":
                    assert {reply for _, reply in results} == {replies.setdefault(again, results[0][1])}, told
            attempt.check(model)


@pytest.mark.parametrize("seed", range(3))
async def test_twelve_calls_one_after_the_other_in_any_order_agree_with_the_model(world: World, seed: int) -> None:
    shuffle = random.Random(seed)
    for attempt in await attempts(world, 20):
        model = Model()
        calls = [operation for operation in OPERATIONS for _ in range(COPIES)]
        shuffle.shuffle(calls)
        for sent, operation in enumerate(calls, start=1):
            model, expected = model.after(operation)
            ((outcome, _),) = await attempt.send(operation, 1)
            assert outcome == expected, calls[:sent]
        attempt.check(model)


@pytest.mark.parametrize("arrived", [0, 1])
async def test_twelve_calls_that_cross_each_other_come_to_what_one_order_of_them_explains(
    world: World, arrived: int
) -> None:
    """With `arrived`, one reservation was made before the other eleven calls cross."""
    shuffle = random.Random(7 + arrived)
    outcomes_of_confirm: Counter[str] = Counter()
    for attempt in await attempts(world, 25):
        calls = [operation for operation in OPERATIONS for _ in range(COPIES - (operation == TRY and arrived))]
        shuffle.shuffle(calls)
        seen = [(TRY, outcome) for outcome, _ in await attempt.send(TRY, arrived)]
        seen += [(call, (await result)[0][0]) for call, result in _crossing(attempt, calls)]
        explained = explanations(seen)
        assert explained, f"no order of these calls explains them: {seen}"
        assert any(_agrees(attempt, model) for model in explained), f"the books agree with none of {explained}"
        outcomes_of_confirm.update(outcome for call, outcome in seen if call == CONFIRM)
    # The calls did cross: it went one way here and another way there.
    assert len(outcomes_of_confirm) > 1, outcomes_of_confirm


def _agrees(attempt: Attempt, model: Model) -> bool:
    try:
        attempt.check(model)
    except AssertionError:
        return False
    return True


def _crossing(attempt: Attempt, calls: Sequence[str]) -> list[tuple[str, asyncio.Future[list[tuple[str, object]]]]]:
    return [(call, asyncio.ensure_future(attempt.send(call, 1))) for call in calls]


def explanations(seen: Sequence[tuple[str, str]]) -> set[Model]:
    """Where the model may stand after some order of these calls that gives each its outcome; empty if none does."""
    counts = Counter(seen)
    kinds = sorted(counts)
    found: set[Model] = set()
    visited: set[tuple[Model, tuple[int, ...]]] = set()
    waiting = [(Model(), tuple(counts[kind] for kind in kinds))]
    while waiting:
        model, left = waiting.pop()
        if (model, left) in visited:
            continue
        visited.add((model, left))
        if not any(left):
            found.add(model)
        for index, (operation, outcome) in enumerate(kinds):
            if left[index]:
                after, expected = model.after(operation)
                if expected == outcome:
                    waiting.append((after, (*left[:index], left[index] - 1, *left[index + 1 :])))
    return found


def test_the_model_itself_lets_only_one_effect_stand() -> None:
    """Of all 369,600 orders of the twelve calls none leaves a confirmation standing beside a cancellation."""
    waiting = {(Model(), (COPIES,) * len(OPERATIONS))}
    ends = set()
    while waiting:
        model, left = waiting.pop()
        if not any(left):
            ends.add(model.state)
        for index, operation in enumerate(OPERATIONS):
            if left[index]:
                waiting.add((model.after(operation)[0], (*left[:index], left[index] - 1, *left[index + 1 :])))
    # With every call made three times, the cancellation or the reversal is the last word.
    assert ends == {"cancelled", "reversed"}
