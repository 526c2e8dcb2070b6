"""Fixtures for tests on real components; what they give is described in tests/harness/stack.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness.stack import PrivateStack

_LOGS_OF_FAILED_RUNS = Path(__file__).resolve().parents[1] / "build" / "stack-logs"


def _close(stack: PrivateStack, session: pytest.Session) -> None:
    stack.close(keep_logs=_LOGS_OF_FAILED_RUNS if session.testsfailed else None)


@pytest.fixture(scope="session")
def stores(request: pytest.FixtureRequest) -> Iterator[PrivateStack]:
    """MariaDB, Redis and ZooKeeper of one private stack, migrated; services and Envoy may not run."""
    # Roots are made by the tests of roots, not in the middle of others.
    stack = PrivateStack(replicas={"coupon": 2}, settings={"COUPON_AUDIT_ROOT_EVERY_S": "86400"})
    try:
        stack.start_stores()
        yield stack
    finally:
        _close(stack, request.session)


@pytest.fixture(scope="session")
def stack(stores: PrivateStack) -> PrivateStack:
    """The whole private stack, with two coupon_svc, shared by all tests of a run."""
    stores.start_services()
    return stores


@pytest.fixture(autouse=True)
def _left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a component of the shared stack dead or frozen."""
    shared: PrivateStack | None = request.getfixturevalue("stores") if "stores" in request.fixturenames else None
    yield
    if shared is not None:
        harmed = shared.heal()
        assert not harmed, f"the test left {', '.join(harmed)} dead or frozen"


StartStack = Callable[..., PrivateStack]


@pytest.fixture
def own_stack(request: pytest.FixtureRequest) -> Iterator[StartStack]:
    """Starts whole stacks with settings of the test's own, as often as it is called; they end with the test."""
    started: list[PrivateStack] = []

    def start(*, replicas: Mapping[str, int] | None = None, settings: Mapping[str, str] | None = None) -> PrivateStack:
        stack = PrivateStack(replicas=replicas, settings=settings)
        started.append(stack)
        stack.start_stores()
        stack.start_services()
        return stack

    try:
        yield start
    finally:
        for stack in started:
            _close(stack, request.session)
