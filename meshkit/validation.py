"""Owns the reading of requests: bytes to message, and the rules that stand beside the fields of the contract."""

from __future__ import annotations

from typing import Any

import protovalidate
from google.protobuf.message import DecodeError, Message

from meshkit import problems
from meshkit.errors import InvalidFields, MeshError, Violation

# Stands where a path would, when the request as a whole is at fault.
WHOLE_REQUEST = "(request)"


class Requests:
    """Parses and checks requests; one instance keeps the compiled rules of every message it has met."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def compile(self, message_class: type[Message]) -> None:
        """Compiles the rules of a message type before its first request.

        Raises:
            protovalidate.CompilationError: A rule of the contract is not valid.
        """
        self._validator.collect_violations(message_class())

    def check(self, request: Message) -> None:
        """Refuses a request that breaks a rule.

        Raises:
            InvalidFields: Names every field that breaks a rule, by its path; values are not part of it.
        """
        violations = self._validator.collect_violations(request)
        if violations:
            raise InvalidFields([_told(violation) for violation in violations])


def parse(message_class: type[Message], raw: bytes) -> Message:
    """Reads a message from the wire.

    Raises:
        MeshError: INVALID_UTF8 for text that is not UTF-8, VALIDATION_FAILED for bytes that are not the message.
    """
    try:
        return message_class.FromString(raw)
    except DecodeError as error:
        if "UTF-8" in str(error):
            raise MeshError("INVALID_UTF8") from error
        raise InvalidFields([(WHOLE_REQUEST, f"is not a {message_class.DESCRIPTOR.full_name}")]) from error


def _told(violation: protovalidate.Violation) -> Violation:
    found = violation.proto
    return problems.violation(_path(found.field), found.rule_id, violation.rule_value, found.message)


def _path(field: Any) -> str:
    """A field path as a caller writes it, such as `assessments[1].client.ip`."""
    if field is None:
        return WHOLE_REQUEST
    steps = []
    for element in field.elements:
        subscript = element.subscript
        steps.append(element.field_name if subscript is None else f"{element.field_name}[{subscript.value}]")
    return ".".join(steps)
