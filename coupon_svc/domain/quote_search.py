"""Finds the best combination of coupons: branch and bound, level by level, in three nested parts.

**Regimes** (`_Regimes`). A minimum that looks at the remaining amount may be missed because of coupons of lower levels.
So it is decided first which of these coupons are used. Those of one level and one scope form a chain in the order of
their minimums: none of it is used, or one of it is the last that is. The last one must then be used, which leaves out
what it excludes and puts a floor under what lower levels leave of the scope; those before it may be used, those after
it may not. Every combination belongs to exactly one regime, so the best of all regimes is the best of all.

**The walk** (`_Walk`) goes through the combinations of one regime: a node is a set of coupons that were taken, its
branches take one later coupon each, so that every combination is one node and no combination is two. Taking is
calculated as `quote.combine` does it. A branch is cut when

1. its bound is not above the best combination so far (below);
2. a floor no longer holds: what is left only shrinks, so it never holds again;
3. the same state was reached before with no less taken: from a state on, what later coupons take is the same.

**Bounds.** Of coupons that exclude each other pairwise (a clique) at most one counts. Three bounds are used, the least
of them and of what is left to pay:

- plain: every coupon takes at most what it would take now, since what it looks at only shrinks;
- weighted: a coupon that takes the rate t of what is left of its lines takes t fen less for every fen that a coupon
  of a lower level takes from those lines. So the lower one counts with the weight 1 - t, and the upper one with what
  it would take now. What a clique can take is bounded by a line over what is left of its scope, of which t is the
  slope: the chord of the largest of its members' lines, which lies above it, since a maximum of lines is convex. A
  member counts with its rate plus the half fen of rounding, or, where its cap binds even at the least that may be left,
  with its cap. All lines are positive where they are used, so the bound also holds when the clique is not used. A
  coupon whose lines lie in those lines only in part counts with the least part that it may have there;
- floors: when more is wanted above a floor than there is room for, the difference is missed by somebody, and costs at
  least its weight, the lightest first. Where amounts are fixed, the sums that can be reached are known, one bit each,
  so that a room which no sum fills costs what stays empty.

Bounds are floats, whose error (below 0.05 fen for amounts up to 10^12 fen and 30 coupons) is added. What is cut is
therefore never better than what is kept, which is the proof. The problem holds that of the knapsack (which coupons may
be used so that a minimum is just kept), so no bound on the time is known that is not exponential; `max_nodes` ends a
search, and the answer says so.

**State.** In general what is left of each line. When every coupon whose amount can depend on others (it looks at what
is left after lower levels, or they might leave it less than it wants) has each other coupon before it either inside its
own lines or apart from them, what is left of the eligible lines as a whole suffices, and no line is touched: that is
the case for scopes that nest, such as items in shops on a platform.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coupon_svc.domain.deduction import taken_minor
from coupon_svc.domain.order_lines import largest_remainder
from coupon_svc.domain.terms import Discount, GiftCard, Kind

# Where a search ends with the best that it has found by then, after one second or two.
MAX_NODES = 20_000
_E4 = 10_000
# Sums of amounts are told apart up to this many units, 256 KiB of bits.
_MAX_SUMS = 1 << 21
# Above the error of every sum of floats here, in fen.
_FLOAT_ERROR = 0.05
_APART = (0.0, 0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A coupon as the search sees it; `lines` are positions of its eligible lines."""

    level: int
    kind: Kind
    looks_at_price: bool
    group: str
    exclusive: bool
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The best combination: positions of its coupons, ascending, and what they take together, in fen."""

    chosen: tuple[int, ...]
    total_minor: int
    proven: bool
    nodes: int


def search(candidates: Sequence[Candidate], price_minor: Sequence[int], *, max_nodes: int = MAX_NODES) -> Found:
    """The best combination of candidates, which come in the order in which they apply.

    Args:
        candidates: no gift cards; none of them need take anything.
        price_minor: the price of each line, in fen.
        max_nodes: where the search gives up on the proof, and answers with the best found.
    """
    alone = [
        (taken, -at)
        for at, each in enumerate(candidates)
        if each.exclusive and (taken := _alone_minor(each, price_minor)) > 0
    ]
    together = [
        (at, each) for at, each in enumerate(candidates) if not each.exclusive and _alone_minor(each, price_minor) > 0
    ]
    best = _Best(max_nodes)
    if together:
        board = _Board([each for _, each in together], price_minor)
        first = _greedy(board)
        best.offer(board.total(first), first)
        _Regimes(board, best).search()
        best.chosen = _trimmed(board, best.chosen)
    found = Found(tuple(together[at][0] for at in best.chosen), best.minor, proven=not best.ended, nodes=best.nodes)
    taken, minus_at = max(alone, default=(0, 0))
    return Found((-minus_at,), taken, found.proven, found.nodes) if taken > found.total_minor else found


def _alone_minor(candidate: Candidate, price_minor: Sequence[int]) -> int:
    base = sum(price_minor[at] for at in candidate.lines)
    return taken_minor(candidate.kind, base_minor=base, left_minor=base)


class _Item:
    """A candidate with what the search precomputes of it."""

    __slots__ = (
        "alone",
        "at_risk",
        "binds",
        "contained_in",
        "enemies",
        "fixed",
        "kind",
        "least",
        "level",
        "lines",
        "mask",
        "minimum",
        "price",
        "scope",
    )

    def __init__(self, candidate: Candidate, level: int, price_minor: Sequence[int]) -> None:
        self.kind = candidate.kind
        self.level = level
        self.lines = candidate.lines
        self.mask = sum(1 << at for at in candidate.lines)
        self.price = sum(price_minor[at] for at in candidate.lines)
        self.minimum = 0 if isinstance(candidate.kind, GiftCard) else candidate.kind.min_amount_minor
        # The most that it can take.
        self.alone = taken_minor(candidate.kind, base_minor=self.price, left_minor=self.price)
        # Whether what it looks at is the same in every combination.
        self.fixed = candidate.looks_at_price
        # The least that it may have to look at, and whether its minimum may then be missed.
        self.least = self.price
        self.at_risk = False
        # Whether coupons before it may leave less than it wants.
        self.binds = False
        self.enemies = 0
        self.scope = 0
        # The scopes of which all its lines are part.
        self.contained_in: tuple[int, ...] = ()


class _Board:
    """The candidates and how they touch each other: what stays the same over the whole search."""

    def __init__(self, candidates: Sequence[Candidate], price_minor: Sequence[int]) -> None:
        self.price = price_minor
        self.levels = _runs([each.level for each in candidates])
        level_of = [number for number, (first, end) in enumerate(self.levels) for _ in range(first, end)]
        self.items = [_Item(each, level, price_minor) for each, level in zip(candidates, level_of, strict=True)]
        for (at, one), (other, rival) in itertools.permutations(enumerate(self.items), 2):
            same_group = candidates[at].group == candidates[other].group
            if one.level == rival.level and same_group and one.mask & rival.mask:
                one.enemies |= 1 << other
        self.masks = list(dict.fromkeys(item.mask for item in self.items))
        self.scopes = [tuple(at for at in range(len(price_minor)) if mask >> at & 1) for mask in self.masks]
        for item in self.items:
            item.scope = self.masks.index(item.mask)
            item.contained_in = tuple(at for at, mask in enumerate(self.masks) if item.mask & ~mask == 0)
        self.cliques = [self._cliques_of(range(first, end)) for first, end in self.levels]
        self.cliques_are_all = all(
            self.items[at].enemies == sum(1 << other for other in clique if other != at)
            for cliques in self.cliques
            for clique in cliques
            for at in clique
        )
        self.prices = [sum(price_minor[at] for at in scope) for scope in self.scopes]
        for at in range(len(self.items)):
            self._examine(at)
        # Scopes of which more may be wanted than there is.
        self.tight = sorted({item.scope for item in self.items if item.binds})
        self.by_lines = any(self._needs_lines(at) for at in range(len(self.items)))
        self._shares: dict[tuple[int, int], tuple[float, int]] = {}
        union = 0
        for mask in self.masks:
            union |= mask
        self.to_pay = sum(price for at, price in enumerate(price_minor) if union >> at & 1)

    def _cliques_of(self, numbers: Sequence[int]) -> list[list[int]]:
        """Partitions items into sets of which no two go together."""
        cliques: list[list[int]] = []
        for at in numbers:
            for clique in cliques:
                if all(self.items[at].enemies >> other & 1 for other in clique):
                    clique.append(at)
                    break
            else:
                cliques.append([at])
        return cliques

    def _most_before(self, at: int, levels: int, mask: int) -> int:
        """The most that items before `at`, of the first `levels` levels, can take from the lines of `mask`."""
        return sum(
            max(self.items[other].alone for other in touching)
            for cliques in self.cliques[:levels]
            for clique in cliques
            if (touching := [other for other in clique if other < at and self.items[other].mask & mask])
        )

    def _examine(self, at: int) -> None:
        """Notes what coupons before an item may do to it."""
        item = self.items[at]
        below = self._most_before(at, item.level, item.mask)
        item.fixed = item.fixed or below == 0
        if not item.fixed:
            item.least = max(item.price - below, 0)
            item.at_risk = item.least < item.minimum
        item.binds = self._most_before(at, item.level + 1, item.mask) > item.price - item.alone

    def _needs_lines(self, at: int) -> bool:
        item = self.items[at]
        if item.fixed and not item.binds:
            return False
        before = self.items[: at if item.binds else self.levels[item.level][0]]
        return any(each.mask & item.mask and each.mask & ~item.mask for each in before)

    def share(self, at: int, scope: int) -> tuple[float, int]:
        """Of what an item takes, the part that it takes at least from the lines of a scope.

        Also by how many fen at most the split into whole fen may lessen that part.
        """
        found = self._shares.get((at, scope))
        if found is None:
            found = self._shares[at, scope] = self._share(at, scope)
        return found

    def _share(self, at: int, scope: int) -> tuple[float, int]:
        own, other = self.items[at].mask, self.masks[scope]
        if not own & ~other:
            return 1.0, 0
        common = own & other
        if not common or not self.by_lines:
            return 0.0, 0
        # A coupon takes in proportion to what is left: least here, and most of its other lines.
        outside = sum(price for line, price in enumerate(self.price) if own & ~other & 1 << line)
        inside = sum(price for line, price in enumerate(self.price) if common >> line & 1)
        inside = max(inside - self._most_before(at, self.items[at].level + 1, common), 0)
        if not inside:
            return 0.0, 0
        return inside / (inside + outside), 1 + min(common.bit_count(), (own & ~other).bit_count())

    def may_run_out(self, cliques: Sequence[Sequence[int]], wants: Mapping[int, int], scopes: Sequence[int]) -> bool:
        """Whether coupons of a level may together want more than is left of a scope."""
        if not self.tight:
            return False
        wanted = [0] * len(scopes)
        for clique in cliques:
            mask, most = 0, 0
            for at in clique:
                mask |= self.items[at].mask
                most = max(most, wants[at])
            for number, other in enumerate(self.masks):
                if mask & other:
                    wanted[number] += most
        return any(wanted[number] > scopes[number] for number in self.tight)

    def taken_at(self, at: int, left: int) -> int:
        """The most that an item can take when at most `left` is left of its lines."""
        item = self.items[at]
        if item.fixed:
            return min(item.alone, left)
        return taken_minor(item.kind, base_minor=left, left_minor=left)

    def extremes(self, at: int) -> tuple[int, int]:
        """The least and the most that an item takes, when its minimum is met and enough is left."""
        item = self.items[at]
        if item.fixed:
            return item.alone, item.alone
        least = max(item.least, item.minimum)
        return taken_minor(item.kind, base_minor=least, left_minor=least), item.alone

    def total(self, chosen: Sequence[int]) -> int:
        """What these items, ascending, take together; -1 when one of them would take nothing."""
        scopes: Sequence[int] = self.prices
        lines, taken, level, entry = self.price, 0, 0, scopes
        for at in chosen:
            item = self.items[at]
            if item.level != level:
                level, entry = item.level, scopes
            amount = min(self.taken_at(at, entry[item.scope]), scopes[item.scope])
            if amount == 0:
                return -1
            scopes, lines = self.after(at, amount, scopes, lines)
            taken += amount
        return taken

    def after(
        self, at: int, amount: int, scopes: Sequence[int], lines: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """What is left of scopes and lines when an item takes an amount."""
        left = [*scopes]
        if not self.by_lines:
            for number in self.items[at].contained_in:
                left[number] -= amount
            return left, lines
        own, left_of_lines = self.items[at].lines, [*lines]
        for line, share in zip(own, largest_remainder(amount, [lines[each] for each in own]), strict=True):
            left_of_lines[line] -= share
        mask = self.items[at].mask
        for number, scope in enumerate(self.scopes):
            if self.masks[number] & mask:
                left[number] = sum([left_of_lines[each] for each in scope])
        return left, left_of_lines


@dataclass(frozen=True, slots=True)
class _Floor:
    """Of a scope, at least `least` must be left when `level` begins."""

    level: int
    scope: int
    least: int


@dataclass(slots=True)
class _Best:
    """The best combination so far, and how many nodes were looked at."""

    max_nodes: int
    minor: int = 0
    chosen: tuple[int, ...] = ()
    nodes: int = 0

    @property
    def ended(self) -> bool:
        """Whether the search is at its bound."""
        return self.nodes >= self.max_nodes

    def offer(self, minor: int, chosen: Sequence[int]) -> None:
        """Takes a combination that takes more."""
        if minor > self.minor:
            self.minor, self.chosen = minor, tuple(sorted(chosen))


@dataclass(frozen=True, slots=True)
class _Regime:
    """What was decided for the first `chain` chains: items left out, items that must be used, and floors."""

    chain: int
    out: int
    must: int
    floors: tuple[_Floor, ...]


class _Regimes:
    """Decides of items whose minimum may be missed which are used; each choice, a regime, is then searched by itself.

    Items of one level and one scope form a chain, in the order of their minimums: decided is which of it is the last.
    """

    def __init__(self, board: _Board, best: _Best) -> None:
        self._board = board
        self._best = best
        chains: dict[tuple[int, int], list[int]] = {}
        for at, item in enumerate(board.items):
            if item.at_risk:
                chains.setdefault((item.level, item.scope), []).append(at)
        self._chains = sorted(
            (sorted(chain, key=lambda at: board.items[at].minimum) for chain in chains.values()),
            key=lambda chain: -sum(board.items[at].alone for at in chain),
        )

    def search(self) -> None:
        """Searches every regime that may hold a better combination, the most promising first."""
        caps = tuple(_Floor(len(self._board.levels), scope, 0) for scope in self._board.tight)
        self._choose(_Regime(0, 0, 0, caps), self._bound(0, caps))

    def _choose(self, regime: _Regime, bound: int) -> None:
        self._best.nodes += 1
        if self._best.ended or bound <= self._best.minor:
            return
        if regime.chain == len(self._chains):
            _Walk(self._board, self._best, regime).walk()
            return
        branches = [(self._bound(each.out, each.floors), each) for each in self._branches(regime)]
        for promise, branch in sorted(branches, key=lambda each: -each[0]):
            self._choose(branch, promise)

    def _branches(self, regime: _Regime) -> Iterator[_Regime]:
        """What can become of the next chain: none of it is used, or one is the last that is."""
        items, members = self._board.items, self._chains[regime.chain]
        yield _Regime(regime.chain + 1, regime.out | sum(1 << at for at in members), regime.must, regime.floors)
        for used, at in enumerate(members, start=1):
            if not regime.out >> at & 1:
                out = regime.out | items[at].enemies | sum(1 << other for other in members[used:])
                floor = _Floor(items[at].level, items[at].scope, items[at].minimum)
                yield _Regime(regime.chain + 1, out, regime.must | 1 << at, (*regime.floors, floor))

    def _bound(self, out: int, floors: Sequence[_Floor]) -> int:
        """The most that can be taken without the items in `out` and above the floors."""
        board = self._board
        items = board.items
        total, inside = 0, [0] * len(floors)
        for level, cliques in enumerate(board.cliques):
            for clique in cliques:
                members = [at for at in clique if not out >> at & 1] if out else clique
                if not members:
                    continue
                top = max([items[at].alone for at in members])
                total += top
                for number, floor in enumerate(floors):
                    if level < floor.level:
                        parts = [board.share(at, floor.scope) for at in members]
                        part = min(parts)[0]
                        inside[number] += top if part == 1.0 else max(int(top * part) - max(fen for _, fen in parts), 0)
        excess = 0
        for floor, most in zip(floors, inside, strict=True):
            excess = max(excess, most - (board.prices[floor.scope] - floor.least))
        return min(total - excess, board.to_pay)


class _Clique:
    """Items of one level of which only one can be taken, as one regime has them."""

    __slots__ = ("constant", "floors", "members", "rates", "scope", "slope", "top", "values")

    def __init__(self, members: list[int], board: _Board, floors: Sequence[_Floor], level: int) -> None:
        items = [board.items[at] for at in members]
        self.members = members
        self.top = max(item.alone for item in items)
        # Whether what each takes does not depend on other coupons.
        self.constant = all(item.fixed or not isinstance(item.kind, Discount) for item in items)
        # The scope of all of them, or -1.
        self.scope = items[0].scope if all(item.scope == items[0].scope for item in items) else -1
        # Of a clique of one scope: (left, most that is gained) at the least and the most that may be left.
        self.values: tuple[tuple[int, float], tuple[int, float]] = ((0, 0.0), (0, 0.0))
        # Of any other: how much of each fen left is gained by each member, at most.
        self.rates: list[float] = []
        # By how much less is gained, at least, for each fen that lower levels take from lines of all members.
        self.slope = 0.0
        # By floor: of what the clique takes, the part that it takes at least from the floor's scope, and the fen by
        # which the split into whole fen may lessen it.
        self.floors: dict[int, tuple[float, int]] = {}
        for number, floor in enumerate(floors):
            if level < floor.level:
                parts = [board.share(at, floor.scope) for at in members]
                if all(part for part, _ in parts):
                    self.floors[number] = min(part for part, _ in parts), max(fen for _, fen in parts)

    def above(self, number: int, amount: int) -> int:
        """What it takes at least from a floor's scope when it takes an amount."""
        part, fen = self.floors[number]
        return amount if part == 1.0 else max(int(amount * part) - fen, 0)


class _Walk:
    """The search within one regime."""

    def __init__(self, board: _Board, best: _Best, regime: _Regime) -> None:
        out, floors = regime.out, regime.floors
        self._board = board
        self._best = best
        self._floors = floors
        self._must = regime.must
        self._cliques = [
            [
                _Clique(members, board, floors, level)
                for clique in cliques
                if (members := [at for at in clique if not out >> at & 1])
            ]
            for level, cliques in enumerate(board.cliques)
        ]
        # How much of each fen that an item takes is gained, at most; for bounds only.
        self._weight = [1.0] * len(board.items)
        # What rounding to lines may add to the weighted bound.
        self._slack = _FLOAT_ERROR
        self._weigh()
        self._rests = [self._rest(level) for level in range(len(self._cliques))]
        self._chosen: list[int] = []
        self._seen: dict[tuple[object, ...], int] = {}
        # Frames, by level and by what was left of each scope.
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}

    def _weigh(self) -> None:
        """Weights and slopes, from the last level down."""
        items = self._board.items
        for level in range(len(self._cliques) - 1, -1, -1):
            for clique in self._cliques[level]:
                slack = 0.0
                for at in clique.members:
                    gained, rounded = 1.0, 0.0
                    for later in itertools.chain.from_iterable(self._cliques[level + 1 :]):
                        if later.slope:
                            shares = [self._board.share(at, items[other].scope) for other in later.members]
                            gained -= later.slope * min(part for part, _ in shares)
                            rounded += later.slope * max(fen for _, fen in shares)
                    self._weight[at] = max(gained, 0.0)
                    slack = max(slack, rounded)
                self._slack += slack
                self._slope(clique)

    def _slope(self, clique: _Clique) -> None:
        """Bounds what a clique gains by a line over what is left: the chord of the largest of its members' lines."""
        items, weight = self._board.items, self._weight
        lines = [self._line(items[at]) for at in clique.members]
        if clique.scope < 0:
            clique.rates = [weight[at] * rate for at, (_, rate) in zip(clique.members, lines, strict=True)]
            clique.slope = min(clique.rates)
            return
        most = items[clique.members[0]].price
        least = min(self._least(items[at]) for at in clique.members)
        ends = [
            max([weight[at] * (flat + rate * left) for at, (flat, rate) in zip(clique.members, lines, strict=True)])
            for left in (least, most)
        ]
        clique.values = ((least, ends[0]), (most, ends[1]))
        if most > least:
            clique.slope = (ends[1] - ends[0]) / (most - least)

    def _least(self, item: _Item) -> int:
        """The least that an item may have to look at in this regime."""
        floors = [floor.least for floor in self._floors if (floor.level, floor.scope) == (item.level, item.scope)]
        return max(item.least, *floors, 0)

    def _line(self, item: _Item) -> tuple[float, float]:
        """(constant, rate) of a line that is never below what an item takes."""
        if item.fixed or not isinstance(item.kind, Discount):
            return float(item.alone), 0.0
        rate = (_E4 - item.kind.rate_e4) / _E4
        cap_minor = item.kind.max_deduction_minor
        if cap_minor is not None and self._least(item) * rate >= cap_minor:
            return float(item.alone), 0.0
        return 0.5, rate

    def _rest(self, level: int) -> _Rest:
        """What of the bounds for the levels after `level` is the same at every node."""
        floors = range(len(self._floors))
        rest = _Rest(
            rooms=[(at, floor.scope, floor.least) for at, floor in enumerate(self._floors) if floor.level > level],
            inside=[0 for _ in floors],
            constant=[0 for _ in floors],
            whole=[0 for _ in floors],
            sums=[[] for _ in floors],
            lightest=[self._lightest(level, number) for number in floors],
        )
        for clique in itertools.chain.from_iterable(self._cliques[level + 1 :]):
            if clique.constant:
                rest.plain += clique.top
                rest.weighted += max(self._weight[at] * self._board.items[at].alone for at in clique.members)
            else:
                rest.changing.append(clique)
                if clique.scope < 0 or clique.slope:
                    rest.sloped.append(clique)
                else:
                    rest.weighted += clique.values[1][1]
            self._count_above(clique, rest)
        return rest

    def _count_above(self, clique: _Clique, rest: _Rest) -> None:
        wanted = clique.top
        if not clique.constant:
            if clique.scope < 0:
                return
            # However little is left for it, it wants this much; items of one scope have one weight.
            wanted = max(int(clique.values[0][1] / (self._weight[clique.members[0]] or 1.0)) - 1, 0)
        for number, (part, _) in clique.floors.items():
            rest.inside[number] += clique.above(number, wanted)
            rest.constant[number] += clique.above(number, wanted) if clique.constant else 0
            if part == 1.0:
                rest.whole[number] += wanted
                rest.sums[number].append([self._board.extremes(at) for at in clique.members])

    def _lightest(self, level: int, number: int) -> list[tuple[float, int]]:
        """Weights and amounts of what takes from the scope of a floor, from `level` on, the lightest first."""
        amounts: dict[float, int] = defaultdict(int)
        for clique in itertools.chain.from_iterable(self._cliques[level:]):
            if number in clique.floors:
                amounts[min(self._weight[at] for at in clique.members)] += clique.top
        return sorted(amounts.items())

    def walk(self) -> None:
        """Looks at every combination that may be better than the best so far."""
        self._enter(0, _State(self._board.prices, self._board.price, 0, 0))

    def _enter(self, level: int, state: _State) -> None:
        """Goes on with a level."""
        board = self._board
        wants = {
            at: board.taken_at(at, state.scopes[board.items[at].scope])
            for clique in self._cliques[level]
            for at in clique.members
        }
        last = level + 1 == len(self._cliques)
        enough = not board.may_run_out([clique.members for clique in self._cliques[level]], wants, state.scopes)
        if last and enough and board.cliques_are_all:
            self._finish(level, wants, state)
            return
        # Within a level the order matters when a coupon may leave less than another wants, or for the split over lines.
        frame = self._frame(level, wants, state, ordered=not enough or (board.by_lines and not last))
        frame.final = last and enough
        self._descend(frame, 0, state)

    def _finish(self, level: int, wants: Mapping[int, int], state: _State) -> None:
        """Takes the best of each clique of the last level, when nothing else matters."""
        self._best.nodes += 1
        tops = [max(clique.members, key=wants.__getitem__) for clique in self._cliques[level]]
        if any(self._must >> at & 1 and not wants[at] for at in tops):
            return
        total = state.taken + sum([wants[at] for at in tops])
        if total > self._best.minor:
            self._best.offer(total, [*self._chosen, *(at for at in tops if wants[at])])

    def _frame(self, level: int, wants: Mapping[int, int], state: _State, *, ordered: bool) -> _Frame:
        cliques = self._cliques[level]
        if ordered:
            number_of = {at: number for number, clique in enumerate(cliques) for at in clique.members}
            order = sorted(number_of)
        else:
            ranked = sorted(
                [(sorted(clique.members, key=lambda at: -wants[at]), clique) for clique in cliques],
                key=lambda each: -wants[each[0][0]],
            )
            order = [at for members, _ in ranked for at in members]
            cliques = [clique for _, clique in ranked]
            number_of = {at: number for number, clique in enumerate(cliques) for at in clique.members}
        size = len(order)
        plain, weighted = [0] * (size + 1), [0.0] * (size + 1)
        inside = [[0] * (size + 1) for _ in self._floors]
        whole = [[0] * (size + 1) for _ in self._floors]
        tops, heaviest = [0] * len(cliques), [0.0] * len(cliques)
        for place in range(size - 1, -1, -1):
            at = order[place]
            number, want = number_of[at], wants[at]
            more = max(want - tops[number], 0)
            heavier = max(want * self._weight[at] - heaviest[number], 0.0)
            plain[place] = plain[place + 1] + more
            weighted[place] = weighted[place + 1] + heavier
            tops[number] += more
            heaviest[number] += heavier
            for floor in range(len(self._floors)):
                above, contained = 0, 0
                if more and floor in cliques[number].floors:
                    above = cliques[number].above(floor, tops[number]) - cliques[number].above(
                        floor, tops[number] - more
                    )
                    contained = more if cliques[number].floors[floor][0] == 1.0 else 0
                inside[floor][place] = inside[floor][place + 1] + above
                whole[floor][place] = whole[floor][place + 1] + contained
        return _Frame(
            level,
            order,
            [cliques[number_of[at]] for at in order],
            wants,
            plain,
            weighted,
            inside,
            whole,
            self._numbers.setdefault((level, tuple(state.scopes)), len(self._numbers)),
            {},
            ordered,
        )

    def _reach(self, frame: _Frame, floor: int) -> _Reach | None:
        """The sums that the items from each place on, with constant later ones, can take above a floor."""
        if floor not in frame.reach:
            frame.reach[floor] = self._sums(frame, floor)
        return frame.reach[floor]

    def _sums(self, frame: _Frame, floor: int) -> _Reach | None:
        limit, later = self._floors[floor], self._rests[frame.level].sums[floor]
        cliques = [*dict.fromkeys(frame.clique_at), *itertools.chain(*self._cliques[frame.level + 1 : limit.level])]
        items = [
            self._board.items[at]
            for clique in cliques
            if clique.floors.get(floor, _APART)[0] == 1.0
            for at in clique.members
        ]
        if limit.least == 0 or any(item.binds and item.scope != limit.scope for item in items):
            # What wants more than there is takes a part of it. Of the floor's own scope, a part would be too much.
            return None
        own = [
            frame.wants[at] if clique.floors.get(floor, _APART)[0] == 1.0 else 0
            for at, clique in zip(frame.order, frame.clique_at, strict=True)
        ]
        choices = list(itertools.chain.from_iterable(later))
        unit = math.gcd(*own, *itertools.chain.from_iterable(choices))
        if any(low < high for low, high in choices):
            unit = 1
        most = sum(own) + sum(high for _, high in choices)
        if not unit or most // unit > _MAX_SUMS:
            return None
        reached = 1
        for clique in later:
            before = reached
            for low, high in set(clique):
                reached |= _smeared(before << low // unit, (high - low) // unit)
        by_place = [reached] * (len(own) + 1)
        after = reached
        for place in range(len(own) - 1, -1, -1):
            same = place + 1 < len(own) and frame.clique_at[place] is frame.clique_at[place + 1]
            if frame.ordered or not same:
                after = by_place[place + 1]
            by_place[place] = by_place[place + 1] | after << own[place] // unit if own[place] else by_place[place + 1]
        return _Reach(unit, by_place)

    def _descend(self, frame: _Frame, start: int, state: _State) -> None:
        """Looks at the combination chosen so far, then at those that add an item from place `start` on."""
        best, board = self._best, self._board
        best.nodes += 1
        if best.ended or self._reached(frame, start, state):
            return
        best.offer(state.taken, self._chosen)
        later = self._later(frame.level, state.scopes)
        for place in range(start, len(frame.order) + 1):
            if not self._promises(frame, place, state, later):
                return
            if place == len(frame.order):
                break
            at = frame.order[place]
            must = self._must >> at & 1
            amount = min(frame.wants[at], state.scopes[board.items[at].scope])
            if amount and not state.barred >> at & 1:
                self._take(frame, place, amount, state)
            if must:
                # Without it, this combination belongs to another regime.
                return
        if frame.level + 1 < len(self._cliques):
            self._enter(frame.level + 1, state)

    def _later(self, level: int, scopes: Sequence[int]) -> tuple[int, float, Sequence[int]]:
        """The most that later levels can take, plainly and weighted, and plainly above each floor."""
        board, rest = self._board, self._rests[level]
        plain, weighted, inside = rest.plain, rest.weighted, rest.constant
        if rest.changing:
            inside = [*inside]
            for clique in rest.changing:
                top = max([board.taken_at(at, scopes[board.items[at].scope]) for at in clique.members])
                plain += top
                for number in clique.floors:
                    inside[number] += clique.above(number, top)
            for clique in rest.sloped:
                if clique.scope >= 0:
                    (least, low), _ = clique.values
                    weighted += low + clique.slope * max(scopes[clique.scope] - least, 0)
                else:
                    weighted += self._mixed(clique, scopes)
        return plain, weighted, inside

    def _mixed(self, clique: _Clique, scopes: Sequence[int]) -> float:
        """The most that a clique of several scopes gains, before its slope."""
        board = self._board
        return max(
            [
                rate * scopes[board.items[at].scope] + 0.5
                if rate
                else self._weight[at] * board.taken_at(at, scopes[board.items[at].scope])
                for at, rate in zip(clique.members, clique.rates, strict=True)
            ]
        )

    def _promises(self, frame: _Frame, place: int, state: _State, later: tuple[int, float, Sequence[int]]) -> bool:
        """Whether the items from a place on and later levels may take enough for a better combination."""
        target = self._best.minor - state.taken
        plain, weighted, inside = later
        most = frame.plain[place] + plain
        heavy = frame.weighted[place] + weighted + self._slack
        if most <= target or heavy < target + 1 or self._board.to_pay - state.taken <= target:
            return False
        if frame.final:
            return True
        rest = self._rests[frame.level]
        for number, scope, least in rest.rooms:
            room = state.scopes[scope] - least
            if most - (frame.inside[number][place] + inside[number] - room) <= target:
                return False
            missed = frame.inside[number][place] + rest.inside[number] - room
            if missed > 0 and (most - missed <= target or heavy - _loss(rest.lightest[number], missed) < target + 1):
                return False
            certain = frame.whole[number][place] + rest.whole[number]
            if certain <= room:
                continue
            reach = self._reach(frame, number)
            if reach is not None:
                missed = certain - reach.most(place, room)
                if most - missed <= target or heavy - _loss(rest.lightest[number], missed) < target + 1:
                    return False
        return True

    def _take(self, frame: _Frame, place: int, amount: int, state: _State) -> None:
        at = frame.order[place]
        scopes, lines = state.scopes, state.lines
        if not frame.final:
            scopes, lines = self._board.after(at, amount, scopes, lines)
            for _, scope, least in self._rests[frame.level].rooms:
                if scopes[scope] < least:
                    return
        self._chosen.append(at)
        barred = state.barred | self._board.items[at].enemies
        self._descend(frame, place + 1, _State(scopes, lines, state.taken + amount, barred))
        self._chosen.pop()

    def _reached(self, frame: _Frame, start: int, state: _State) -> bool:
        """Whether this state was reached before with no less taken; notes it."""
        left = tuple(state.lines) if self._board.by_lines else tuple(state.scopes)
        key = (frame.number, start, left, state.barred)
        earlier = self._seen.get(key, -1)
        if earlier >= state.taken:
            return True
        self._seen[key] = state.taken
        return False


@dataclass(slots=True)
class _State:
    """What is left to pay of each scope and line, what was taken, and which items may no longer be."""

    scopes: Sequence[int]
    lines: Sequence[int]
    taken: int
    barred: int


@dataclass(slots=True)
class _Rest:
    """Of the levels after one, what is the same at every node.

    Attributes:
        rooms: floors still ahead, as (number, scope, least).
        inside: by floor, the most that is sure to be wanted above it.
        constant: the same of constant cliques alone.
        whole: the same of cliques whose lines are all of the floor's scope.
        sums: by floor, for each of those cliques (least, most) that each member takes.
        lightest: by floor, weights and amounts of what takes from its scope, the lightest first.
        plain, weighted: the most that constant cliques can take.
        changing: the other cliques.
        sloped: those of them whose weighted bound changes.
    """

    rooms: Sequence[tuple[int, int, int]]
    inside: list[int]
    constant: list[int]
    whole: list[int]
    sums: list[list[list[tuple[int, int]]]]
    lightest: Sequence[Sequence[tuple[float, int]]]
    plain: int = 0
    weighted: float = 0.0
    changing: list[_Clique] = field(default_factory=list)
    sloped: list[_Clique] = field(default_factory=list)


@dataclass(slots=True)
class _Frame:
    """A level as it was entered: the order in which its items are tried, what they want, and bounds by place.

    `plain`, `weighted`: the most that the items from a place on can take; `inside`: the same above each floor.
    """

    level: int
    order: Sequence[int]
    clique_at: Sequence[_Clique]
    wants: Mapping[int, int]
    plain: Sequence[int]
    weighted: Sequence[float]
    inside: Sequence[Sequence[int]]
    whole: Sequence[Sequence[int]]
    number: int
    reach: dict[int, _Reach | None]
    ordered: bool
    # Whether nothing but the sum of what is wanted matters any more.
    final: bool = False


@dataclass(frozen=True, slots=True)
class _Reach:
    """Which sums can be reached from each place on: bit n stands for n units."""

    unit: int
    by_place: Sequence[int]

    def most(self, place: int, room: int) -> int:
        """The largest sum that is not above `room`, which is not negative."""
        return ((self.by_place[place] & ((2 << room // self.unit) - 1)).bit_length() - 1) * self.unit


def _smeared(bits: int, width: int) -> int:
    """Each set bit spread over itself and the next `width` ones."""
    done = 0
    while done < width:
        step = min(done + 1, width - done)
        bits |= bits << step
        done += step
    return bits


def _loss(lightest: Sequence[tuple[float, int]], missed: int) -> float:
    """The least weighted loss when `missed` fen are not taken, of (weight, amount) pairs, the lightest first."""
    loss = 0.0
    for weight, amount in lightest:
        if missed <= amount:
            return loss + max(missed, 0) * weight
        loss += amount * weight
        missed -= amount
    return loss


def _greedy(board: _Board) -> list[int]:
    """A first combination: in each level the coupon of each clique that wants most."""
    scopes: Sequence[int] = board.prices
    lines: Sequence[int] = board.price
    barred, chosen = 0, []
    for cliques in board.cliques:
        wants = {at: board.taken_at(at, scopes[board.items[at].scope]) for clique in cliques for at in clique}
        for at in sorted([max(clique, key=wants.__getitem__) for clique in cliques]):
            amount = min(wants[at], scopes[board.items[at].scope])
            if amount and not barred >> at & 1:
                scopes, lines = board.after(at, amount, scopes, lines)
                barred |= board.items[at].enemies
                chosen.append(at)
    return chosen


def _trimmed(board: _Board, chosen: Sequence[int]) -> tuple[int, ...]:
    """Leaves out, from the last one on, items without which no less is taken."""
    kept = list(chosen)
    total = board.total(kept)
    for at in reversed(chosen):
        fewer = [other for other in kept if other != at]
        if board.total(fewer) >= total:
            kept, total = fewer, board.total(fewer)
    return tuple(kept)


def _runs(levels: Sequence[int]) -> list[tuple[int, int]]:
    """[first, end) of each run of equal levels."""
    starts = [at for at, level in enumerate(levels) if at == 0 or level != levels[at - 1]]
    return [*itertools.pairwise([*starts, len(levels)])]
