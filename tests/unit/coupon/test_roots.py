"""Merkle roots, what is signed of them, and the files they are exported to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.adapters.root_files import RootFiles
from coupon_svc.domain.roots import NO_ROOT, Leaf, Root, SignedRoot, merkle_root
from meshkit.signing import SigningKeys

KEYS = SigningKeys({"r2": b"\2" * 32, "r1": b"\1" * 32})
ids = st.integers(0, 10**18).map(lambda number: f"{number:019d}")
leaves = st.lists(
    st.builds(Leaf, ids, st.integers(1, 99), st.binary(min_size=32, max_size=32)),
    max_size=20,
    unique_by=lambda leaf: leaf.coupon_id,
)


def reference(encoded: list[bytes]) -> bytes:
    """RFC 6962 §2.1 to the letter."""
    if len(encoded) == 1:
        return hashlib.sha256(b"\0" + encoded[0]).digest()
    split = 1
    while split * 2 < len(encoded):
        split *= 2
    return hashlib.sha256(b"\1" + reference(encoded[:split]) + reference(encoded[split:])).digest()


@given(leaves)
def test_the_root_is_that_of_rfc_6962_over_the_leaves_in_order(given_leaves: list[Leaf]) -> None:
    expected = reference([leaf.encoded() for leaf in sorted(given_leaves)]) if given_leaves else NO_ROOT
    assert merkle_root(given_leaves) == merkle_root(reversed(given_leaves)) == expected


@given(leaves, st.data())
def test_any_changed_leaf_changes_the_root(given_leaves: list[Leaf], data: st.DataObject) -> None:
    for leaf in given_leaves[:1]:
        changed = Leaf(leaf.coupon_id, leaf.seq + data.draw(st.integers(1, 5)), leaf.hash)
        assert merkle_root([changed, *given_leaves[1:]]) != merkle_root(given_leaves)


def signed(given_leaves: list[Leaf], after: Root | None = None) -> SignedRoot:
    root = Root.over(5, given_leaves, after=after, time_ms=1_790_000_000_123)
    return SignedRoot(root, *KEYS.sign(root.statement()))


LEAVES = [Leaf("0" * 18 + "5", 3, b"h" * 32), Leaf("0" * 15 + "1285", 1, b"i" * 32)]


def test_a_signature_holds_for_its_root_alone() -> None:
    first = signed(LEAVES)
    second = signed(LEAVES, after=first.root)
    assert KEYS.verify(first.root.statement(), first.key_id, first.signature)
    assert not KEYS.verify(second.root.statement(), first.key_id, first.signature)
    assert not KEYS.verify(first.root.statement(), "r1", first.signature)
    assert not KEYS.verify(first.root.statement(), "r9", first.signature)
    assert (second.root.number, second.root.previous) == (2, first.root.digest())


def test_a_root_is_read_back_from_what_it_said_and_from_nothing_else() -> None:
    root = signed(LEAVES).root
    assert Root.from_dict(root.to_dict()) == root
    for altered in ({**root.to_dict(), "time": "2020-01-01T00:00:00Z"}, {**root.to_dict(), "more": 1}, {}):
        with pytest.raises(ValueError, match="root"):
            Root.from_dict(altered)


def test_an_exported_root_is_read_back_and_never_overwritten(tmp_path: Path) -> None:
    files = RootFiles(tmp_path / "roots", KEYS.public_bytes)
    first = signed(LEAVES)
    assert (files.last_number(5), files.read(5, 1)) == (0, None)
    files.write(first, LEAVES)
    files.write(signed(LEAVES[:1]), LEAVES[:1])
    assert files.read(5, 1) == (first, LEAVES)
    files.write(signed(LEAVES, after=first.root), LEAVES)
    assert (files.last_number(5), files.last_number(6)) == (2, 0)
    (tmp_path / "roots" / "005" / "00000001.json").write_text("[]")
    with pytest.raises(ValueError, match="no exported root"):
        files.read(5, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no id"),
        ("r1:zz", "not hexadecimal"),
        ("r1:00", "does not have 32 bytes"),
        ("r1:" + "00" * 32 + ",r1:" + "01" * 32, "no id of its own"),
        ("a key:" + "00" * 32, "a key id has"),
    ],
)
def test_signing_keys_of_another_form_are_refused_without_a_word_of_them(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        SigningKeys.parse(text)
    assert "0000" not in str(error.value)
