"""Owns the one domain error type, which is raised anywhere and mapped to a gRPC status in one place."""

from __future__ import annotations

from collections.abc import Sequence


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


class InvalidFields(MeshError):
    """A request whose fields break their rules; becomes VALIDATION_FAILED with a BadRequest detail.

    Attributes:
        violations: (field path, problem) pairs, at least one.
    """

    def __init__(self, violations: Sequence[tuple[str, str]], /) -> None:
        if not violations:
            raise ValueError("InvalidFields needs at least one violation")
        field, problem = violations[0]
        super().__init__("VALIDATION_FAILED", field=field, problem=problem)
        self.violations = tuple(violations)
