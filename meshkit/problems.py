"""Owns the words, in both languages, for a field that breaks a rule of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from meshkit.errors import Violation

Words = tuple[str, str]

# What the patterns of the contract ask for, in words.
PATTERNS: Mapping[str, Words] = {
    r"^[!-~]{1,64}$": ("must be 1 to 64 visible ASCII characters", "须为 1 至 64 个可见 ASCII 字符"),
    r"^[!-~]{0,64}$": ("must be at most 64 visible ASCII characters", "最多 64 个可见 ASCII 字符"),
    r"^[0-9]{19}$": ("must be 19 digits", "须为 19 位数字"),
    r"^TX[0-9]{27}$": ("must be TX and 27 digits", "须为 TX 加 27 位数字"),
    r"^([0-9]{19})?$": ("must be 19 digits or empty", "须为 19 位数字或留空"),
    r"^(TX[0-9]{27})?$": ("must be TX and 27 digits, or empty", "须为 TX 加 27 位数字，或留空"),
    r"^([01][0-9]|2[0-3]):[0-5][0-9]$": ("must be a time such as 09:30", "须为时刻，例如 09:30"),
    r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$": (
        "must be a time such as 09:30 or 24:00",
        "须为时刻，例如 09:30 或 24:00",
    ),
    r"^0\.[0-9]{1,4}$": ("must be a fraction such as 0.85", "须为小数，例如 0.85"),
    r"^\+?[0-9]{6,15}$": ("must be a telephone number of 6 to 15 digits", "须为 6 至 15 位电话号码"),
    r"^[0-9A-Za-z][0-9A-Za-z-]{4,30}[0-9A-Za-z]$": (
        "must be 6 to 32 letters, digits and hyphens, with no hyphen at either end",
        "须为 6 至 32 个字母、数字或连字符，且首尾不是连字符",
    ),
}
_OTHER_PATTERN = ("has the wrong form", "格式不正确")


def _least_characters(least: Any) -> Words:
    if least == 1:
        return "must not be empty", "不能为空"
    return f"must have at least {least} characters", f"至少 {least} 个字符"


# By id of the rule, from its value; of any other rule protovalidate's own English is plain enough.
_RULES: Mapping[str, Callable[[Any], Words]] = {
    "required": lambda _: ("is required", "必填"),
    "string.min_len": _least_characters,
    "string.max_len": lambda most: (f"must have at most {most} characters", f"最多 {most} 个字符"),
    "string.pattern": lambda pattern: PATTERNS.get(pattern, _OTHER_PATTERN),
    "string.ip": lambda _: ("must be an IP address", "须为 IP 地址"),
    "repeated.min_items": lambda least: (f"must have at least {least} entries", f"至少 {least} 项"),
    "repeated.max_items": lambda most: (f"must have at most {most} entries", f"最多 {most} 项"),
    "repeated.unique": lambda _: ("must not name anything twice", "不能重复"),
    "enum.defined_only": lambda _: ("is not one of the known values", "不是已知的取值"),
    "enum.not_in": lambda _: ("must be stated", "须明确指定"),
}
_OTHER_CHINESE = "取值不在允许范围内"


def violation(field: str, rule_id: str, rule_value: Any, english: str) -> Violation:
    """What a caller is told of a broken rule.

    Args:
        field: Path of the field.
        rule_id: The rule's id in protovalidate, such as "string.min_len".
        rule_value: What the contract gives as its value.
        english: What protovalidate says; stands in for rules that have no words here.
    """
    words = _RULES.get(rule_id)
    plain, chinese = words(rule_value) if words else (english, _OTHER_CHINESE)
    return Violation(field, plain, chinese, rule_id.upper().replace(".", "_"))
