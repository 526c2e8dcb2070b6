"""Owns campaign_svc's configuration; the only place of the service that reads the environment."""

from pydantic_settings import SettingsConfigDict

from meshkit.config import ServiceConfig


class CampaignConfig(ServiceConfig):
    """Configuration of campaign_svc; environment variables begin with CAMPAIGN_."""

    model_config = SettingsConfigDict(env_prefix="CAMPAIGN_")

    service_name: str = "campaign_svc"
