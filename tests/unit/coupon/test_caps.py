"""Slices of spend caps, and what a group takes from caps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.app.caps import CapKeeper, Tally, Undone
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.domain.batch import Batch, BlockScope, Caps, Stake, stake_of
from coupon_svc.domain.caps import lease_minor, slice_minor
from coupon_svc.domain.terms import CashVoucher, Discount, GiftCard, Kind, Terms, Threshold
from meshkit.errors import MeshError

KEY = UseKey(1, 129, "b")


def batch(caps: Caps) -> Batch:
    return Batch("b", "t", "a batch", None, 0, 12, BlockScope.NONE, 0, caps)


class Untouchable:
    """A book of caps that nobody may open."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


async def test_a_group_whose_batches_have_no_caps_costs_no_statement() -> None:
    nothing: Any = Untouchable()
    keeper = CapKeeper(nothing, nothing, lambda: 0)
    plain = batch(Caps())
    assert keeper.holders({1}, [plain]) == set()
    assert await keeper.begin(nothing, [(plain, KEY)] * 128, frozenset()) is None
    await keeper.settle(nothing, None)
    await keeper.give_back(nothing, [Undone(plain, KEY, "TX", 100, whole=True)] * 2)


def tally(*, used: set[int] | None = None, left: dict[str, int] | None = None, cut_off: bool = False) -> Tally:
    dry = frozenset({"b"})
    return Tally(0, {KEY: used or set()}, left or {}, dry, dry if cut_off else frozenset())


def refused(of: Tally, caps: Caps, deduction_minor: int = 1) -> MeshError:
    with pytest.raises(MeshError) as caught:
        of.take(batch(caps), KEY, deduction_minor=deduction_minor, transaction_id="TX")
    return caught.value


@given(
    st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5_000)), max_size=200),
)
def test_slices_never_lease_more_than_the_cap_and_leave_less_than_a_slice_each(
    cap_minor: int, spends: list[tuple[int, int]]
) -> None:
    size = slice_minor(cap_minor, 4)
    leased, spent = [0] * 4, [0] * 4
    for database, amount in spends:
        lack = amount - (leased[database] - spent[database])
        if lack > 0:
            leased[database] += lease_minor(
                wanted_minor=lack, slice_minor=size, ungranted_minor=cap_minor - sum(leased)
            )
        if leased[database] - spent[database] >= amount:
            spent[database] += amount
        else:
            # Refused: what is left then is less than the amount here, and less than a slice or that in the others.
            assert cap_minor - sum(leased) == 0
        assert sum(spent) <= sum(leased) <= cap_minor
        assert all(held - taken < max(size, 5_000) for held, taken in zip(leased, spent, strict=True))


def test_a_user_takes_the_lowest_free_use_until_there_is_none() -> None:
    caps = Caps(uses_per_user=3)
    of = tally(used={2})
    for _ in range(2):
        of.take(batch(caps), KEY, deduction_minor=1, transaction_id="TX")
    assert [use.ordinal for use in of.taken] == [1, 3]
    refusal = refused(of, caps)
    assert (refusal.reason, refusal.metadata) == ("USES_LIMIT_REACHED", {"batch_id": "b", "uses_per_user": "3"})


def test_a_deduction_that_does_not_fit_whole_is_refused_and_takes_no_use() -> None:
    caps = Caps(uses_per_user=1, spend_cap_minor=100)
    of = tally(left={"b": 100})
    refusal = refused(of, caps, 101)
    assert (refusal.reason, refusal.metadata) == ("SPEND_CAP_REACHED", {"batch_id": "b", "deduction": "1.01"})
    assert of.taken == []
    of.take(batch(caps), KEY, deduction_minor=100, transaction_id="TX")
    assert dict(of.spent) == {"b": 100}


def test_nothing_is_refused_while_the_batch_may_have_more_to_lease() -> None:
    of = Tally(0, {}, {"b": 100}, frozenset(), frozenset())
    of.take(batch(Caps(spend_cap_minor=1_000)), KEY, deduction_minor=101, transaction_id="TX")
    assert dict(of.spent) == {"b": 101}


def test_a_user_without_uses_left_spends_nothing() -> None:
    of = tally(used={1}, left={"b": 100})
    assert refused(of, Caps(uses_per_user=1, spend_cap_minor=100)).reason == "USES_LIMIT_REACHED"
    assert dict(of.spent) == {}


def test_what_cannot_be_asked_for_is_unavailable_and_not_used_up() -> None:
    assert refused(tally(left={"b": 0}, cut_off=True), Caps(spend_cap_minor=100)).reason == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("kind", "stake"),
    [
        (GiftCard(100), Stake(3, 250)),
        (CashVoucher(20), Stake(3, 60)),
        (Threshold(100, 20), Stake(3, 60)),
        (Discount(8_000, max_deduction_minor=50), Stake(3, 150)),
        (Discount(8_000), Stake(3, 0, unbounded=True)),
    ],
)
def test_the_stake_is_the_most_that_unused_coupons_could_take(kind: Kind, stake: Stake) -> None:
    balance = 250 if isinstance(kind, GiftCard) else 0
    assert stake_of(Terms(kind, None), coupons=3, balance_minor=balance) == stake
