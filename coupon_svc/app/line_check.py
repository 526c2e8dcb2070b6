"""Checks the lines of an import against each other and against what is stored; changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coupon_svc.app.job_ports import JobStore
from coupon_svc.app.pace import Pace
from coupon_svc.app.ports import CodeBook, CodeKey, Store
from coupon_svc.domain.import_lines import ImportLine, LineError, problem_of
from coupon_svc.domain.routing import mac_shard, user_shard
from meshkit.errors import InvalidFields, MeshError

_Item = TypeVar("_Item")
# A longer list of keys makes a statement that is costly to plan.
KEYS_AT_ONCE = 500

CODE_EXISTS = "this code already exists"


class LinesRefused(InvalidFields):
    """Lines that are not imported: the reason of the first, and every line in BadRequest, as many as fit."""

    def __init__(self, errors: Sequence[LineError], total: int) -> None:
        """`errors` in order of lines; `total` counts all wrong lines, should `errors` not hold all."""
        super().__init__(
            [(f"codes[{each.line - 1}].{each.field}", f"{each.reason}: {each.problem}") for each in errors]
        )
        first = errors[0]
        self.reason = first.reason
        self.metadata = {"line": str(first.line), "wrong_lines": str(total)}
        if first.reason == "VALIDATION_FAILED":
            self.metadata |= {"field": f"codes[{first.line - 1}].{first.field}", "problem": first.problem}
        self.args = (self.reason,)


def by_database(store: Store, items: Iterable[_Item], shard_of: Callable[[_Item], int]) -> list[list[_Item]]:
    """The items in groups that lie in one database each, none longer than a statement should be."""
    groups: defaultdict[str, list[_Item]] = defaultdict(list)
    for item in items:
        groups[store.database_of(shard_of(item))].append(item)
    return [
        group[first : first + KEYS_AT_ONCE] for group in groups.values() for first in range(0, len(group), KEYS_AT_ONCE)
    ]


@dataclass(frozen=True, slots=True)
class _Checked:
    """A line whose form is right."""

    number: int
    line: ImportLine
    normal: str


class LineCheck:
    """Checks one import, chunk after chunk; `made_by` names it, so that what it claimed before does not stop it."""

    def __init__(self, store: Store, jobs: JobStore, codes: CodeBook, made_by: bytes) -> None:
        """Begins with line 1."""
        self._store = store
        self._jobs = jobs
        self._codes = codes
        self._made_by = made_by
        self._line_of: dict[str, int] = {}
        self._number = 0

    async def check(self, lines: Sequence[ImportLine]) -> list[LineError]:
        """What is wrong with the next lines, at most one thing each, by line."""
        errors: dict[int, LineError] = {}
        checked: list[_Checked] = []
        pace = Pace()
        for line in lines:
            self._number += 1
            found = self._check_alone(line)
            if isinstance(found, LineError):
                errors[self._number] = found
            else:
                checked.append(found)
            await pace.breathe()
        for error in [*await self._known(checked), *await self._frozen(checked)]:
            errors.setdefault(error.line, error)
        return [errors[number] for number in sorted(errors)]

    def _check_alone(self, line: ImportLine) -> LineError | _Checked:
        number = self._number
        problem = problem_of(number, line)
        if problem is not None:
            return problem
        try:
            normal = self._codes.normalise(line.code)
        except MeshError as refusal:
            return LineError(number, "code", refusal.reason, "is no code")
        earlier = self._line_of.setdefault(normal, number)
        if earlier != number:
            return LineError(number, "code", "CODE_DUPLICATED", f"the same code stands in line {earlier}")
        return _Checked(number, line, normal)

    async def _known(self, checked: Sequence[_Checked]) -> list[LineError]:
        """Codes that any live key, or our own code space, already knows."""
        places: dict[CodeKey, int] = {}
        pace = Pace()
        for each in checked:
            native_shard = self._codes.native_shard(each.normal)
            for key_id, mac in self._codes.macs(each.normal):
                places[CodeKey(mac_shard(mac), key_id, mac)] = each.number
                if native_shard is not None:
                    places[CodeKey(native_shard, key_id, mac)] = each.number
            await pace.breathe()
        return [
            LineError(places[key], "code", "CODE_ALREADY_EXISTS", CODE_EXISTS)
            for group in by_database(self._store, places, lambda key: key.shard)
            for key, entry in (await self._jobs.claimed(group)).items()
            if entry.made_by != self._made_by
        ]

    async def _frozen(self, checked: Sequence[_Checked]) -> list[LineError]:
        lines: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for each in checked:
            if each.line.user:
                lines[user_shard(each.line.user_id), each.line.user_id].append(each.number)
        return [
            LineError(number, "user_id", "ACCOUNT_FROZEN", "the account is frozen")
            for group in by_database(self._store, lines, lambda user: user[0])
            for user in await self._jobs.frozen_users(set(group))
            for number in lines[user]
        ]
