"""Starts settle_svc: `python -m settle_svc`, configured by SETTLE_* variables."""

from meshkit import config, server
from settle_svc import wiring
from settle_svc.config import SettleConfig


def main() -> None:
    """Reads the configuration and serves until told to stop."""
    server.run(config.load(SettleConfig), wiring.build, error_reasons=[])


if __name__ == "__main__":
    main()
