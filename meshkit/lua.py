"""Owns loading and calling Redis scripts that live in `.lua` files."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import weakref
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoScriptError

_FILE_NAME: Final = re.compile(r"(?P<name>[a-z][a-z0-9_]*)-(?P<keys>[0-9]+|n)\.lua")
_ENTRY: Final = re.compile(r"--\s*(?P<table>KEYS|ARGV)\[(?P<first>[0-9]+)(?P<more>\.\.n?)?\]\s+\S")
_USE: Final = re.compile(r"\b(?P<table>KEYS|ARGV)\s*\[\s*(?P<index>[0-9]+)\s*\]")
_OUTPUT: Final = re.compile(r"--\s*Output:\s*\S")

Argument = str | bytes | int | float


class ScriptFormatError(Exception):
    """A script's file name, header and body do not agree."""


class Script:
    """One script: how many keys and arguments it takes is stated in its file and checked at every call.

    The file is `name-<number of keys>.lua`, or `name-n.lua` for a variable number; its leading comment says what it
    does and lists each `KEYS[1]`, `ARGV[1]` (`ARGV[3..]` for the third and any more) and `Output:`.
    """

    def __init__(self, name: str, source: str) -> None:
        """Checks a script.

        Args:
            name: The file's name.
            source: The file's text.

        Raises:
            ScriptFormatError: The name, the header and the body do not agree.
        """
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            raise ScriptFormatError(f"{name}: a script is called name-<number of keys>.lua")
        header, body = _split(source)
        if not header or _ENTRY.match(header[0]) or _OUTPUT.match(header[0]):
            raise ScriptFormatError(f"{name}: the file begins with a comment that says what the script does")
        if not any(_OUTPUT.match(line) for line in header):
            raise ScriptFormatError(f"{name}: the header lacks `-- Output: …`")
        self.name = match["name"]
        self._source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self._keys, self._more_keys = _declared(name, header, "KEYS")
        self._arguments, self._more_arguments = _declared(name, header, "ARGV")
        stated = match["keys"]
        if (stated == "n") != self._more_keys or (stated != "n" and int(stated) != self._keys):
            raise ScriptFormatError(f"{name}: the file name states {stated} keys, the header lists {self._keys}")
        for table, count, more in (
            ("KEYS", self._keys, self._more_keys),
            ("ARGV", self._arguments, self._more_arguments),
        ):
            used = {int(use["index"]) for use in _USE.finditer(body) if use["table"] == table}
            if unlisted := sorted(index for index in used if index < 1 or (index > count and not more)):
                raise ScriptFormatError(f"{name}: {table}{unlisted} is used but not in the header")
        # Pipelines that were given the source already, with the stack of commands it went into.
        self._sourced: weakref.WeakKeyDictionary[Pipeline, list[Any]] = weakref.WeakKeyDictionary()

    @classmethod
    def load(cls, package: str, path: str) -> Script:
        """Reads a script of a package.

        Args:
            package: The package's import name.
            path: Such as `lua/lock_release-1.lua`.

        Raises:
            ScriptFormatError: The file's parts do not agree.
            FileNotFoundError: There is no such file.
        """
        file = importlib.resources.files(package).joinpath(path)
        return cls(file.name, file.read_text(encoding="utf-8"))

    async def __call__(self, redis: Redis, keys: Sequence[str | bytes], arguments: Sequence[Argument] = ()) -> Any:
        """Runs the script, at most once; into a pipeline, queues it.

        A server that does not know the script says so before it runs anything, so sending the source then is safe. In a
        pipeline the first call carries the source, since an unknown script would show after the other commands ran.

        Args:
            redis: A client or a pipeline.
            keys: As many as the file's name states.
            arguments: As many as the header lists.

        Returns:
            The script's reply; for a pipeline, the pipeline.

        Raises:
            ValueError: The number of keys or arguments is wrong.
            redis.exceptions.RedisError: The script failed, or there was no reply: then it may have run.
        """
        self._check(keys, arguments)
        if isinstance(redis, Pipeline):
            return self._queue(redis, keys, arguments)
        try:
            return await _send(redis, "EVALSHA", self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await _send(redis, "EVAL", self._source, len(keys), *keys, *arguments)

    def queue(self, pipeline: Pipeline, keys: Sequence[str | bytes], arguments: Sequence[Argument] = ()) -> None:
        """Queues the script into a pipeline; as __call__, without anything to await."""
        self._check(keys, arguments)
        self._queue(pipeline, keys, arguments)

    def _queue(self, pipeline: Pipeline, keys: Sequence[str | bytes], arguments: Sequence[Argument]) -> Pipeline:
        stack = pipeline.command_stack
        # A pipeline starts a new stack after each execution, possibly on another connection or server.
        if self._sourced.get(pipeline) is stack and stack:
            pipeline.execute_command("EVALSHA", self._sha, len(keys), *keys, *arguments)
        else:
            pipeline.execute_command("EVAL", self._source, len(keys), *keys, *arguments)
            self._sourced[pipeline] = pipeline.command_stack
        return pipeline

    def _check(self, keys: Sequence[str | bytes], arguments: Sequence[Argument]) -> None:
        if len(keys) < self._keys or (len(keys) > self._keys and not self._more_keys):
            raise ValueError(f"{self.name} takes {self._keys} keys, not {len(keys)}")
        if len(arguments) < self._arguments or (len(arguments) > self._arguments and not self._more_arguments):
            raise ValueError(f"{self.name} takes {self._arguments} arguments, not {len(arguments)}")


async def _send(redis: Redis, *command: Argument) -> Any:
    return await redis.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped


def _split(source: str) -> tuple[list[str], str]:
    """Separates the leading comment from the rest, whose comments are dropped."""
    lines = source.splitlines()
    end = next((index for index, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return lines[:end], "\n".join(line.partition("--")[0] for line in lines[end:])


def _declared(name: str, header: list[str], table: str) -> tuple[int, bool]:
    """How many keys or arguments the header lists, and whether any number may follow."""
    entries = [match for line in header if (match := _ENTRY.match(line)) and match["table"] == table]
    for position, entry in enumerate(entries, start=1):
        if int(entry["first"]) != position:
            raise ScriptFormatError(f"{name}: the header lists {table}[{entry['first']}] as number {position}")
        if entry["more"] and position != len(entries):
            raise ScriptFormatError(f"{name}: nothing follows {table}[{position}..]")
    if entries and entries[-1]["more"]:
        return len(entries) - 1, True
    return len(entries), False
