"""Verifies journals and what must agree with them: chains, heads, transactions, outbox rows and signed roots.

A shard is read in chunks, each of them one moment, so that consumes that go on meanwhile cause no false alarm. After
every chunk the verification can be left and gone on with later, by the cursor of its last step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from coupon_svc.app.audit_ports import (
    ABOVE_ALL,
    BELOW_ALL,
    AuditMoment,
    AuditStore,
    RootArchive,
    RowKey,
    StoredRow,
    VerifyRoot,
)
from coupon_svc.domain.audit import (
    Anchor,
    ChainAudit,
    Difference,
    Finding,
    FindingKind,
    Head,
    Link,
    Macs,
    OutboxEntry,
    is_intact,
)
from coupon_svc.domain.journal import JournalKind, account_chain, account_of, below_chain
from coupon_svc.domain.roots import NO_ROOT, Leaf, Root, SignedRoot, merkle_root
from coupon_svc.domain.routing import id_shard, user_shard
from coupon_svc.domain.times import format_utc
from meshkit.errors import MeshError

# A chunk ends with the chain in which it passes either of these, so that a moment is short.
CHAINS_PER_CHUNK = 200
ROWS_PER_CHUNK = 1_000
# Of a user, whose chains are read one by one.
COUPONS_PER_CHUNK = 50
# What is worked through without a turn for other requests: some 5 ms.
ROWS_PER_PAGE = 50
# When others took longer than this for their turn, they are at work, and get as much time as a page takes.
BUSY_S = 0.000_3
PAUSE_S = 0.005
TRANSACTIONS_PER_CHUNK = 250
ROOTS_PER_CHUNK = 10
# A step is given at least this often, and one is not larger than this.
STEP_EVERY_S = 0.5
FINDINGS_PER_STEP = 500
# What must be left of the caller's time for another chunk to begin.
MARGIN_S = 0.5
_LAST_SEQ = (1 << 63) - 1
# More than this says that something is wrong on the whole: a key that is missing, another deployment's database.
MAX_FINDINGS = 20_000


@dataclass(frozen=True, slots=True)
class Scope:
    """What is verified: one chain, those of a user's coupons and account, or all of a shard."""

    shard: int
    coupon_id: str = ""
    user_id: int = 0

    @classmethod
    def of_coupon(cls, coupon_id: str) -> Scope:
        """The chain of one coupon or batch."""
        return cls(id_shard(coupon_id), coupon_id=coupon_id)

    @classmethod
    def of_user(cls, user_id: int) -> Scope:
        """The chains of a user's coupons."""
        return cls(user_shard(user_id), user_id=user_id)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a verification is."""

    chains: int = 0
    rows: int = 0
    transactions: int = 0
    roots: int = 0
    findings: int = 0

    def plus(self, chunk: _Chunk) -> Progress:
        """The progress after a chunk."""
        done = chunk.done
        return Progress(
            chains=self.chains + done.chains,
            rows=self.rows + done.rows,
            transactions=self.transactions + done.transactions,
            roots=self.roots + done.roots,
            findings=self.findings + len(chunk.findings),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What was found since the step before; `cursor` goes on behind it, and is empty once `complete`."""

    findings: Sequence[Finding]
    progress: Progress
    cursor: str
    complete: bool


class _Phase(IntEnum):
    """The parts of a shard's verification, in order."""

    CHAINS = 1
    TRANSACTIONS = 2
    ROOTS = 3


@dataclass(frozen=True, slots=True)
class _Position:
    """Up to where a verification is done: behind `above`, an id or a number, in a phase. As text it is all digits."""

    phase: _Phase = _Phase.CHAINS
    above: str = ""

    def __str__(self) -> str:
        return f"{self.phase:d}{int.from_bytes(self.above.encode(), 'big')}"

    @classmethod
    def parse(cls, text: str) -> _Position:
        """Reads what `str` gave; the beginning for an empty text.

        Raises:
            MeshError: PAGE_TOKEN_INVALID.
        """
        if not text:
            return cls()
        try:
            number = int(text[1:])
            above = number.to_bytes((number.bit_length() + 7) // 8, "big").decode("ascii")
            return cls(_Phase(int(text[0])), above)
        except ValueError as error:
            raise MeshError("PAGE_TOKEN_INVALID") from error


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What one chunk found; `then` is where to go on, None at the end."""

    findings: Sequence[Finding]
    then: _Position | None
    done: Progress = field(default_factory=Progress)


_Report = Callable[..., None]


class VerifyAuditTrail:
    """The use case."""

    def __init__(
        self,
        store: AuditStore,
        macs: Macs,
        *,
        verify_root: VerifyRoot | None = None,
        archive: RootArchive | None = None,
    ) -> None:
        """`macs` hashes under every live audit key; without `verify_root` roots are left alone."""
        self._store = store
        self._macs = macs
        self._verify_root = verify_root
        self._archive = archive

    async def __call__(self, scope: Scope, *, cursor: str, deadline: float) -> AsyncGenerator[Step, None]:
        """Verifies from a cursor on until the end, or until `deadline` (monotonic clock, seconds) comes near.

        Raises:
            MeshError: COUPON_NOT_FOUND, PAGE_TOKEN_INVALID.
        """
        progress = Progress()
        found: list[Finding] = []
        position: _Position | None = _Position.parse(cursor)
        said = time.monotonic()
        longest_s = 0.0
        while position is not None:
            began = time.monotonic()
            is_late = deadline - began < max(MARGIN_S, 2 * longest_s)
            if progress != Progress() and (is_late or progress.findings >= MAX_FINDINGS):
                break
            chunk = await self._chunk(scope, position)
            await _let_others_work()
            longest_s = max(longest_s, time.monotonic() - began)
            progress = progress.plus(chunk)
            found += chunk.findings
            while len(found) > FINDINGS_PER_STEP:
                # Gone on with from here, the chunk tells all of them again.
                yield Step(found[:FINDINGS_PER_STEP], progress, str(position), complete=False)
                del found[:FINDINGS_PER_STEP]
            position = chunk.then
            if position is not None and (found or time.monotonic() - said >= STEP_EVERY_S):
                yield Step(found, progress, str(position), complete=False)
                found, said = [], time.monotonic()
        yield Step(found, progress, "" if position is None else str(position), complete=position is None)

    async def _chunk(self, scope: Scope, position: _Position) -> _Chunk:
        if scope.coupon_id:
            return await self._one_chain(scope)
        if scope.user_id:
            return await self._chains_of_user(scope, position.above)
        if position.phase is _Phase.CHAINS:
            return await self._chains(scope, position.above)
        if position.phase is _Phase.TRANSACTIONS:
            return await self._transactions(scope, position.above)
        return await self._roots(scope, int(position.above or 0))

    # --- chains ---

    async def _one_chain(self, scope: Scope) -> _Chunk:
        async with self._store.moment(scope.shard) as moment:
            reader = await self._read_one(moment, scope.shard, scope.coupon_id)
            if not reader.chains:
                raise MeshError("COUPON_NOT_FOUND")
            chunk = _Chunk(reader.findings, None, reader.done)
            numbers = [anchor.root_number for anchor in reader.anchors.get(scope.coupon_id, ())]
            if not numbers or self._verify_root is None:
                return chunk
            # The newest root that is over the chain vouches for all of it.
            root = await self._roots_in(moment, scope.shard, max(numbers) - 1, 1)
        return _Chunk([*chunk.findings, *root.findings], None, replace(chunk.done, roots=root.done.roots))

    async def _chains_of_user(self, scope: Scope, above: str) -> _Chunk:
        ids = list(await self._store.coupons_of_user(scope.user_id, above, COUPONS_PER_CHUNK))
        is_last = len(ids) < COUPONS_PER_CHUNK
        if is_last:
            ids.append(account_chain(scope.user_id))
        findings: list[Finding] = []
        done = Progress()
        for coupon_id in ids:
            async with self._store.moment(scope.shard) as moment:
                reader = await self._read_one(moment, scope.shard, coupon_id)
            findings += reader.findings
            done = replace(done, chains=done.chains + reader.chains, rows=done.rows + reader.rows)
        return _Chunk(findings, None if is_last else _Position(_Phase.CHAINS, ids[-1]), done)

    async def _read_one(self, moment: AuditMoment, shard: int, chain_id: str) -> _ChainReader:
        reader = _ChainReader(moment, shard, self._macs)
        await reader.read(below_chain(chain_id), chain_id)
        return reader

    async def _chains(self, scope: Scope, above: str) -> _Chunk:
        async with self._store.moment(scope.shard) as moment:
            reader = _ChainReader(moment, scope.shard, self._macs)
            last = await reader.read(above or BELOW_ALL, ABOVE_ALL)
        then = _Position(_Phase.CHAINS, last) if last < ABOVE_ALL else _Position(_Phase.TRANSACTIONS)
        return _Chunk(reader.findings, then, reader.done)

    # --- transactions ---

    async def _transactions(self, scope: Scope, above: str) -> _Chunk:
        """Transactions that no journal row made; those that journal rows name were compared with the chains."""
        async with self._store.moment(scope.shard) as moment:
            unknown, count, last = await moment.unjournaled(above or BELOW_ALL, TRANSACTIONS_PER_CHUNK)
        findings = [
            Finding(
                FindingKind.TRANSACTION_MISMATCH,
                scope.shard,
                coupon_id,
                transaction_id=transaction_id,
                detail="coupon_transaction has a row that no journal row made",
            )
            for transaction_id, coupon_id in unknown
        ]
        if count == TRANSACTIONS_PER_CHUNK:
            then: _Position | None = _Position(_Phase.TRANSACTIONS, last)
        else:
            then = None if self._verify_root is None else _Position(_Phase.ROOTS)
        return _Chunk(findings, then, Progress(transactions=count))

    # --- roots ---

    async def _roots(self, scope: Scope, above: int) -> _Chunk:
        async with self._store.moment(scope.shard) as moment:
            chunk = await self._roots_in(moment, scope.shard, above, ROOTS_PER_CHUNK)
        if chunk.then is not None or self._archive is None:
            return chunk
        number = above + chunk.done.roots
        exported = await asyncio.to_thread(self._archive.last_number, scope.shard)
        if exported <= number:
            return chunk
        # Roots are exported after they are stored, so what is exported must be there.
        async with self._store.moment(scope.shard) as moment:
            if await moment.roots(exported - 1, 1):
                return chunk
        finding = Finding(
            FindingKind.ROOT_INVALID,
            scope.shard,
            root_number=number + 1,
            detail=f"roots {number + 1} to {exported} were exported, but audit_root lacks them",
        )
        return _Chunk([*chunk.findings, finding], None, chunk.done)

    async def _roots_in(self, moment: AuditMoment, shard: int, above: int, limit: int) -> _Chunk:
        """Verifies the next roots: number, predecessor, signature, leaves, and what was exported."""
        findings: list[Finding] = []
        before = (await moment.roots(above - 1, 1))[:1] if above else []
        previous = before[0].root if before and before[0].root.number == above else None
        roots = await moment.roots(above, limit)
        for signed in roots:
            findings += await self._root(moment, signed, previous, expected_number=above + 1)
            previous, above = signed.root, signed.root.number
        then = _Position(_Phase.ROOTS, str(above)) if len(roots) == limit else None
        return _Chunk(findings, then, Progress(roots=len(roots)))

    async def _root(
        self, moment: AuditMoment, signed: SignedRoot, previous: Root | None, *, expected_number: int
    ) -> Sequence[Finding]:
        root = signed.root
        findings: list[Finding] = []

        def report(detail: str, *differences: Difference) -> None:
            findings.append(
                Finding(
                    FindingKind.ROOT_INVALID,
                    root.shard,
                    root_number=root.number,
                    differences=differences,
                    detail=detail,
                )
            )

        if root.number != expected_number:
            report(f"root {expected_number} is missing before it")
        elif root.previous != (NO_ROOT if previous is None else previous.digest()):
            report("it names another root as the one before")
        if self._verify_root is not None and not self._verify_root(root.statement(), signed.key_id, signed.signature):
            report("its signature does not hold")
        exported, exported_leaves = await self._exported(root, report)
        if exported is not None and exported != root:
            report(
                "it is not the root that was exported",
                *(
                    Difference(name, str(stored), str(exported.to_dict()[name]))
                    for name, stored in root.to_dict().items()
                    if stored != exported.to_dict()[name]
                ),
            )
        leaves = await moment.root_leaves(root.number)
        computed = merkle_root(leaves)
        if len(leaves) != root.leaf_count or computed != root.merkle_root:
            report(
                f"audit_leaf holds {len(leaves)} leaves of {root.leaf_count}"
                if len(leaves) != root.leaf_count
                else "audit_leaf is not what the root was made of",
                Difference("merkle_root", computed.hex(), root.merkle_root.hex()),
            )
        if exported_leaves is not None and sorted(exported_leaves) != sorted(leaves):
            findings += await _against_export(moment, root, leaves, exported_leaves)
        return findings

    async def _exported(self, root: Root, report: _Report) -> tuple[Root | None, Sequence[Leaf] | None]:
        """The root and the leaves that were exported, as far as a signature vouches for them."""
        if self._archive is None or self._verify_root is None:
            return None, None
        try:
            exported = await asyncio.to_thread(self._archive.read, root.shard, root.number)
        except ValueError as error:
            report(f"the exported root cannot be read: {error}")
            return None, None
        if exported is None:
            return None, None
        signed, leaves = exported
        if not self._verify_root(signed.root.statement(), signed.key_id, signed.signature):
            report("the signature of the exported root does not hold")
            return None, None
        if merkle_root(leaves) != signed.root.merkle_root:
            report("the leaves of the exported root are not those it was signed over")
            return signed.root, None
        return signed.root, leaves


async def _against_export(
    moment: AuditMoment, root: Root, stored: Sequence[Leaf], exported: Sequence[Leaf]
) -> Sequence[Finding]:
    """Which chains were rewritten together with the leaves in the database."""
    findings = []
    for leaf in sorted(set(exported) - set(stored))[:FINDINGS_PER_STEP]:
        now = await moment.row_hash(leaf.coupon_id, leaf.seq)
        if now != leaf.hash:
            findings.append(
                Finding(
                    FindingKind.CHAIN_RECOMPUTED if now is not None else FindingKind.TAIL_CUT,
                    root.shard,
                    leaf.coupon_id,
                    seq=leaf.seq,
                    last_seq=leaf.seq,
                    root_number=root.number,
                    differences=(Difference("hash", "NULL" if now is None else now.hex(), leaf.hash.hex()),),
                    detail=f"the exported root of {format_utc(root.time_ms)} was signed over another row {leaf.seq}",
                )
            )
    return findings


async def _let_others_work() -> None:
    """Gives other requests a turn, and time when they make use of it: verifying must not slow consumes down much."""
    began = time.monotonic()
    await asyncio.sleep(0)
    if time.monotonic() - began > BUSY_S:
        await asyncio.sleep(PAUSE_S)


class _ChainReader:
    """Reads a range of chains at one moment and audits each."""

    def __init__(self, moment: AuditMoment, shard: int, macs: Macs) -> None:
        self._moment = moment
        self._shard = shard
        self._macs = macs
        self._heads: dict[str, Head] = {}
        # Outbox entries without a row, by chain.
        self._lone: dict[str, list[int]] = {}
        self._chain_id = ""
        self._audit: ChainAudit | None = None
        self._audited: set[str] = set()
        self.anchors: Mapping[str, Sequence[Anchor]] = {}
        self.findings: list[Finding] = []
        self.chains = 0
        self.rows = 0

    @property
    def done(self) -> Progress:
        """What was audited."""
        return Progress(chains=self.chains, rows=self.rows)

    async def read(self, above: str, upto: str) -> str:
        """Audits chains with ids above one; gives the id of the last, or `upto` when the range is done."""
        heads = await self._moment.coupon_heads(above, upto, CHAINS_PER_CHUNK)
        if len(heads) == CHAINS_PER_CHUNK:
            upto = heads[-1].chain_id
        self._heads = {head.chain_id: head for head in (*heads, *await self._moment.batch_heads(above, upto))}
        self.anchors = await self._moment.anchors(above, upto)
        upto = await self._read_rows(above, upto)
        # Chains without any row; a batch may have none.
        known = (
            {head.chain_id for head in self._heads.values() if head.version} | self.anchors.keys() | self._lone.keys()
        )
        for chain_id in sorted(known - self._audited):
            if chain_id <= upto:
                self._begin(chain_id)
                self._end()
        return upto

    async def _read_rows(self, above: str, upto: str) -> str:
        """Audits the chains that have rows; gives the id that was reached."""
        after = RowKey(above, _LAST_SEQ, 0)
        while True:
            page = await self._moment.rows(after, upto, ROWS_PER_PAGE)
            await self._learn_accounts(page)
            is_last = len(page) < ROWS_PER_PAGE
            outbox = await self._outbox(after, RowKey(upto, _LAST_SEQ, 0) if is_last else page[-1].key, page)
            links = await self._links(page, outbox)
            for link in links:
                chain_id = link.row.coupon_id
                if self._audit is not None and self._chain_id != chain_id:
                    self._end()
                    if self.rows >= ROWS_PER_CHUNK:
                        return self._chain_id
                if self._audit is None:
                    self._begin(chain_id)
                self._add(link)
            if is_last:
                self._end()
                return upto
            after = page[-1].key
            await _let_others_work()

    async def _learn_accounts(self, page: Sequence[StoredRow]) -> None:
        """Reads the heads of accounts whose chains begin on a page; most accounts have none."""
        unknown = {stored.row.coupon_id for stored in page} - self._heads.keys()
        users = [user_id for chain_id in unknown if (user_id := account_of(chain_id)) is not None]
        for head in await self._moment.account_heads(users):
            self._heads[head.chain_id] = head

    async def _outbox(
        self, after: RowKey, through: RowKey, page: Sequence[StoredRow]
    ) -> Mapping[tuple[str, int], OutboxEntry]:
        """Outbox entries around a page of rows; notes those that have no row."""
        outbox = await self._moment.outbox(after, through)
        rows = {(stored.row.coupon_id, stored.row.seq) for stored in page} | {(after.coupon_id, after.seq)}
        for chain_id, seq in outbox.keys() - rows:
            self._lone.setdefault(chain_id, []).append(seq)
        return outbox

    async def _links(self, page: Sequence[StoredRow], outbox: Mapping[tuple[str, int], OutboxEntry]) -> Sequence[Link]:
        """The rows with what other records say about them."""
        rows = [(stored, is_intact(stored.row, self._macs)) for stored in page]
        ids = {
            stored.row.transaction_id
            for stored, intact in rows
            if stored.row.transaction_id and (stored.row.kind == JournalKind.CONSUMED or not intact)
        }
        requests = {stored.row.origin.request_id for stored, intact in rows if not intact}
        spends = {spend.transaction_id: spend for spend in await self._moment.spends(sorted(ids))}
        of_requests = await self._moment.spends_of_requests(sorted(requests))
        links = []
        for stored, intact in rows:
            row = stored.row
            named = [spends[row.transaction_id]] if row.transaction_id in spends else []
            if not intact:
                named += [
                    spend
                    for spend in of_requests
                    if spend.request_id == row.origin.request_id and spend.coupon_id == row.coupon_id
                ]
            links.append(Link(row, stored.month, intact, named, outbox.get((row.coupon_id, row.seq))))
        return links

    def _begin(self, chain_id: str) -> None:
        self._chain_id = chain_id
        self._audited.add(chain_id)
        anchors = self.anchors.get(chain_id, ())
        self._audit = ChainAudit(self._shard, chain_id, self._heads.get(chain_id), anchors, self._macs)

    def _add(self, link: Link) -> None:
        assert self._audit is not None
        self.findings += self._audit.add(link)

    def _end(self) -> None:
        if self._audit is not None:
            self.findings += self._audit.finish(self._lone.pop(self._chain_id, ()))
            self.chains += 1
            self.rows += self._audit.rows
            self._audit = None
