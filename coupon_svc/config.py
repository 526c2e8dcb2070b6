"""The coupon service's configuration; the only place of the service that reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from meshkit.config import ServiceConfig
from meshkit.crypto import Keyring
from meshkit.signing import SigningKeys

_CODE_KEY_BYTES = 32


class CouponConfig(ServiceConfig):
    """Configuration of coupon_svc; environment variables begin with COUPON_."""

    model_config = SettingsConfigDict(env_prefix="COUPON_")

    service_name: str = "coupon_svc"

    redis_locks_url: SecretStr = SecretStr("redis://127.0.0.1:6379/1")
    """The Redis that holds coupon locks. Losing it costs work, never money."""

    lock_lease_ms: Annotated[int, Field(ge=100, le=60_000)] = 3_000
    """How long a lock outlives its holder."""

    lock_timeout_ms: Annotated[int, Field(ge=1, le=5_000)] = 100
    """The longest wait for the lock server; after that a group goes on under row locks alone."""

    risk_target: str = "127.0.0.1:50061"
    """Where risk_svc listens."""

    risk_deadline_ms: Annotated[int, Field(ge=1, le=5_000)] = 20
    """The longest wait for a risk decision."""

    accept_without_risk_minor: Annotated[int, Field(ge=0, le=999_999_999_999)] = 20_000
    """Amounts up to this many fen are accepted, with settlement held, while risk_svc is away; 0 accepts none."""

    code_key: SecretStr
    """64 hexadecimal digits: the key of the code permutation. It can never change."""

    code_keyring: SecretStr
    """Keys "id:hex,…", the first in use, under which codes are hashed and sealed."""

    audit_keyring: SecretStr
    """Keys "id:hex,…", the first in use, that chain the journal. They are kept outside the databases."""

    audit_signing_keys: SecretStr | None = None
    """Ed25519 seeds "id:hex,…", the first in use, that sign roots of the journal; without them none are made."""

    audit_roots_dir: Path | None = None
    """Where signed roots are exported to: outside the databases, and best where nothing can be overwritten."""

    audit_root_every_s: Annotated[float, Field(ge=1, le=86_400)] = 3_600.0
    """How old the newest root of a shard becomes before the next one is made."""

    audit_timeout_ms: Annotated[int, Field(ge=1_000, le=600_000)] = 60_000
    """The longest an audit may look at one moment; a chain of a million rows needs a minute."""

    trusted_context_clients: frozenset[str] = frozenset()
    """Client ids whose ClientContext is believed; "*" believes everybody's."""

    mysql_pool_size: Annotated[int, Field(ge=2, le=256)] = 8
    """Connections per database."""

    mysql_timeout_ms: Annotated[int, Field(ge=100, le=60_000)] = 3_000
    """The longest a transaction may take."""

    max_group: Annotated[int, Field(ge=1, le=128)] = 128
    """The most consumes in one transaction."""

    groups_in_flight: Annotated[int, Field(ge=1, le=2)] = 1
    """How many consume transactions may run at once per database."""

    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 4_096
    """Consumes that may wait per database; more are refused with OVERLOADED."""

    record_retention_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    """How long a request_id can be repeated."""

    purge_every_s: Annotated[float, Field(ge=0.1, le=86_400)] = 300.0
    """About how often records whose retention is over are removed."""

    hold_sweep_every_s: Annotated[float, Field(ge=0.1, le=3_600)] = 1.0
    """The leader's pause between two looks for holds whose time is over. They block nobody meanwhile."""
    expiry_every_s: Annotated[float, Field(ge=0.05, le=86_400)] = 60.0
    """About how often coupons whose period is over are swept; a use looks at the clock by itself."""

    recall_every_s: Annotated[float, Field(ge=0.05, le=3_600)] = 1.0
    """About how often recalled batches are looked for, and how soon coupons are voided."""

    recall_settle_s: Annotated[float, Field(ge=0, le=3_600)] = 15.0
    """The longest that issuing can be under way; a recall looks once more after that."""

    @field_validator("code_keyring", "audit_keyring")
    @classmethod
    def _is_a_keyring(cls, value: SecretStr) -> SecretStr:
        Keyring.parse(value.get_secret_value())
        return value

    @field_validator("audit_signing_keys")
    @classmethod
    def _are_signing_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            SigningKeys.parse(value.get_secret_value())
        return value

    @field_validator("code_key")
    @classmethod
    def _is_a_key(cls, value: SecretStr) -> SecretStr:
        try:
            key = bytes.fromhex(value.get_secret_value())
        except ValueError as exc:
            raise ValueError("must be hexadecimal") from exc
        if len(key) != _CODE_KEY_BYTES:
            raise ValueError("must have 64 hexadecimal digits")
        return value
