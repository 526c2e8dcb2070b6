"""Signed roots: what is recomputed with the audit key, and what is rewritten together with the roots, is found."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coupon_svc.adapters.mysql_audit import MysqlAuditStore
from coupon_svc.adapters.root_files import RootFiles
from coupon_svc.app.anchor_roots import AnchorRoots
from coupon_svc.domain.roots import Leaf, Root, SignedRoot, merkle_root
from meshkit.mysql import Databases
from meshkit.signing import SigningKeys, is_signed
from tests.conftest import StartStack
from tests.integration.coupon.audits import Verdict, recompute, spent_card, verify
from tests.integration.coupon.world import OwnedCoupon, World, eventually


class Anchors:
    """Makes roots as the service does, with the stack's keys and into the folder that the service reads."""

    def __init__(self, world: World, databases: Databases) -> None:
        secret = (world.stack.mesh / "secrets" / "audit_signing_keys").read_text().strip()
        self.keys = SigningKeys.parse(secret)
        self.folder = world.stack.local.layout.audit_roots
        self.files = RootFiles(self.folder, self.keys.public_bytes)
        self.store = MysqlAuditStore(databases, timeout_s=10.0)
        self.leaves = 0

    def anchor(self, *, archive: bool = True) -> AnchorRoots:
        return AnchorRoots(
            self.store,
            self.keys.sign,
            lambda: time.time_ns() // 1_000_000,
            archive=self.files if archive else None,
            every_s=3_600.0,
            observe=self._observe,
        )

    def _observe(self, leaves: int) -> None:
        self.leaves += leaves

    def exported(self, shard: int) -> list[Path]:
        return sorted((self.folder / f"{shard:03d}").glob("*.json"))


@pytest.fixture
async def anchors(world: World) -> AsyncIterator[Anchors]:
    async with Databases.open(world.stack.shard_map("coupon"), pool_size=2) as databases:
        yield Anchors(world, databases)


async def anchored_card(world: World, anchors: Anchors, shard: int) -> tuple[OwnedCoupon, SignedRoot]:
    """A card of five rows whose head is in a signed root."""
    card = await spent_card(world, shard=shard)
    signed = (await anchors.anchor().anchor(shard))[-1]
    return card, signed


def about(verdict: Verdict, card: OwnedCoupon) -> list[tuple[str, int, int, int]]:
    return [
        (kind, each.seq, each.last_seq, each.root_number)
        for kind, each in zip(verdict.kinds, verdict.findings, strict=True)
        if each.coupon_id in {card.coupon_id, ""}
    ]


def rewrite_spend(world: World, card: OwnedCoupon, **changes: Any) -> None:
    """The transaction of the third row, made to agree with a recomputed chain."""
    row = world.books.journal(card.coupon_id)[2]
    for column, value in changes.items():
        world.books.change(
            card.shard,
            f"UPDATE coupon_transaction SET {column} = %s WHERE shard = %s AND transaction_id = %s",
            value,
            card.shard,
            row.transaction_id,
        )


async def test_a_root_is_over_what_changed_since_the_one_before_and_names_it(world: World, anchors: Anchors) -> None:
    shard = 40
    card, first = await anchored_card(world, anchors, shard)
    assert await anchors.anchor().anchor(shard) == []
    await world.one.consume(card, "1.00", world.cashier())
    (second,) = await anchors.anchor().anchor(shard)
    assert (second.root.number, second.root.leaf_count) == (first.root.number + 1, 1)
    assert second.root.previous == first.root.digest()
    (leaf,) = await anchors.store.leaves(shard, second.root.number)
    row = world.books.journal(card.coupon_id)[-1]
    assert leaf == Leaf(card.coupon_id, 6, row.hash)
    verdict = await verify(world.one, shard=shard)
    assert about(verdict, card) == []
    assert verdict.total("roots") == second.root.number
    assert (await verify(world.one, coupon_id=card.coupon_id)).total("roots") == 1


async def test_an_exported_root_can_be_verified_with_its_file_and_the_public_key_alone(
    world: World, anchors: Anchors
) -> None:
    _, signed = await anchored_card(world, anchors, 41)
    document = json.loads(anchors.exported(41)[-1].read_text())
    root = Root.from_dict(document["root"])
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key"]))
    assert root == signed.root
    assert is_signed(root.statement(), public, bytes.fromhex(document["signature"]))
    leaves = [Leaf(coupon_id, seq, bytes.fromhex(text)) for coupon_id, seq, text in document["leaves"]]
    assert merkle_root(leaves) == root.merkle_root
    assert merkle_root(leaves[1:]) != root.merkle_root


async def test_a_recomputed_chain_is_found_against_the_root_although_every_record_agrees(
    world: World, anchors: Anchors
) -> None:
    card, signed = await anchored_card(world, anchors, 42)
    recompute(world.books, card.coupon_id, from_seq=3, merchant_id="mine")
    rewrite_spend(world, card, merchant_id="mine")
    for scope in ({"coupon_id": card.coupon_id}, {"user_id": card.user_id}, {"shard": 42}):
        verdict = await verify(world.one, **scope)
        # Only heads are anchored: the recomputed row is at or before this one.
        assert about(verdict, card) == [("CHAIN_RECOMPUTED", 1, 5, signed.root.number)], scope


async def test_between_two_roots_the_recomputed_rows_are_narrowed_down(world: World, anchors: Anchors) -> None:
    card, _ = await anchored_card(world, anchors, 43)
    await world.one.consume(card, "1.00", world.cashier())
    await world.one.consume(card, "1.00", world.cashier())
    (second,) = await anchors.anchor().anchor(43)
    recompute(world.books, card.coupon_id, from_seq=7, merchant_id="mine")
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert ("CHAIN_RECOMPUTED", 6, 7, second.root.number) in about(verdict, card)


async def test_a_tail_that_was_cut_off_with_everything_that_told_of_it_is_found_against_the_root(
    world: World, anchors: Anchors
) -> None:
    card, signed = await anchored_card(world, anchors, 44)
    third = world.books.journal(card.coupon_id)[2]
    row = (card.shard, card.coupon_id)
    cut = world.books.journal(card.coupon_id)[3:]
    for each in cut:
        world.books.change(
            44, "DELETE FROM coupon_journal WHERE shard = %s AND coupon_id = %s AND seq = %s", *row, each.seq
        )
        world.books.change(44, "DELETE FROM outbox WHERE shard = %s AND coupon_id = %s AND seq = %s", *row, each.seq)
        world.books.change(
            44, "DELETE FROM coupon_transaction WHERE shard = 44 AND transaction_id = %s", each.transaction_id
        )
    world.books.change(
        44,
        "UPDATE coupon_info SET version = 3, last_hash = %s, balance = 97.00 WHERE shard = %s AND coupon_id = %s",
        third.hash,
        *row,
    )
    assert about(await verify(world.one, shard=44), card) == [("TAIL_CUT", 4, 5, signed.root.number)]


async def test_a_coupon_that_was_removed_without_a_trace_is_found_against_the_root(
    world: World, anchors: Anchors
) -> None:
    card, _ = await anchored_card(world, anchors, 45)
    with world.books.transaction(45) as tx:
        for table in ("coupon_journal", "coupon_info", "outbox", "coupon_transaction"):
            tx.run(f"DELETE FROM {table} WHERE shard = 45 AND coupon_id = %s", card.coupon_id)
        tx.commit()
    assert [each[0] for each in about(await verify(world.one, shard=45), card)] == ["CHAIN_UNMATCHED"]


async def test_leaves_that_were_rewritten_with_the_chain_are_found_against_the_exported_root(
    world: World, anchors: Anchors
) -> None:
    card, signed = await anchored_card(world, anchors, 46)
    rows = recompute(world.books, card.coupon_id, from_seq=3, merchant_id="mine")
    rewrite_spend(world, card, merchant_id="mine")
    world.books.change(
        46, "UPDATE audit_leaf SET hash = %s WHERE shard = 46 AND coupon_id = %s", rows[-1].hash, card.coupon_id
    )
    verdict = await verify(world.one, shard=46)
    number = signed.root.number
    assert about(verdict, card) == [("ROOT_INVALID", 0, 0, number), ("CHAIN_RECOMPUTED", 5, 5, number)]


async def test_a_root_made_anew_over_the_rewritten_leaves_cannot_be_signed(world: World, anchors: Anchors) -> None:
    card, signed = await anchored_card(world, anchors, 47)
    rows = recompute(world.books, card.coupon_id, from_seq=3, merchant_id="mine")
    world.books.change(
        47, "UPDATE audit_leaf SET hash = %s WHERE shard = 47 AND coupon_id = %s", rows[-1].hash, card.coupon_id
    )
    forged = merkle_root(await anchors.store.leaves(47, signed.root.number))
    world.books.change(
        47, "UPDATE audit_root SET merkle_root = %s WHERE shard = 47 AND number = %s", forged, signed.root.number
    )
    verdict = (await verify(world.one, shard=47)).findings
    details = [each.detail for each in verdict if each.root_number == signed.root.number and not each.coupon_id]
    assert "its signature does not hold" in details
    assert "it is not the root that was exported" in details


async def test_roots_that_were_deleted_are_found_by_what_was_exported(world: World, anchors: Anchors) -> None:
    card, signed = await anchored_card(world, anchors, 48)
    world.books.change(48, "DELETE FROM audit_root WHERE shard = 48 AND number = %s", signed.root.number)
    world.books.change(48, "DELETE FROM audit_leaf WHERE shard = 48 AND coupon_id = %s", card.coupon_id)
    number = signed.root.number
    assert about(await verify(world.one, shard=48), card) == [("ROOT_INVALID", 0, 0, number)]


async def test_a_removed_leaf_and_an_altered_export_are_found(world: World, anchors: Anchors) -> None:
    card, signed = await anchored_card(world, anchors, 49)
    world.books.change(49, "DELETE FROM audit_leaf WHERE shard = 49 AND coupon_id = %s", card.coupon_id)
    (finding, *_) = [each for each in (await verify(world.one, shard=49)).findings if each.root_number]
    assert f"of {signed.root.leaf_count}" in finding.detail
    path = anchors.exported(49)[-1]
    text = path.read_text()
    path.write_text(text.replace(f'"{card.coupon_id}", 5', f'"{card.coupon_id}", 4'))
    details = [each.detail for each in (await verify(world.one, shard=49)).findings if each.root_number]
    assert "the leaves of the exported root are not those it was signed over" in details
    path.write_text("{}")
    details = [each.detail for each in (await verify(world.one, shard=49)).findings if each.root_number]
    assert any(detail.startswith("the exported root cannot be read") for detail in details)


async def test_two_processes_that_make_roots_at_once_make_each_number_once(world: World, anchors: Anchors) -> None:
    card, first = await anchored_card(world, anchors, 50)
    await world.one.consume(card, "1.00", world.cashier())
    made = await asyncio.gather(*(anchors.anchor().anchor(50) for _ in range(4)))
    assert [signed.root.number for each in made for signed in each] == [first.root.number + 1]
    assert about(await verify(world.one, shard=50), card) == []


async def test_a_root_whose_maker_died_before_the_export_is_exported_later(world: World, anchors: Anchors) -> None:
    await spent_card(world, shard=51)
    (signed,) = await anchors.anchor(archive=False).anchor(51)
    before = len(anchors.exported(51))
    await anchors.anchor().export(51)
    assert len(anchors.exported(51)) == before + 1
    assert anchors.exported(51)[-1].stem == f"{signed.root.number:08d}"


async def test_no_alarm_is_raised_while_roots_are_made_and_coupons_consumed(world: World, anchors: Anchors) -> None:
    shard = 52
    cards = [await spent_card(world, shard=shard) for _ in range(3)]
    till = world.cashier()
    for _ in range(10):
        _, _, verdict = await asyncio.gather(
            asyncio.gather(*(world.one.consume(card, "0.01", till) for card in cards)),
            anchors.anchor().anchor(shard),
            verify(world.two, shard=shard),
        )
        assert [each for card in cards for each in about(verdict, card)] == []
    assert (await verify(world.one, shard=shard)).total("roots") >= 9


async def test_the_service_makes_and_exports_roots_by_itself(own_stack: StartStack) -> None:
    stack = await asyncio.to_thread(own_stack, replicas={"coupon": 2}, settings={"COUPON_AUDIT_ROOT_EVERY_S": "1"})
    shop = World(stack)
    try:
        card = await spent_card(shop, shard=53)
        folder = stack.local.layout.audit_roots / "053"

        def anchored() -> bool:
            rows = shop.books.rows(53, "SELECT seq FROM audit_leaf WHERE coupon_id = %s ORDER BY seq", card.coupon_id)
            return rows[-1:] == [(5,)] and any(folder.glob("*.json"))

        await eventually(anchored, timeout_s=30.0)
        assert (await verify(shop.two, shard=53)).findings == []
    finally:
        await shop.close()
