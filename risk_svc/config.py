"""Owns risk_svc's configuration; the only place of the service that reads the environment."""

from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from meshkit.config import ServiceConfig
from meshkit.crypto import Keyring
from risk_svc.domain.rules import GUESSED_CODES, USER_MERCHANT_VELOCITY, Rules
from risk_svc.domain.windows import WindowLimit

Limit = Annotated[int, Field(ge=1, le=10_000_000)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]


class RiskConfig(ServiceConfig):
    """Configuration of risk_svc; environment variables begin with RISK_."""

    model_config = SettingsConfigDict(env_prefix="RISK_")

    service_name: str = "risk_svc"

    redis_windows_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The Redis that holds the windows. Its memory is all that risk control remembers."""

    redis_timeout_ms: Annotated[int, Field(ge=1, le=5_000)] = 200
    """The longest wait for the windows; the caller's deadline, where it is nearer, cuts it short."""

    keyring: SecretStr
    """Keys "id:hex,…", the first in use, that hide addresses, users and operation ids in Redis."""

    velocity_limit: Limit = 300
    """Consumes allowed per user and merchant within velocity_window_s."""

    velocity_window_s: Seconds = 60

    guess_limit: Limit = 10
    """Bad codes tolerated per caller and address within guess_window_s; one more trips the rule."""

    guess_limit_without_ip: Limit = 100
    """The same, per caller alone, for operations whose address is unknown."""

    guess_window_s: Seconds = 300

    window_buckets: Annotated[int, Field(ge=1, le=100)] = 30
    """Buckets per window: a window is forgotten within its length and one bucket more."""

    replay_ttl_s: Seconds = 600
    """How long a decision is remembered for retries; no shorter than any window, else a late retry counts twice."""

    @field_validator("keyring")
    @classmethod
    def _is_a_keyring(cls, value: SecretStr) -> SecretStr:
        Keyring.parse(value.get_secret_value())
        return value

    @field_validator("replay_ttl_s")
    @classmethod
    def _replays_outlive_windows(cls, value: int, info: ValidationInfo) -> int:
        # A field that is itself at fault is missing here, and reported on its own.
        longest_s = max(info.data.get(name, 0) for name in ("velocity_window_s", "guess_window_s"))
        if value < longest_s:
            raise ValueError(f"must be at least the longest window, {longest_s}")
        return value

    def rules(self) -> Rules:
        """The rules with the configured thresholds."""
        return Rules(
            velocity=self._limit(USER_MERCHANT_VELOCITY, self.velocity_limit, self.velocity_window_s),
            guesses=self._limit(GUESSED_CODES, self.guess_limit, self.guess_window_s),
            guesses_without_ip=self._limit(GUESSED_CODES, self.guess_limit_without_ip, self.guess_window_s),
        )

    def _limit(self, rule: str, limit: int, window_s: int) -> WindowLimit:
        window_ms = window_s * 1000
        return WindowLimit(rule, limit, window_ms, bucket_ms=-(-window_ms // self.window_buckets))
