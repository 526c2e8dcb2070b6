"""Owns the one domain error type, which is raised anywhere and mapped to a gRPC status in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class MeshError(Exception):
    """A refusal with a reason that the contract documents.

    Its text is the reason alone, so that a metadata value never reaches a log through it.

    Attributes:
        reason: Name of the enum value without its `ERROR_REASON_` prefix, such as "COUPON_BUSY".
        metadata: Values that fill the {placeholders} of the reason's messages and travel in `ErrorInfo.metadata`.
    """

    def __init__(self, reason: str, /, **metadata: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.metadata = metadata


class Violation(NamedTuple):
    """One field that breaks its rules.

    Attributes:
        field: Its path.
        problem: What is wrong with it, in English; continues "the field …".
        problem_zh: The same in Chinese; empty where there are no words for it.
        reason: Which rule it is, such as STRING_MIN_LEN, or empty.
    """

    field: str
    problem: str
    problem_zh: str = ""
    reason: str = ""


class InvalidFields(MeshError):
    """A request whose fields break their rules; becomes VALIDATION_FAILED with a BadRequest detail.

    Attributes:
        violations: At least one.
    """

    def __init__(self, violations: Sequence[Violation | tuple[str, str]], /) -> None:
        if not violations:
            raise ValueError("InvalidFields needs at least one violation")
        self.violations = tuple(Violation(*each) for each in violations)
        first = self.violations[0]
        super().__init__("VALIDATION_FAILED", field=first.field, problem=first.problem)
