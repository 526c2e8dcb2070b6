"""The world in which the tests of the coupon service act: the shared stack with two coupon_svc over two databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.harness.stack import PrivateStack
from tests.integration.coupon.world import World


@pytest.fixture(scope="session")
async def world(stack: PrivateStack) -> AsyncIterator[World]:
    world = World(stack)
    yield world
    await world.close()
