"""What a journal proves: whether a chain of rows is the one that was written, and where it is not.

A row's keyed hash says that the row is as it was written; its prev_hash says which row came before. What was altered in
a row whose hash does not hold is found by trying the values that other records vouch for (its neighbours, its
transaction, its outbox row, the coupon): the one under which the hash holds again is the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from coupon_svc.domain.journal import FIRST_HASH, JournalKind, JournalRow
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.times import format_utc, month_of

_STATUSES = range(7)
_KINDS = range(1, 32)


class FindingKind(IntEnum):
    """What can be wrong; the numbers of AuditFindingKind in the contract."""

    ROW_ALTERED = 1
    ROW_REMOVED = 2
    ROW_INSERTED = 3
    TAIL_CUT = 4
    CHAIN_RECOMPUTED = 5
    HEAD_MISMATCH = 6
    CHAIN_UNMATCHED = 7
    TRANSACTION_MISMATCH = 8
    OUTBOX_MISMATCH = 9
    ROOT_INVALID = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """A column, what is stored in it, and what it must be."""

    field: str
    stored: str
    expected: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written; `seq` 0 means no single row, `last_seq` ends a range of rows."""

    kind: FindingKind
    shard: int
    coupon_id: str = ""
    seq: int = 0
    last_seq: int = 0
    transaction_id: str = ""
    root_number: int = 0
    differences: tuple[Difference, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """What a coupon or a batch says about the end of its chain; None for what its table does not say."""

    shard: int
    chain_id: str
    version: int | None
    last_hash: bytes | None
    user_ids: tuple[int, ...] | None = None
    status: int | None = None
    balance_minor: int | None = None


@dataclass(frozen=True, slots=True)
class RecordedSpend:
    """What coupon_transaction says about one consumption; amounts are fen."""

    transaction_id: str
    coupon_id: str
    user_id: int
    merchant_id: str
    order_id: str
    amount_minor: int
    deduction_minor: int
    balance_after_minor: int
    settlement_held: int
    caller: str
    request_id: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """What the outbox says about one row."""

    month: int
    time_ms: int
    published: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A stored journal row, and what other records say about it.

    `intact` says whether its hash holds. `spends` are transactions with its transaction_id; for a row that is not
    intact, those of its request as well.
    """

    row: JournalRow
    month: int
    intact: bool
    spends: Sequence[RecordedSpend] = ()
    outbox: OutboxEntry | None = None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A row that was the head of its chain when a root was signed."""

    seq: int
    hash: bytes
    root_number: int


# Given bytes, answers (key id, HMAC) under every live audit key.
Macs = Callable[[bytes], Sequence[tuple[str, bytes]]]

# Fields of JournalRow that its origin holds, and fields whose column has another name.
_ORIGIN_FIELDS = frozenset({"caller", "request_id", "trace_id", "time_ms"})
_COLUMNS = {"time_ms": "event_time"}
# In which field of its transaction a consumption's field is recorded a second time.
_SPEND_FIELDS = {
    "user_id": "user_id",
    "merchant_id": "merchant_id",
    "order_id": "order_id",
    "order_amount_minor": "amount_minor",
    "deduction_minor": "deduction_minor",
    "balance_after_minor": "balance_after_minor",
    "settlement_held": "settlement_held",
    "caller": "caller",
    "request_id": "request_id",
    "time_ms": "time_ms",
}
# For these there are values to try, but none that another record vouches for.
_UNVOUCHED = frozenset({"kind", "amount_minor", "lock_fence", "original_transaction_id", "reason"})


def is_intact(row: JournalRow, macs: Macs) -> bool:
    """Whether a row's hash holds under the key that it names."""
    return (row.key_id, row.hash) in macs(row.chained_bytes())


class ChainAudit:
    """Follows one chain, row by row in the order of seq, and tells what is wrong with it.

    It keeps one row back, since what comes after a row says something about it. Rows whose numbers were changed are
    followed by the numbers they were written with.
    """

    def __init__(self, shard: int, chain_id: str, head: Head | None, anchors: Iterable[Anchor], macs: Macs) -> None:
        """`head` is None when no table knows the chain's id; `macs` hashes under every live key."""
        self._shard = shard
        self._chain_id = chain_id
        self._head = head
        self._macs = macs
        self._anchors = {anchor.seq: anchor for anchor in anchors}
        self._anchored_until = 0
        self._recomputed = False
        # Rows of one seq that wait for what comes after them.
        self._held: list[Link] = []
        # The row before, as it was written; and whether that is proved.
        self._before: JournalRow | None = None
        self._proved = True
        # What its successor must call it; None when nobody can tell.
        self._before_hash: bytes | None = FIRST_HASH
        # How far stored numbers are above written ones at this point.
        self._shift = 0
        self._last_stored_seq = 0
        # Numbers whose outbox rows have no journal row, which is accounted for.
        self._gaps: list[range] = []
        self._expects_outbox = False
        self.rows = 0

    def add(self, link: Link) -> Iterator[Finding]:
        """Takes the next row and tells what is wrong with the one before it."""
        self.rows += 1
        self._last_stored_seq = max(self._last_stored_seq, link.row.seq)
        if self._held and self._held[0].row.seq != link.row.seq:
            yield from self._judge(link)
            self._held = []
        self._held.append(link)

    def finish(self, lone_outbox_seqs: Sequence[int] = ()) -> Iterator[Finding]:
        """Tells what is wrong with the last row and with the end; outbox rows of these numbers have no row."""
        if self._held:
            yield from self._judge(None)
        yield from self._end(sorted(lone_outbox_seqs))

    # --- one row ---

    def _judge(self, after: Link | None) -> Iterator[Finding]:
        """Tells what is wrong with the rows that were held, of which one at most is genuine."""
        if len(self._held) > 1:
            self._held.sort(key=lambda link: (not link.intact, link.month != month_of(link.row.origin.time_ms)))
        link, *twins = self._held
        for twin in twins:
            yield self._finding(
                FindingKind.ROW_INSERTED,
                seq=twin.row.seq,
                detail=f"the number stands twice; this one lies in the partition of {twin.month}",
            )
        yield from self._intact(link) if link.intact else self._broken(link, after)

    def _intact(self, link: Link) -> Iterator[Finding]:
        """A row that holds by itself: does it follow the one before?"""
        row, expected_seq = link.row, self._next_seq()
        self._shift = 0
        if row.seq > expected_seq:
            yield self._gap(expected_seq, row.seq - 1, "the row after it was written when it was there")
        elif self._before_hash is not None and self._proved and row.prev_hash != self._before_hash:
            yield self._finding(
                FindingKind.CHAIN_RECOMPUTED,
                seq=max(row.seq - 1, 1),
                detail=f"its hash holds, but row {row.seq} was written after another row",
            )
        elif self._before is not None and self._proved:
            yield from self._compare_steps(self._before, row)
        if link.month != month_of(row.origin.time_ms):
            yield self._finding(
                FindingKind.ROW_ALTERED,
                seq=row.seq,
                differences=(_difference("month", link.month, month_of(row.origin.time_ms)),),
                detail="the month of the partition is not that of event_time",
            )
        yield from self._accept(link, row, proved=True)

    def _compare_steps(self, before: JournalRow, row: JournalRow) -> Iterator[Finding]:
        """A row that begins elsewhere than the one before ended: the coupon was altered when it was written."""
        differences = tuple(
            difference
            for difference in (
                _difference("status", row.status_before, before.status_after),
                Difference(
                    "balance",
                    format_yuan(row.balance_after_minor - row.amount_minor),
                    format_yuan(before.balance_after_minor),
                ),
            )
            if difference.stored != difference.expected
        )
        if differences:
            yield self._finding(
                FindingKind.HEAD_MISMATCH,
                seq=row.seq,
                differences=differences,
                detail=f"the coupon had been altered when row {row.seq} was written",
            )

    def _broken(self, link: Link, after: Link | None) -> Iterator[Finding]:
        """A row whose hash does not hold: was it given another number, never written, or altered?"""
        row, expected_seq = link.row, self._next_seq()
        shift = self._renumbered_by(row)
        if shift is not None and row.seq - shift >= expected_seq:
            yield from self._renumbered(link, shift)
            return
        if row.seq - self._shift > expected_seq:
            yield self._gap(expected_seq, row.seq - self._shift - 1, "the numbers before and after it are there")
            self._before_hash = None
        if shift is not None or self._was_never_written(link, after):
            detail = (
                "its hash does not hold, and no other record knows of it"
                if shift is None
                else f"it is a copy of row {row.seq - shift}"
            )
            yield self._finding(FindingKind.ROW_INSERTED, seq=row.seq, detail=detail)
            self._shift += 1
            return
        original, differences = self._original(link, after)
        if original is not None:
            detail = "its hash holds again with the expected values"
        elif differences:
            detail = "its hash does not hold; these fields contradict other records"
        else:
            detail = "its hash does not hold; no other record tells what was altered"
        yield self._finding(
            FindingKind.ROW_ALTERED,
            seq=row.seq,
            differences=differences,
            transaction_id=row.transaction_id or "",
            detail=detail,
        )
        yield from self._accept(link, original or row, proved=original is not None)

    def _renumbered_by(self, row: JournalRow) -> int | None:
        """How far a row's number is above the one it was written with; None when that is not what was altered."""
        for shift in dict.fromkeys((self._shift, self._shift - 1, self._shift + 1)):
            if shift and is_intact(replace(row, seq=row.seq - shift), self._macs):
                return shift
        return None

    def _renumbered(self, link: Link, shift: int) -> Iterator[Finding]:
        written = replace(link.row, seq=link.row.seq - shift)
        if written.seq > self._next_seq():
            yield self._gap(
                self._next_seq(), written.seq - 1, f"row {written.seq} was given number {link.row.seq} to close the gap"
            )
        self._shift = shift
        self._gaps.append(range(written.seq, written.seq + 1))
        yield from self._accept(replace(link, outbox=None), written, proved=True)

    def _was_never_written(self, link: Link, after: Link | None) -> bool:
        if after is not None:
            # A successor that was written after this row names its hash, not that of the row before.
            return self._before_hash is not None and after.row.prev_hash == self._before_hash
        version = self._head.version if self._head is not None else None
        return (version is not None and link.row.seq > version) or (link.outbox is None and self._expects_outbox)

    def _accept(self, link: Link, row: JournalRow, *, proved: bool) -> Iterator[Finding]:
        """Goes on behind a row; `row` is what was written, when that is proved."""
        anchor = self._anchors.pop(row.seq, None)
        if proved:
            if anchor is not None:
                yield from self._compare_anchor(row, anchor)
            if row.kind == JournalKind.CONSUMED and row.transaction_id is not None:
                yield from self._compare_spend(link, row, row.transaction_id)
            if not self._shift:
                yield from self._compare_outbox(link, row)
        self._before, self._proved = row, proved
        self._before_hash = row.hash if proved else None

    # --- which value was it ---

    def _original(self, link: Link, after: Link | None) -> tuple[JournalRow | None, tuple[Difference, ...]]:
        """The row as it was written, when that can be proved, and where the stored one differs from it."""
        stored = link.row
        hashes = {stored.hash, *self._hashes_named(after)}
        was = self._proof(stored, hashes)
        if was is not None:
            return was, tuple(
                _difference(name, getattr(stored, name), getattr(was, name))
                for name in ("key_id", "hash")
                if getattr(stored, name) != getattr(was, name)
            )
        candidates = self._candidates(link, after)
        for name, values in candidates.items():
            for value in values:
                was = self._proof(_with_field(stored, name, value), hashes)
                if was is not None:
                    return was, (_difference(name, _field(stored, name), value),)
        return self._several(stored, candidates, hashes)

    def _several(
        self, stored: JournalRow, candidates: dict[str, list[Any]], hashes: set[bytes]
    ) -> tuple[JournalRow | None, tuple[Difference, ...]]:
        """As `_original`, when more than one field was altered: each gets the value that vouches for it best."""
        repaired = stored
        for name, values in candidates.items():
            if name not in _UNVOUCHED and values:
                repaired = _with_field(repaired, name, values[0])
        was = None
        for amount in (stored.amount_minor, repaired.balance_after_minor - self._balance_before(), 0):
            was = was or self._proof(replace(repaired, amount_minor=amount), hashes)
        told = was or repaired
        return was, tuple(
            _difference(name, _field(stored, name), _field(told, name))
            for name in candidates
            if _field(stored, name) != _field(told, name)
        )

    def _proof(self, candidate: JournalRow, hashes: set[bytes]) -> JournalRow | None:
        """The candidate as it was sealed, when one of the hashes is its own."""
        for key_id, mac in self._macs(candidate.chained_bytes()):
            if mac in hashes:
                return replace(candidate, key_id=key_id, hash=mac)
        return None

    def _hashes_named(self, after: Link | None) -> set[bytes]:
        """What others say the row's hash is."""
        if after is not None:
            return {after.row.prev_hash}
        return {self._head.last_hash} if self._head is not None and self._head.last_hash is not None else set()

    def _candidates(self, link: Link, after: Link | None) -> dict[str, list[Any]]:
        """Values of each field that another record vouches for, or that exist at all; the best first."""
        row, before, head = link.row, self._before, self._head
        follower = after.row if after is not None else None
        last = head if after is None else None
        found: dict[str, list[Any]] = {name: [] for name in _SPEND_FIELDS}
        for spend in link.spends:
            for name, recorded in _SPEND_FIELDS.items():
                found[name].append(getattr(spend, recorded))
        neighbours = [each for each in (before, follower) if each is not None]
        found["shard"] = [self._shard]
        found["coupon_id"] = [self._chain_id]
        found["seq"] = [self._next_seq()]
        found["prev_hash"] = [] if self._before_hash is None else [self._before_hash]
        found["kind"] = [*_KINDS]
        found["status_before"] = [before.status_after if before is not None else 0]
        found["status_after"] = [
            *([follower.status_before] if follower is not None else []),
            *([last.status] if last is not None and last.status is not None else []),
            *_STATUSES,
        ]
        found["user_id"] += [each.user_id for each in neighbours]
        found["user_id"] += (head.user_ids or ()) if head is not None else ()
        found["balance_after_minor"] += [
            *([last.balance_minor] if last is not None and last.balance_minor is not None else []),
            *([follower.balance_after_minor - follower.amount_minor] if follower is not None else []),
            self._balance_before() + row.amount_minor,
        ]
        found["amount_minor"] = [row.balance_after_minor - self._balance_before(), -row.deduction_minor, 0]
        found["transaction_id"] = [spend.transaction_id for spend in link.spends]
        if link.outbox is not None:
            found["time_ms"].append(link.outbox.time_ms)
        # Values to try once nothing else fits; where nothing vouches, the stored one stands before them.
        for name, values in (
            ("deduction_minor", [-row.amount_minor, row.order_amount_minor, 0]),
            ("order_amount_minor", [row.deduction_minor, 0]),
            ("settlement_held", [0, 1]),
            ("transaction_id", [None]),
            ("original_transaction_id", [None]),
            ("merchant_id", [""]),
            ("order_id", [""]),
            ("lock_fence", [None]),
            ("reason", [""]),
            ("caller", [each.origin.caller for each in neighbours]),
        ):
            found[name] = [*(found.get(name) or [_field(row, name)]), *values]
        return found

    def _balance_before(self) -> int:
        return self._before.balance_after_minor if self._before is not None else 0

    # --- other records ---

    def _compare_anchor(self, row: JournalRow, anchor: Anchor) -> Iterator[Finding]:
        if anchor.hash == row.hash:
            self._anchored_until = row.seq
        elif not self._recomputed:
            self._recomputed = True
            yield self._finding(
                FindingKind.CHAIN_RECOMPUTED,
                seq=self._anchored_until + 1,
                last_seq=row.seq,
                root_number=anchor.root_number,
                differences=(_difference("hash", row.hash, anchor.hash),),
                detail=f"the hashes hold, but root {anchor.root_number} was signed over another row {row.seq}",
            )

    def _compare_spend(self, link: Link, row: JournalRow, transaction_id: str) -> Iterator[Finding]:
        spend = next((each for each in link.spends if each.transaction_id == transaction_id), None)
        if spend is None:
            yield self._finding(
                FindingKind.TRANSACTION_MISMATCH,
                seq=row.seq,
                transaction_id=transaction_id,
                detail="coupon_transaction lacks the consumption",
            )
            return
        differences = [
            Difference(
                "consume_time" if name == "time_ms" else recorded,
                _text(name, getattr(spend, recorded)),
                _text(name, _field(row, name)),
            )
            for name, recorded in _SPEND_FIELDS.items()
            if getattr(spend, recorded) != _field(row, name)
        ]
        if spend.coupon_id != self._chain_id:
            differences.append(_difference("coupon_id", spend.coupon_id, self._chain_id))
        if differences:
            yield self._finding(
                FindingKind.TRANSACTION_MISMATCH,
                seq=row.seq,
                transaction_id=transaction_id,
                differences=tuple(differences),
                detail="coupon_transaction differs from the journal",
            )

    def _compare_outbox(self, link: Link, row: JournalRow) -> Iterator[Finding]:
        entry = link.outbox
        if entry is None:
            # Rows leave the outbox in the order of their numbers, once published and confirmed.
            if self._expects_outbox:
                yield self._finding(
                    FindingKind.OUTBOX_MISMATCH,
                    seq=row.seq,
                    detail="the outbox lacks the row, though an earlier one is not published yet",
                )
            return
        self._expects_outbox = self._expects_outbox or not entry.published
        expected = OutboxEntry(month_of(row.origin.time_ms), row.origin.time_ms, entry.published)
        differences = tuple(
            Difference(column, _text(name, getattr(entry, name)), _text(name, getattr(expected, name)))
            for name, column in (("month", "month"), ("time_ms", "create_time"))
            if getattr(entry, name) != getattr(expected, name)
        )
        if differences:
            yield self._finding(
                FindingKind.OUTBOX_MISMATCH,
                seq=row.seq,
                differences=differences,
                detail="the outbox row differs from the journal",
            )

    # --- the end ---

    def _end(self, lone_outbox_seqs: Sequence[int]) -> Iterator[Finding]:
        head, last_seq = self._head, self._next_seq() - 1
        if head is None:
            yield self._finding(
                FindingKind.CHAIN_UNMATCHED,
                last_seq=last_seq,
                detail=f"{self.rows} journal rows of a coupon or batch that does not exist",
            )
            return
        known_seq = self._known_seq(max(last_seq, self._last_stored_seq), lone_outbox_seqs)
        is_cut = known_seq > max(last_seq, self._last_stored_seq)
        if is_cut and self.rows == 0:
            yield self._finding(
                FindingKind.CHAIN_UNMATCHED, seq=1, last_seq=known_seq, detail="all rows of the journal are missing"
            )
        elif is_cut:
            anchors = [anchor for anchor in self._anchors.values() if anchor.seq > last_seq]
            yield self._finding(
                FindingKind.TAIL_CUT,
                seq=last_seq + 1,
                last_seq=known_seq,
                root_number=min((anchor.root_number for anchor in anchors), default=0),
                detail=f"the chain ends with row {last_seq}, but row {known_seq} was written",
            )
        yield from self._compare_head(head, last_seq, is_cut=is_cut)
        for seq in lone_outbox_seqs:
            if not (last_seq < seq <= known_seq or any(seq in gap for gap in self._gaps)):
                yield self._finding(
                    FindingKind.OUTBOX_MISMATCH, seq=seq, detail="the outbox points at a row that does not exist"
                )

    def _known_seq(self, last_seq: int, lone_outbox_seqs: Sequence[int]) -> int:
        """The last row that any record knows of; outbox rows count as far as they follow without a gap."""
        version = self._head.version if self._head is not None else None
        known = max(last_seq, version or 0, *self._anchors, 0)
        for seq in lone_outbox_seqs:
            known = seq if seq == known + 1 else known
        return known

    def _compare_head(self, head: Head, last_seq: int, *, is_cut: bool) -> Iterator[Finding]:
        """Compares the coupon with the end of its chain; one that was cut vouches for nothing above it."""
        row = self._before
        if row is None or (is_cut and head.version is not None and head.version > last_seq):
            return
        compared: list[tuple[str, Any, Any]] = [("version", head.version, last_seq)]
        if self._proved:
            compared += [("last_hash", head.last_hash, row.hash), ("status", head.status, row.status_after)]
            if head.balance_minor is not None and head.balance_minor != row.balance_after_minor:
                compared.append(("balance", format_yuan(head.balance_minor), format_yuan(row.balance_after_minor)))
            if head.user_ids is not None and row.user_id not in head.user_ids:
                compared.append(("user_id", head.user_ids[0], row.user_id))
        differences = tuple(
            _difference(name, stored, expected)
            for name, stored, expected in compared
            if stored is not None and stored != expected
        )
        if differences:
            yield self._finding(
                FindingKind.HEAD_MISMATCH,
                seq=last_seq,
                differences=differences,
                detail="the coupon is not what its chain ends with",
            )

    def _next_seq(self) -> int:
        return self._before.seq + 1 if self._before is not None else 1

    def _gap(self, first: int, last: int, detail: str) -> Finding:
        self._gaps.append(range(first, last + 1))
        return self._finding(FindingKind.ROW_REMOVED, seq=first, last_seq=last, detail=detail)

    def _finding(self, kind: FindingKind, **facts: Any) -> Finding:
        return Finding(kind, self._shard, self._chain_id, **facts)


def _field(row: JournalRow, name: str) -> Any:
    return getattr(row.origin if name in _ORIGIN_FIELDS else row, name)


def _with_field(row: JournalRow, name: str, value: Any) -> JournalRow:
    if name in _ORIGIN_FIELDS:
        return replace(row, origin=replace(row.origin, **{name: value}))
    return replace(row, **{name: value})


def _difference(name: str, stored: Any, expected: Any) -> Difference:
    return Difference(_COLUMNS.get(name, name), _text(name, stored), _text(name, expected))


def _text(name: str, value: Any) -> str:
    """A field's value for people: times as UTC, hashes in hexadecimal, enumerations by number."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int):
        return format_utc(value) if name == "time_ms" else str(int(value))
    return str(value)
