"""Runs the edge's Lua scripts in LuaJIT, as Envoy does, with a hand-written stand-in for its stream handle."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshctl.edge.contract import Contract
from meshctl.edge.scripts import Script, edge_scripts

ROOT = Path(__file__).resolve().parents[2]
LUA_FOLDER = ROOT / "envoy" / "lua"
DESCRIPTOR_SET = ROOT / "gen" / "couponmesh.binpb"

# Builds a stream handle from Python callbacks; methods are called with a colon, so each swallows its own object.
_HANDLE = """
function(given)
  local headers = {get = function(_, name) return given.header(name) end,
                   replace = function(_, name, value) given.set_header(name, value) end,
                   remove = function(_, name) given.remove_header(name) end}
  local body = {length = function() return #given.body() end,
                getBytes = function(_, from, length) return string.sub(given.body(), from + 1, from + length) end,
                setBytes = function(_, text) given.set_body(text) end}
  local metadata = {}
  local stored = {set = function(_, space, name, value)
                    metadata[space] = metadata[space] or {}
                    metadata[space][name] = value
                    given.noted(name, value)
                  end,
                  get = function(_, space) return metadata[space] end}
  return {headers = function() return headers end,
          body = function() return body end,
          trailers = function() return {get = function(_, name) return given.trailer(name) end} end,
          streamInfo = function() return {dynamicMetadata = function() return stored end} end,
          logErr = function(_, problem) given.failed(problem) end,
          respond = function(_, reply) given.responded(reply[":status"]) end}
end
"""

_NOTE = b"function(handle, name, value) handle:streamInfo():dynamicMetadata():set('couponmesh.edge', name, value) end"


def lua_runtime() -> Any:
    """A new LuaJIT whose strings are bytes, as Envoy's are."""
    # The package has no type information and names its builds only at run time.
    return importlib.import_module("lupa.luajit21").LuaRuntime(encoding=None, unpack_returned_tuples=True)


def script(name: str) -> Script:
    """One of the edge's scripts, complete with its tables."""
    scripts = edge_scripts(Contract.load(DESCRIPTOR_SET), LUA_FOLDER)
    return next(found for found in scripts if found.name == name)


def json_module() -> Any:
    """The table that json.lua gives."""
    return lua_runtime().execute((LUA_FOLDER / "json.lua").read_bytes())


@dataclass
class Stream:
    """One call as a script sees it, and what the script did with it."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)
    status: str = ""
    failures: list[str] = field(default_factory=list)

    def handle(self, runtime: Any) -> Any:
        """The stream handle to pass to the script."""
        callbacks: dict[str, Callable[..., Any]] = {
            "header": lambda name: self.headers.get(name.decode(), None),
            "set_header": lambda name, value: self.headers.__setitem__(name.decode(), value.decode()),
            "remove_header": lambda name: self.headers.pop(name.decode(), None),
            "body": lambda: self.body,
            "trailer": lambda name: self.trailers.get(name.decode(), None),
            "set_body": lambda text: setattr(self, "body", text),
            "noted": self._note,
            "failed": lambda problem: self.failures.append(problem.decode()),
            "responded": lambda status: setattr(self, "status", status.decode()),
        }
        wrapped = {name.encode(): _in_bytes(callback) for name, callback in callbacks.items()}
        return runtime.eval(_HANDLE.strip().encode())(runtime.table_from(wrapped))

    def _note(self, name: bytes, value: Any) -> None:
        self.noted[name.decode()] = value.decode() if isinstance(value, bytes) else value


def _in_bytes(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback whose text, if that is what it gives, becomes bytes as Lua has them."""

    def call(*given: Any) -> Any:
        value = callback(*given)
        return value.encode() if isinstance(value, str) else value

    return call


class LoadedScript:
    """A script in a runtime of its own."""

    def __init__(self, name: str) -> None:
        self.runtime = lua_runtime()
        self.runtime.execute(script(name).source.encode())

    def request(self, stream: Stream, **noted: str) -> Stream:
        """Runs envoy_on_request; `noted` is what filters before this one noted."""
        return self._run(b"envoy_on_request", stream, noted)

    def reply(self, stream: Stream, **noted: str) -> Stream:
        """Runs envoy_on_response; `noted` is what was noted while the request passed."""
        return self._run(b"envoy_on_response", stream, noted)

    def _run(self, function: bytes, stream: Stream, noted: Mapping[str, str]) -> Stream:
        handle = stream.handle(self.runtime)
        note = self.runtime.eval(_NOTE)
        for name, value in noted.items():
            note(handle, name.encode(), value.encode())
        self.runtime.globals()[function](handle)
        return stream
