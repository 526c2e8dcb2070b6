"""Starts risk_svc: `python -m risk_svc`, configured by RISK_* variables."""

from couponmesh.risk.v1 import error_reason_pb2 as risk_errors
from couponmesh.type.v1 import error_reason_pb2 as type_errors
from meshkit import config, server
from risk_svc import wiring
from risk_svc.config import RiskConfig


def main() -> None:
    """Reads the configuration and serves until told to stop."""
    server.run(
        config.load(RiskConfig),
        wiring.build,
        error_reasons=[
            type_errors.DESCRIPTOR.enum_types_by_name["ErrorReason"],
            risk_errors.DESCRIPTOR.enum_types_by_name["ErrorReason"],
        ],
    )


if __name__ == "__main__":
    main()
