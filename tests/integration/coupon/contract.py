"""What the contract says about each reason for a refusal, and whether a refusal says the same."""

from __future__ import annotations

from couponmesh.coupon.v1 import error_reason_pb2 as coupon_reasons
from couponmesh.type.v1 import error_reason_pb2 as shared_reasons
from meshkit.error_table import specifications
from tests.integration.coupon.world import Refusal

_SAID = {
    **specifications(shared_reasons.ErrorReason.DESCRIPTOR),
    **specifications(coupon_reasons.ErrorReason.DESCRIPTOR),
}


def assert_as_the_contract_says(refused: Refusal, reason: str) -> None:
    """The reason, its status, its message in both languages with every blank filled in, and when to come back."""
    assert refused.reason == reason
    said = _SAID[reason]
    assert refused.code.value[0] == said.code
    assert set(refused.messages) == {"zh-CN", "en"}
    if reason != "VALIDATION_FAILED":
        # A blank without a value would raise here.
        filled = {"zh-CN": said.zh.format(**refused.metadata), "en": said.en.format(**refused.metadata)}
        assert refused.messages == filled
    assert refused.messages["zh-CN"] != refused.messages["en"]
    assert refused.retry_after_ms == (said.retry_after_ms if said.retryable else None)
