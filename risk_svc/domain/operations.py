"""Owns what risk control is asked about and what it answers: operations and decisions."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from meshkit.errors import MeshError


class Kind(Enum):
    """What an operation is about to do."""

    CONSUME = "consume"
    BAD_CODE = "bad-code"
    LOOKUP = "lookup"


class Verdict(Enum):
    """What may happen."""

    ALLOW = "allow"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation to decide on.

    Attributes:
        operation_id: Names the operation, the same in each retry.
        kind: What is about to happen.
        caller: Client id of the calling system.
        ip: The shopper's address; empty when unknown.
        user_id: The coupon's owner; 0 when unknown.
        merchant_id: Where the coupon is used; empty when unknown.
        coupon_id: The coupon; empty when unknown.
        by_code: Whether the coupon was named by its code.
    """

    operation_id: str
    kind: Kind
    caller: str
    ip: str = ""
    user_id: int = 0
    merchant_id: str = ""
    coupon_id: str = ""
    by_code: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided on one operation.

    Attributes:
        refused_by: Names of the rules that refused, in the order of the rules; empty when allowed.
        replayed: Whether this repeats the decision that an earlier try was given.
    """

    refused_by: tuple[str, ...] = ()
    replayed: bool = False

    @property
    def verdict(self) -> Verdict:
        """REJECT when any rule refused."""
        return Verdict.REJECT if self.refused_by else Verdict.ALLOW


def ensure_distinct(operations: Sequence[Operation]) -> None:
    """Refuses a batch that names one operation twice.

    Raises:
        MeshError: OPERATION_DUPLICATED, with the first id that repeats.
    """
    seen: set[str] = set()
    for operation in operations:
        if operation.operation_id in seen:
            raise MeshError("OPERATION_DUPLICATED", operation_id=operation.operation_id)
        seen.add(operation.operation_id)
