"""Native coupon codes: a bijection that looks random, and what its check symbol catches."""

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.codes import ALPHABET, CodeFormat, display, normalise
from meshkit.errors import MeshError

FORMAT = CodeFormat(bytes(range(32)))
LENGTHS = [8, 12]
EIGHTS = ["SZ91-WZFM", "7SP4-Z7B5", "5N4V-47HY"]
TWELVES = ["348R-NF4T-MH87", "HQH9-C2NE-V3MS", "5RWF-S39E-9HAS"]


def is_mistyped(text: str) -> bool:
    try:
        FORMAT.parse(text)
    except MeshError as error:
        return error.reason == "CODE_MISTYPED"
    return False


def codes(length: int, count: int) -> list[str]:
    draw = random.Random(length)
    return [
        normalise(FORMAT.encode(draw.randrange(128), draw.randrange(FORMAT.counter_space(length)), length))
        for _ in range(count)
    ]


@given(st.sampled_from(LENGTHS), st.integers(0, 127), st.data())
def test_each_code_gives_its_shard_and_counter_back(length: int, shard: int, data: st.DataObject) -> None:
    counter = data.draw(st.integers(0, FORMAT.counter_space(length) - 1))
    code = FORMAT.encode(shard, counter, length)
    parsed = FORMAT.parse(code)
    assert parsed.shard == shard
    assert display(parsed.body) == code
    assert FORMAT.counter_of(code) == counter


@given(st.sampled_from(LENGTHS), st.integers(0, 127), st.data())
def test_each_body_of_bits_is_the_code_of_exactly_one_counter(length: int, shard: int, data: st.DataObject) -> None:
    body = data.draw(st.integers(0, FORMAT.counter_space(length) - 1))
    counter = FORMAT._permute(shard, body, length, inverse=True)
    assert 0 <= counter < FORMAT.counter_space(length)
    assert FORMAT._permute(shard, counter, length) == body


def test_the_first_codes_of_two_shards_are_all_different_and_share_no_start() -> None:
    made = [FORMAT.encode(shard, counter, 8) for shard in (0, 1) for counter in range(3000)]
    assert len(set(made)) == len(made)
    starts = Counter(code[0] for code in made)
    assert set(starts) == set(ALPHABET)
    # 6,000 draws over 32 symbols: 187 each, and four standard deviations are 54.
    assert max(starts.values()) < 187 + 54
    assert min(starts.values()) > 187 - 54


def test_the_ends_of_the_counters_space_are_codes_and_the_next_is_refused() -> None:
    for length, space in ((8, 1 << 28), (12, 1 << 48)):
        assert FORMAT.counter_space(length) == space
        assert FORMAT.counter_of(FORMAT.encode(127, space - 1, length)) == space - 1
        with pytest.raises(MeshError) as refusal:
            FORMAT.encode(0, space, length)
        assert (refusal.value.reason, refusal.value.metadata) == (
            "CODE_SPACE_EXHAUSTED",
            {"code_length": str(length)},
        )


def test_codes_are_written_in_groups_of_four() -> None:
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}", FORMAT.encode(5, 6, 8))
    assert re.fullmatch("([0-9A-HJKMNP-TV-Z]{4}-){2}[0-9A-HJKMNP-TV-Z]{4}", FORMAT.encode(5, 6, 12))


def test_the_same_key_always_makes_the_same_codes_and_another_key_others() -> None:
    # Codes are printed: these must never change.
    assert [FORMAT.encode(3, counter, 8) for counter in range(3)] == EIGHTS
    assert [FORMAT.encode(3, counter, 12) for counter in range(3)] == TWELVES
    other = CodeFormat(bytes(reversed(range(32))))
    assert not {other.encode(3, counter, 8) for counter in range(100)} & {
        FORMAT.encode(3, counter, 8) for counter in range(100)
    }


@pytest.mark.parametrize("length", LENGTHS)
def test_every_substitution_of_one_symbol_is_caught(length: int) -> None:
    for code in codes(length, 20):
        for position, symbol in itertools.product(range(length), ALPHABET):
            if symbol != code[position]:
                assert is_mistyped(code[:position] + symbol + code[position + 1 :])


@pytest.mark.parametrize("length", LENGTHS)
def test_every_exchange_of_two_different_symbols_is_caught(length: int) -> None:
    for code in codes(length, 100):
        for left, right in itertools.combinations(range(length), 2):
            if code[left] != code[right]:
                typed = list(code)
                typed[left], typed[right] = typed[right], typed[left]
                assert is_mistyped("".join(typed))


@pytest.mark.parametrize("length", LENGTHS)
def test_exactly_one_in_31_substitutions_of_two_symbols_is_missed(length: int) -> None:
    (code,) = codes(length, 1)
    for left, right in itertools.combinations(range(length), 2):
        missed = 0
        for first, second in itertools.product(ALPHABET, ALPHABET):
            if first != code[left] and second != code[right]:
                typed = list(code)
                typed[left], typed[right] = first, second
                missed += not is_mistyped("".join(typed))
        assert missed == 31  # of 31 * 31


def test_one_in_32_of_arbitrary_texts_passes() -> None:
    draw = random.Random(1)
    passed = sum(not is_mistyped("".join(draw.choices(ALPHABET, k=12))) for _ in range(6400))
    # 200 expected; four standard deviations are 56.
    assert abs(passed - 200) < 56


@pytest.mark.parametrize(
    "text", ["", "7", "ABCD-EFG", "ABCD-EFGH-J", "ABCD-EFGH-JKMN-P", "ABCU-EFGH", "ÄBCD-EFGH", "7XK9_B2T4", "券码" * 4]
)
def test_what_is_not_a_native_code_at_all_is_mistyped(text: str) -> None:
    assert is_mistyped(text)


def test_case_hyphens_blanks_and_look_alikes_do_not_matter() -> None:
    code = next(code for code in codes(12, 1000) if "0" in code and "1" in code)
    for typed in (
        code.lower(),
        " ".join(code),
        code.replace("0", "O").replace("1", "l"),
        code.replace("0", "o").replace("1", "I"),
        display(code.replace("1", "L")),
        code.replace("1", "i"),
    ):
        assert FORMAT.parse(typed).body == code


def test_a_foreign_code_is_normalised_and_nothing_else() -> None:
    assert normalise("7XK9-B2T4") == "7XK9B2T4"
    assert normalise(" 7xk9 b2t4 ") == "7XK9B2T4"
    assert normalise("vip-oil_u") == "V1P011_U"
    assert normalise("7XK9B2T4") == normalise(normalise("7XK9B2T4"))


@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(max_size=20))
def test_any_text_is_parsed_or_refused_with_the_one_reason(text: str) -> None:
    assert is_mistyped(text) or FORMAT.parse(text).body == normalise(text)


def test_neither_the_code_nor_the_key_shows_in_a_repr_or_an_error() -> None:
    code = FORMAT.encode(5, 6, 8)
    parsed = FORMAT.parse(code)
    assert parsed.body not in repr(parsed)
    assert bytes(range(32)).hex() not in repr(FORMAT)
    with pytest.raises(MeshError) as refusal:
        FORMAT.parse(code[:-1] + "U")
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize(("shard", "counter", "length"), [(128, 0, 8), (-1, 0, 8), (0, -1, 8), (0, 0, 10)])
def test_arguments_out_of_range_are_a_defect_of_the_caller(shard: int, counter: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"shard|symbols"):
        FORMAT.encode(shard, counter, length)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        CodeFormat(b"short")
