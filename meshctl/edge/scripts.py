"""Puts the edge's Lua scripts together with the tables they need from the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meshctl.edge.contract import Contract


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua filter.

    Attributes:
        name: of the filter and of its statistics.
        place: where in the filter chain it stands.
        source: the whole Lua text.
    """

    name: str
    place: Literal["outermost", "before_token", "after_token"]
    source: str


def edge_scripts(contract: Contract, *, body_max_bytes: int) -> tuple[Script, ...]:
    """The edge's scripts; none yet."""
    return ()
