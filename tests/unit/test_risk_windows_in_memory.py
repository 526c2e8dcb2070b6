"""The windows that unit tests use keep the contract that Redis keeps."""

import pytest

from risk_svc.app.ports import Windows
from tests.unit.risk_fakes import HandClock, MemoryWindows
from tests.unit.risk_windows_contract import WindowsContract


class TestMemoryWindows(WindowsContract):
    @pytest.fixture
    def clock(self) -> HandClock:
        return HandClock()

    @pytest.fixture
    def windows(self, clock: HandClock) -> Windows:
        return MemoryWindows(clock)
