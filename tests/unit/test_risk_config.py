"""What risk_svc can be told, and what it refuses to be told."""

import pytest

from meshkit.config import ConfigError, parse
from risk_svc.config import RiskConfig
from risk_svc.domain.windows import WindowLimit

KEYRING = "k1:" + "5a" * 32


@pytest.fixture(autouse=True)
def keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISK_KEYRING", KEYRING)


def test_the_thresholds_stand_in_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "VELOCITY_LIMIT": 5,
        "VELOCITY_WINDOW_S": 7,
        "GUESS_LIMIT": 2,
        "GUESS_LIMIT_WITHOUT_IP": 3,
        "GUESS_WINDOW_S": 60,
        "WINDOW_BUCKETS": 60,
    }.items():
        monkeypatch.setenv(f"RISK_{name}", str(value))
    rules = parse(RiskConfig).rules()
    # A seventh of a second is not whole; a bucket is rounded up, so that there is never one more of them.
    assert rules.velocity == WindowLimit("user-merchant-velocity", 5, 7_000, 117)
    assert rules.guesses == WindowLimit("guessed-codes", 2, 60_000, 1_000)
    assert rules.guesses_without_ip == WindowLimit("guessed-codes", 3, 60_000, 1_000)


def test_the_defaults_are_three_hundred_a_minute_and_ten_guesses_in_five() -> None:
    rules = parse(RiskConfig).rules()
    assert rules.velocity == WindowLimit("user-merchant-velocity", 300, 60_000, 2_000)
    assert rules.guesses == WindowLimit("guessed-codes", 10, 300_000, 10_000)
    assert rules.guesses_without_ip == WindowLimit("guessed-codes", 100, 300_000, 10_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEYRING", "k1:5a5a"),
        ("KEYRING", "no colon"),
        ("VELOCITY_LIMIT", "0"),
        ("VELOCITY_WINDOW_S", "0"),
        ("GUESS_LIMIT", "-1"),
        ("WINDOW_BUCKETS", "101"),
        ("REPLAY_TTL_S", "299"),
        ("REDIS_TIMEOUT_MS", "0"),
    ],
)
def test_a_bad_value_is_named_by_its_variable_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"RISK_{name}", value)
    with pytest.raises(ConfigError) as refused:
        parse(RiskConfig)
    (problem,) = refused.value.problems
    assert problem.startswith(f"RISK_{name}:")
    assert value not in problem or name != "KEYRING"


def test_without_a_keyring_there_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RISK_KEYRING")
    with pytest.raises(ConfigError, match="RISK_KEYRING"):
        parse(RiskConfig)


def test_secrets_do_not_show_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISK_REDIS_WINDOWS_URL", "redis://:hunter2@127.0.0.1:6379/0")
    shown = repr(parse(RiskConfig))
    assert "hunter2" not in shown
    assert "5a5a" not in shown
