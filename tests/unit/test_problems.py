from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet

from buf.validate import validate_pb2
from meshkit.errors import Violation
from meshkit.problems import PATTERNS, violation

CONTRACT = Path(__file__).resolve().parents[2] / "gen" / "couponmesh.binpb"


def patterns_of(message: DescriptorProto) -> set[str]:
    found = {pattern for nested in message.nested_type for pattern in patterns_of(nested)}
    for field in message.field:
        rules = field.options.Extensions[validate_pb2.field]
        found |= {rules.string.pattern, rules.repeated.items.string.pattern}
    return found - {""}


def test_every_pattern_of_the_contract_is_put_into_words() -> None:
    files = FileDescriptorSet.FromString(CONTRACT.read_bytes()).file
    ours = [file for file in files if file.package.startswith("couponmesh.")]
    found = {pattern for file in ours for message in file.message_type for pattern in patterns_of(message)}
    assert len(found) > 5
    assert found <= PATTERNS.keys()


def test_a_rule_is_told_with_its_bound() -> None:
    assert violation("name", "string.max_len", 128, "ignored") == Violation(
        "name", "must have at most 128 characters", "最多 128 个字符", "STRING_MAX_LEN"
    )
    assert violation("name", "string.min_len", 1, "ignored").problem == "must not be empty"


def test_a_rule_without_words_keeps_its_english_and_has_some_chinese() -> None:
    told = violation(
        "page_size", "int32.gte_lte", 0, "must be greater than or equal to 0 and less than or equal to 100"
    )
    assert told.problem == "must be greater than or equal to 0 and less than or equal to 100"
    assert told.problem_zh == "取值不在允许范围内"
    assert told.reason == "INT32_GTE_LTE"


def test_a_regular_expression_is_never_shown() -> None:
    assert (
        violation("name", "string.pattern", "^[a-z]+$", "does not match regex pattern").problem == "has the wrong form"
    )
