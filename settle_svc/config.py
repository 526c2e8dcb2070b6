"""Owns settle_svc's configuration; the only place of the service that reads the environment."""

from pydantic_settings import SettingsConfigDict

from meshkit.config import ServiceConfig


class SettleConfig(ServiceConfig):
    """Configuration of settle_svc; environment variables begin with SETTLE_."""

    model_config = SettingsConfigDict(env_prefix="SETTLE_")

    service_name: str = "settle_svc"
