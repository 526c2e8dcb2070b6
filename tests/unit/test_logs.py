"""What a line of the log says, whichever logger wrote it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from meshkit import logs


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("meshkit")
    before = root.handlers[:], root.level, own.level
    try:
        yield
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_the_runtime_own_loggers_tell_their_fields_and_their_good_news(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("coupon_svc", "INFO", "json")
    logging.getLogger("meshkit.zk").warning("zookeeper_state", extra={"state": "lost"})
    logging.getLogger("meshkit.locks").info("locks_available")
    lost, available = _lines(capsys)
    assert (lost["event"], lost["state"], lost["source"]) == ("zookeeper_state", "lost", "meshkit.zk")
    assert (available["event"], available["level"]) == ("locks_available", "info")


def test_a_library_is_named_but_its_fields_and_chatter_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("coupon_svc", "INFO", "json")
    logging.getLogger("somelibrary").info("connected")
    logging.getLogger("somelibrary").warning("refused", extra={"phone": "13800138000"})
    (refused,) = _lines(capsys)
    assert (refused["event"], refused["source"]) == ("refused", "somelibrary")
    assert "13800138000" not in str(refused)
