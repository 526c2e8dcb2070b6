"""Puts the edge's Lua scripts together with the tables they need from the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meshctl.edge.contract import Contract

# Reasons for replies that carry none of ours: Envoy's own by HTTP status, a service's by gRPC status.
BY_HTTP = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ROUTE_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "DEADLINE_EXCEEDED",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "RATE_LIMITED",
    499: "CANCELLED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
BY_GRPC = {
    1: "CANCELLED",
    4: "DEADLINE_EXCEEDED",
    7: "PERMISSION_DENIED",
    8: "OVERLOADED",
    14: "UNAVAILABLE",
    16: "UNAUTHENTICATED",
}


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


def edge_scripts(contract: Contract, folder: Path) -> tuple[Script, ...]:
    """The edge's scripts, complete.

    Args:
        contract: what the tables are made from.
        folder: where the .lua files are.
    """
    shared = _module("json", folder) + _module("call", folder)
    fields = _table("FIELDS", contract.fields())
    envelope = _table("REASONS", _reasons(contract)) + _table("BY_HTTP", BY_HTTP) + _table("BY_GRPC", BY_GRPC)
    envelope += _table("MESSAGES", dict.fromkeys(contract.fields(), True))
    return (
        Script("envelope", "outermost", shared + envelope + _text("envelope", folder)),
        Script("gate", "before_token", shared + _table("ROUTES", _routes(contract)) + fields + _text("gate", folder)),
        Script("body", "after_token", shared + fields + _text("body", folder)),
    )


def lua_value(value: Any) -> str:
    """A Python value as a Lua expression: None, booleans, numbers, texts, mappings and sequences.

    Raises:
        TypeError: the value has no Lua form.
    """
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _lua_string(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_lua_key(key)} = {lua_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "{" + ", ".join(lua_value(item) for item in value) + "}"
    raise TypeError(f"{type(value).__name__} has no Lua form")


def _lua_key(key: Any) -> str:
    # Always in brackets: a bare name may not be a word of the language, such as "end".
    return f"[{lua_value(key)}]"


def _lua_string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _text(name: str, folder: Path) -> str:
    return (folder / f"{name}.lua").read_text(encoding="utf-8")


def _module(name: str, folder: Path) -> str:
    return f"local {name} = (function()\n{_text(name, folder)}end)()\n\n"


def _table(name: str, content: Mapping[Any, Any] | Sequence[Any]) -> str:
    """A local variable with one line per entry, so that the rendered configuration can be read."""
    if isinstance(content, Mapping):
        lines = [f"  {_lua_key(key)} = {lua_value(item)}," for key, item in content.items()]
    else:
        lines = [f"  {lua_value(item)}," for item in content]
    return f"local {name} = {{\n" + "\n".join(lines) + "\n}\n\n"


def _routes(contract: Contract) -> list[dict[str, Any]]:
    by_pattern: dict[str, dict[str, Any]] = {}
    for route in contract.routes():
        by_pattern.setdefault(route.lua_pattern, {})[route.verb] = {
            "request": route.request,
            "has_body": route.has_body,
            "in_path": dict.fromkeys(route.variables, True),
        }
    return [{"pattern": pattern, "verbs": verbs} for pattern, verbs in by_pattern.items()]


def _reasons(contract: Contract) -> dict[str, dict[str, Any]]:
    return {
        name: {"code": reason.grpc_code, "en": reason.en, "zh": reason.zh, "wait_ms": reason.retry_after_ms}
        for name, reason in contract.reasons().items()
    }
