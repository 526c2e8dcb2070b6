"""A batch of coupons: how many there are, and what is blocked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from meshkit.errors import MeshError


class BlockScope(IntEnum):
    """Which uses of a batch are blocked; the numbers of batch.block_scope."""

    NONE = 0
    CLAIM = 1
    CONSUME = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as its row holds it; `total_quantity` None means no limit."""

    batch_id: str
    terms_id: str
    name: str
    total_quantity: int | None
    issued_quantity: int
    code_length: int
    block_scope: BlockScope
    create_time_ms: int

    def refuse_when_blocked(self, use: BlockScope) -> None:
        """Refuses a use that is blocked.

        Raises:
            MeshError: BATCH_BLOCKED.
        """
        if self.block_scope & use:
            raise MeshError("BATCH_BLOCKED", batch_id=self.batch_id, scope=use.name)
