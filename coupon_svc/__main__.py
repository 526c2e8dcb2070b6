"""Starts coupon_svc: `python -m coupon_svc`, configured by COUPON_* variables."""

from coupon_svc import wiring
from coupon_svc.config import CouponConfig
from couponmesh.coupon.v1 import error_reason_pb2 as coupon_errors
from couponmesh.type.v1 import error_reason_pb2 as type_errors
from meshkit import config, server


def main() -> None:
    """Reads the configuration and serves until told to stop."""
    server.run(
        config.load(CouponConfig),
        wiring.build,
        error_reasons=[
            type_errors.DESCRIPTOR.enum_types_by_name["ErrorReason"],
            coupon_errors.DESCRIPTOR.enum_types_by_name["ErrorReason"],
        ],
    )


if __name__ == "__main__":
    main()
