"""Owns the process's log format: one JSON object (or console line) per event, on stderr."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import PurePath
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from meshkit import context

MAX_FRAMES = 50
MAX_CAUSES = 8

# The package whose modules log through the standard library, as libraries do.
_OWN = "meshkit"
_ADD_FIELDS = structlog.stdlib.ExtraAdder()


def configure(service_name: str, level: str, log_format: str) -> None:
    """Sets up logging for the whole process, libraries included; called once, by the process's start."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _Service(service_name),
        _trace_id,
    ]
    renderer: Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_source, *shared],
            processors=[_safe_exception, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell of every connection at INFO; their warnings are what an operator needs.
    root.setLevel(logging.WARNING if level in {"INFO", "WARNING"} else level)
    logging.getLogger(_OWN).setLevel(level)


def logger(name: str) -> FilteringBoundLogger:
    """A logger whose events carry `source=name`."""
    bound: FilteringBoundLogger = structlog.get_logger().bind(source=name)
    return bound


def describe(error: BaseException) -> dict[str, Any]:
    """Fields that say what failed and where, without the exception's text, which may be personal or secret."""
    causes: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and len(causes) < MAX_CAUSES:
        causes.append(f"{_type_name(cause)} at {_innermost(cause.__traceback__)}")
        cause = cause.__cause__ or cause.__context__
    fields: dict[str, Any] = {"error": _type_name(error), "frames": _frames(error.__traceback__)}
    if causes:
        fields["causes"] = causes
    return fields


def _frames(trace: TracebackType | None) -> list[str]:
    frames = [
        f"{'/'.join(PurePath(frame.f_code.co_filename).parts[-2:])}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    ]
    return frames[-MAX_FRAMES:]


def _innermost(trace: TracebackType | None) -> str:
    return next(reversed(_frames(trace)), "?")


def _type_name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _source(log: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Names the logger of a standard record, and adds the fields of our own ones (a library's may be personal)."""
    event["source"] = event["_record"].name
    if event["source"].startswith(f"{_OWN}."):
        return _ADD_FIELDS(log, method, event)
    return event


class _Service:
    """Adds the service's name to every event."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = self._name
        return event


def _trace_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request = context.current_or_none()
    if request is not None:
        event.setdefault("trace_id", request.trace_id)
    return event


def _safe_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replaces a library's exception, whose text may hold a value, by its type and place."""
    failure = event.pop("exc_info", None)
    if isinstance(failure, tuple) and isinstance(failure[1], BaseException):
        event.update(describe(failure[1]))
    return event
