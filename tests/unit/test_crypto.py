"""Keyed hashes and sealed fields: bound to purpose, row and key, through a rotation, with no secret in sight."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.crypto import Keyring, SealBroken, bind

OLD, NEW = "11" * 32, "22" * 32
ROW = bind("code_index", 5, "0000000000000000123", "ciphertext")


def test_a_sealed_value_opens_for_its_row_only() -> None:
    keys = Keyring.parse(f"k1:{OLD}")
    sealed = keys.seal(b"7XK9B2T4", ROW)
    assert keys.open(sealed, ROW) == b"7XK9B2T4"
    with pytest.raises(SealBroken):
        keys.open(sealed, bind("code_index", 5, "0000000000000000124", "ciphertext"))


def test_the_same_value_sealed_twice_looks_different() -> None:
    keys = Keyring.parse(f"k1:{OLD}")
    assert keys.seal(b"same", ROW) != keys.seal(b"same", ROW)


def test_each_altered_or_missing_byte_is_noticed() -> None:
    keys = Keyring.parse(f"k1:{OLD},k2:{NEW}")
    sealed = keys.seal(b"7XK9B2T4", ROW)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(SealBroken):
            keys.open(bytes(altered), ROW)
        with pytest.raises(SealBroken):
            keys.open(sealed[:position], ROW)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_broken_seals(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        Keyring.parse(f"k1:{OLD}").open(sealed, ROW)


def test_a_rotation_keeps_old_values_readable_until_the_old_key_is_dropped() -> None:
    before = Keyring.parse(f"k1:{OLD}")
    during = Keyring.parse(f"k2:{NEW},k1:{OLD}")
    after = Keyring.parse(f"k2:{NEW}")
    old = before.seal(b"secret", ROW)
    assert during.open(old, ROW) == b"secret"
    again = during.seal(during.open(old, ROW), ROW)
    assert after.open(again, ROW) == b"secret"
    with pytest.raises(SealBroken):
        after.open(old, ROW)
    assert during.mac("code", b"x") == after.mac("code", b"x")
    assert during.macs("code", b"x") == [after.mac("code", b"x"), before.mac("code", b"x")]
    assert (during.primary, during.key_ids) == ("k2", ("k2", "k1"))


def test_a_key_id_with_another_secret_opens_nothing() -> None:
    sealed = Keyring.parse(f"k1:{OLD}").seal(b"secret", ROW)
    with pytest.raises(SealBroken):
        Keyring.parse(f"k1:{NEW}").open(sealed, ROW)


def test_hashes_differ_by_purpose_data_and_key() -> None:
    keys = Keyring.parse(f"k1:{OLD},k2:{NEW}")
    hashes = [mac for purpose in ("code", "phone") for data in (b"a", b"b") for _, mac in keys.macs(purpose, data)]
    assert len(set(hashes)) == 8
    assert {len(mac) for mac in hashes} == {32}


def test_a_hash_is_verified_under_the_key_it_names() -> None:
    keys = Keyring.parse(f"k1:{OLD},k2:{NEW}")
    key_id, mac = keys.mac("code", b"x")
    assert keys.verify("code", b"x", key_id, mac)
    assert not keys.verify("code", b"y", key_id, mac)
    assert not keys.verify("phone", b"x", key_id, mac)
    assert not keys.verify("code", b"x", "k2", mac)
    assert not keys.verify("code", b"x", "gone", mac)


def test_stored_hashes_stay_what_they_are() -> None:
    assert Keyring.parse(f"k1:{OLD}").mac("code", b"7XK9B2T4")[1].hex() == (
        "16d8695f28b8d2d9d59b3bb22f86cc09a06c77be83f07ef4363607b4b36ef68d"
    )


@given(
    st.lists(st.one_of(st.text(), st.integers()), max_size=4), st.lists(st.one_of(st.text(), st.integers()), max_size=4)
)
def test_no_two_rows_are_bound_alike(left: list[str | int], right: list[str | int]) -> None:
    typed_left = [(type(part), part) for part in left]
    typed_right = [(type(part), part) for part in right]
    assert (bind(*left) == bind(*right)) == (typed_left == typed_right)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no id"),
        (OLD, "no id|hexadecimal"),
        ("k1:zz" + OLD, "not hexadecimal"),
        ("k1:aabb", "fewer than 32"),
        (f"k1:{OLD},k1:{NEW}", "twice"),
        (f"k 1:{OLD}", "key id"),
        (f":{OLD}", "key id"),
        (f"k1:{OLD},", "no id"),
    ],
)
def test_a_malformed_keyring_is_refused_without_quoting_a_secret(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        Keyring.parse(text)
    assert OLD not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_no_secret_shows_in_a_repr_and_none_is_pickled() -> None:
    keys = Keyring.parse(f"k1:{OLD}")
    assert repr(keys) == "Keyring(primary='k1', ids=['k1'])"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(keys)


def test_a_keyring_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Keyring({})
