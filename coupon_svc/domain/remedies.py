"""What would satisfy each check that fails, in words."""

from __future__ import annotations

from collections.abc import Mapping

from meshkit.errors import MeshError

# By reason: in English and in Chinese; {name} stands for a value of the failure.
REMEDIES: Mapping[str, tuple[str, str]] = {
    "COUPON_NOT_OWNED": ("Only its owner can use it.", "仅限券的持有人使用。"),
    "ACCOUNT_FROZEN": ("The account must be unfrozen.", "需先解冻账户。"),
    "BATCH_BLOCKED": ("The block of batch {batch_id} must be lifted.", "需先解除批次 {batch_id} 的停用。"),
    "BATCH_RECALLED": ("Nothing: its batch was recalled. Take another coupon.", "该批次已召回，请换用其他券。"),
    "COUPON_UNACTIVATED": ("Activate the code first.", "请先激活券码。"),
    "COUPON_USED": ("Nothing: it was used. Take another coupon.", "该券已使用，请换用其他券。"),
    "COUPON_FROZEN": ("The coupon must be unfrozen.", "需先解冻该券。"),
    "COUPON_EXPIRED": ("Nothing: its period ended at {expires_at}.", "该券已于 {expires_at} 过期，不可再用。"),
    "COUPON_REFUNDED": ("Nothing: it was refunded. Take another coupon.", "该券已退款，请换用其他券。"),
    "COUPON_NOT_STARTED": ("Use it from {valid_from} on.", "请于 {valid_from} 之后使用。"),
    "MERCHANT_NOT_ELIGIBLE": ("Buy from one of these merchants: {merchants}.", "请在以下商户购买：{merchants}。"),
    "COUPON_HELD": (
        "Confirm or cancel the order that holds it, or wait until {until}.",
        "请先完成或取消占用该券的订单，或等到 {until}。",
    ),
    "OUTSIDE_HOURS": ("Use it from {next_from} on.", "请于 {next_from} 之后的可用时段使用。"),
    "LINES_AMOUNT_MISMATCH": (
        "Name all lines of the order: they sum to {lines}, the amount is {amount}.",
        "请提供完整的订单明细：当前合计 {lines}，金额为 {amount}。",
    ),
    "LINES_REQUIRED": ("Name the order's lines.", "请提供订单明细。"),
    "LINES_NOT_ELIGIBLE": (
        "Buy goods for which it is valid (categories: {categories}; skus: {skus}); the order has {eligible} of them.",
        "请购买适用商品（类目：{categories}；商品：{skus}），当前适用金额为 {eligible}。",
    ),
    "BELOW_MIN_AMOUNT": (
        "Buy eligible goods for {min_amount} at least; the order has {amount}.",
        "适用商品需满 {min_amount}，当前为 {amount}。",
    ),
    "BALANCE_INSUFFICIENT": ("Take {balance} at most.", "最多可支付 {balance}。"),
    "COUPON_NO_EFFECT": (
        "Buy more eligible goods: it would take less than 0.01.",
        "请增加适用商品金额，当前优惠不足 0.01。",
    ),
    "USES_LIMIT_REACHED": (
        "Nothing: {uses_per_user} coupons of the batch were used. Take one of another batch.",
        "该批次每人限用 {uses_per_user} 次，请换用其他批次的券。",
    ),
    "SPEND_CAP_REACHED": (
        "The spend cap of batch {batch_id} must be raised: {deduction} is more than is left of it.",
        "需提高批次 {batch_id} 的预算：剩余不足 {deduction}。",
    ),
}


def remedy(failure: MeshError) -> tuple[str, str]:
    """What would satisfy the check that failed, in English and in Chinese."""
    english, chinese = REMEDIES[failure.reason]
    said = failure.metadata
    return (
        english.format(**{name: value or "any" for name, value in said.items()}),
        chinese.format(**{name: value or "不限" for name, value in said.items()}),
    )
