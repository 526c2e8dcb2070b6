"""Starts campaign_svc: `python -m campaign_svc`, configured by CAMPAIGN_* variables."""

from campaign_svc import wiring
from campaign_svc.config import CampaignConfig
from meshkit import config, server


def main() -> None:
    """Reads the configuration and serves until told to stop."""
    server.run(config.load(CampaignConfig), wiring.build, error_reasons=[])


if __name__ == "__main__":
    main()
