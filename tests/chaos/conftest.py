"""A stack and a stocked shop of its own for each module, since these tests kill parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cashiers import Cashiers, Shop
from tests.harness.stack import PrivateStack

_LOGS_OF_FAILED_RUNS = Path(__file__).resolve().parents[2] / "build" / "stack-logs"
# What callers need to notice that a replica drains, on a machine that is busy with everything else here.
DRAIN_S = "0.5"


@pytest.fixture(scope="module")
def mesh(request: pytest.FixtureRequest) -> Iterator[PrivateStack]:
    """Stores, two coupon_svc and risk_svc; nothing here goes through Envoy."""
    failed_before = request.session.testsfailed
    mesh = PrivateStack(replicas={"coupon": 2}, settings={"COUPON_DRAIN_S": DRAIN_S})
    try:
        mesh.start_stores()
        mesh.local.start_together([*mesh.local.replicas_of("coupon"), *mesh.local.replicas_of("risk")])
        yield mesh
    finally:
        mesh.close(keep_logs=_LOGS_OF_FAILED_RUNS if request.session.testsfailed > failed_before else None)


@pytest.fixture(scope="module")
async def shop(mesh: PrivateStack) -> Shop:
    """A shop whose books are kept over all tests of the module."""
    shop = Shop(mesh)
    await shop.stock()
    return shop


@pytest.fixture
async def cashiers(shop: Shop) -> Cashiers:
    """Cashiers who work in the shop; each test has its own."""
    return Cashiers(shop)
