from string import Formatter

import grpc
import pytest
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2

from couponmesh.coupon.v1 import error_reason_pb2 as coupon_errors
from couponmesh.risk.v1 import error_reason_pb2 as risk_errors
from meshkit.error_table import ErrorTable, WireStatus
from meshkit.errors import InvalidFields, MeshError, Violation

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
# Trailers above 8 KiB are dropped by peers; base64 adds a third to the status, which also travels as a message.
LARGEST_STATUS_BYTES = 5_500


@pytest.fixture
def table() -> ErrorTable:
    return ErrorTable([coupon_errors.ErrorReason.DESCRIPTOR, risk_errors.ErrorReason.DESCRIPTOR])


def details(wire: WireStatus) -> list[object]:
    """The details of a status, unpacked, in order."""
    status = status_pb2.Status.FromString(wire.details)
    unpacked = []
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])
        message = kind()
        assert packed.Unpack(message)
        unpacked.append(message)
    return unpacked


def enum_like(name: str, value: str) -> EnumDescriptor:
    """An ErrorReason enum of a made-up package, whose values have no options."""
    file = FileDescriptorProto(name=f"{name}.proto", package=name, syntax="proto3")
    enum = file.enum_type.add(name="ErrorReason")
    enum.value.add(name="ERROR_REASON_UNSPECIFIED", number=0)
    enum.value.add(name=value, number=1)
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindEnumTypeByName(f"{name}.ErrorReason")


def test_an_error_carries_its_reason_both_languages_and_when_to_retry_in_that_order(table: ErrorTable) -> None:
    info, chinese, english, retry = details(table.status(MeshError("OVERLOADED"), TRACE_ID))

    assert info == error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="couponmesh")
    assert chinese == error_details_pb2.LocalizedMessage(locale="zh-CN", message="系统繁忙，请稍后再试。")
    assert english == error_details_pb2.LocalizedMessage(locale="en", message="The service is busy. Please try again.")
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 200


def test_metadata_fills_the_messages_and_travels_with_the_reason(table: ErrorTable) -> None:
    wire = table.status(MeshError("BATCH_NOT_FOUND", batch_id="0123"), TRACE_ID)

    assert wire.code is grpc.StatusCode.NOT_FOUND
    assert wire.message == "There is no batch 0123."
    info, chinese, english = details(wire)
    assert info == error_details_pb2.ErrorInfo(
        reason="BATCH_NOT_FOUND", domain="couponmesh", metadata={"batch_id": "0123"}
    )
    assert chinese == error_details_pb2.LocalizedMessage(locale="zh-CN", message="批次 0123 不存在。")
    assert english == error_details_pb2.LocalizedMessage(locale="en", message="There is no batch 0123.")


def test_every_invalid_field_is_named(table: ErrorTable) -> None:
    wire = table.status(InvalidFields([("amount", "value is required"), ("client.ip", "is no address")]), TRACE_ID)

    assert wire.code is grpc.StatusCode.INVALID_ARGUMENT
    bad_request = details(wire)[-1]
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    assert [(each.field, each.description) for each in bad_request.field_violations] == [
        ("amount", "value is required"),
        ("client.ip", "is no address"),
    ]


def test_a_broken_rule_is_told_in_both_languages_and_by_its_name(table: ErrorTable) -> None:
    broken = [
        Violation("name", "must not be empty", "不能为空", "STRING_MIN_LEN"),
        Violation("client.ip", "is no address"),
    ]
    info, chinese, english, bad_request = details(table.status(InvalidFields(broken), TRACE_ID))

    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert info.metadata == {"field": "name", "problem": "must not be empty"}
    assert isinstance(chinese, error_details_pb2.LocalizedMessage)
    assert chinese.message == "请求参数不合法：name：不能为空。"
    assert isinstance(english, error_details_pb2.LocalizedMessage)
    assert english.message == "The request is not valid: name: must not be empty."
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    first, second = bad_request.field_violations
    assert (first.reason, first.localized_message.locale) == ("STRING_MIN_LEN", "zh-CN")
    assert first.localized_message.message == "不能为空"
    assert (second.reason, second.HasField("localized_message")) == ("", False)


def test_invalid_fields_without_a_field_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="at least one"):
        InvalidFields([])


def test_a_status_without_metadata_is_serialised_once(table: ErrorTable) -> None:
    first = table.status(MeshError("OVERLOADED"), TRACE_ID)
    assert table.status(MeshError("OVERLOADED"), "0" * 32) is first


def test_an_internal_error_names_the_trace(table: ErrorTable) -> None:
    info = details(table.status(MeshError("INTERNAL"), TRACE_ID))[0]
    assert info == error_details_pb2.ErrorInfo(reason="INTERNAL", domain="couponmesh", metadata={"trace_id": TRACE_ID})


def test_a_reason_that_the_contract_lacks_becomes_internal(table: ErrorTable) -> None:
    wire = table.status(MeshError("NO_SUCH_REASON", secret="s"), TRACE_ID)
    assert wire.code is grpc.StatusCode.INTERNAL
    assert b"NO_SUCH_REASON" not in wire.details


def test_metadata_that_is_missing_does_not_make_the_mapping_fail(table: ErrorTable) -> None:
    assert table.status(MeshError("BATCH_NOT_FOUND", other="1"), TRACE_ID).message == "There is no batch ?."


def test_braces_in_metadata_are_taken_as_they_are(table: ErrorTable) -> None:
    assert table.status(MeshError("UNKNOWN_FIELD", field="{x}"), TRACE_ID).message == "Unknown field: {x}."


def test_the_largest_status_fits_into_trailers(table: ErrorTable) -> None:
    flood = "长" * 10_000
    violations = table.status(
        InvalidFields([Violation(flood, flood, "长" * 30, "REPEATED_MIN_ITEMS")] * 1_000), TRACE_ID
    )
    metadata = table.status(MeshError("UNKNOWN_FIELD", **{f"name{each}": flood for each in range(1_000)}), TRACE_ID)
    assert len(violations.details) < LARGEST_STATUS_BYTES
    assert len(metadata.details) < LARGEST_STATUS_BYTES


def test_the_text_of_an_error_is_its_reason_alone() -> None:
    assert str(MeshError("COUPON_BUSY", user_id="42")) == "COUPON_BUSY"


def test_a_reason_without_specification_is_refused_when_the_table_is_built() -> None:
    with pytest.raises(ValueError, match=r"bare\.ErrorReason\.ERROR_REASON_BARE needs the option error"):
        ErrorTable([enum_like("bare", "ERROR_REASON_BARE")])


def test_every_reason_of_the_contract_states_both_messages_with_the_same_placeholders(table: ErrorTable) -> None:
    placeholders = {
        reason: [
            {name for _, name, _, _ in Formatter().parse(text) if name}
            for text in (table.specification(reason).en, table.specification(reason).zh)
        ]
        for reason in table.reasons
    }
    assert {reason: pair for reason, pair in placeholders.items() if pair[0] != pair[1]} == {}
