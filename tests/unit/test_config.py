from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from meshkit.config import ConfigError, ServiceConfig, load, parse, unknown_variables


class Window(BaseModel):
    limit: Annotated[int, Field(ge=1)] = 10
    seconds: int = 60


class MadeUpConfig(ServiceConfig):
    model_config = SettingsConfigDict(env_prefix="MADEUP_")

    service_name: str = "made_up"
    clients: tuple[str, ...] = ()
    window: Window = Window()
    key: SecretStr = SecretStr("unset")


def test_defaults_hold_without_any_variable() -> None:
    config = parse(MadeUpConfig)
    assert (config.service_name, config.listen, config.drain_s) == ("made_up", "127.0.0.1:50051", 2.0)
    assert config.so_reuseport is False


def test_variables_set_fields_also_nested_and_listed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEUP_LISTEN", "0.0.0.0:7001")
    monkeypatch.setenv("MADEUP_CLIENTS", '["a", "b"]')
    monkeypatch.setenv("MADEUP_WINDOW__LIMIT", "3")
    config = parse(MadeUpConfig)
    assert (config.listen, config.clients, config.window) == ("0.0.0.0:7001", ("a", "b"), Window(limit=3))


def test_a_variable_set_to_nothing_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEUP_LISTEN", "")
    monkeypatch.setenv("MADEUP_SHARD_MAP_FILE", "")
    config = parse(MadeUpConfig)
    assert (config.listen, config.shard_map_file) == ("127.0.0.1:50051", None)


def test_every_bad_value_is_named_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        "MADEUP_LISTEN": "nowhere",
        "MADEUP_METRICS_LISTEN": "127.0.0.1:",
        "MADEUP_DRAIN_S": "soon",
        "MADEUP_LOG_FORMAT": "xml",
        "MADEUP_TRACE_SAMPLE_RATIO": "1.5",
        "MADEUP_CLIENTS": "[not json",
        "MADEUP_WINDOW__LIMIT": "0",
        "MADEUP_ZOOKEEPER_ROOT": "relative/",
    }
    for name, value in bad.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        parse(MadeUpConfig)
    assert {problem.split(":")[0] for problem in error.value.problems} == set(bad)


def test_a_bad_value_is_named_but_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEUP_DRAIN_S", "hunter2")
    monkeypatch.setenv("MADEUP_CLIENTS", "hunter2")
    with pytest.raises(ConfigError) as error:
        parse(MadeUpConfig)
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_bad_configuration_ends_the_process_with_status_2_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MADEUP_GRACE_S", "-1")
    with pytest.raises(SystemExit) as exit_:
        load(MadeUpConfig)
    assert exit_.value.code == 2
    assert "MADEUP_GRACE_S" in capsys.readouterr().err


def test_a_file_sets_what_the_environment_leaves_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "made_up.toml"
    file.write_text('listen = "127.0.0.1:1"\nmetrics_listen = "127.0.0.1:2"\n[window]\nlimit = 5\nseconds = 9\n')
    monkeypatch.setenv("MADEUP_CONFIG_FILE", str(file))
    monkeypatch.setenv("MADEUP_LISTEN", "127.0.0.1:3")
    monkeypatch.setenv("MADEUP_WINDOW__LIMIT", "6")
    config = parse(MadeUpConfig)
    assert (config.listen, config.metrics_listen) == ("127.0.0.1:3", "127.0.0.1:2")
    assert config.window == Window(limit=6, seconds=9)


def test_an_unknown_name_in_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "made_up.toml"
    file.write_text('listne = "127.0.0.1:1"\n')
    monkeypatch.setenv("MADEUP_CONFIG_FILE", str(file))
    with pytest.raises(ConfigError, match="MADEUP_LISTNE"):
        parse(MadeUpConfig)


@pytest.mark.parametrize("text", [None, "listen = "])
def test_a_file_that_cannot_be_used_is_named_beside_the_other_faults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "made_up.toml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("MADEUP_CONFIG_FILE", str(file))
    monkeypatch.setenv("MADEUP_DRAIN_S", "soon")
    with pytest.raises(ConfigError) as error:
        parse(MadeUpConfig)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["MADEUP_CONFIG_FILE", "MADEUP_DRAIN_S"]


def test_a_configuration_does_not_change_after_the_start() -> None:
    config = parse(MadeUpConfig)
    with pytest.raises(ValidationError, match="frozen"):
        config.listen = "127.0.0.1:9"


def test_a_secret_does_not_show_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADEUP_KEY", "hunter2")
    assert "hunter2" not in repr(parse(MadeUpConfig))


def test_variables_that_set_nothing_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MADEUP_LISTEN", "madeup_drain_s", "MADEUP_WINDOW__LIMIT", "MADEUP_CONFIG_FILE", "OTHER_LISTEN"):
        monkeypatch.setenv(name, "")
    assert unknown_variables(MadeUpConfig) == []
    monkeypatch.setenv("MADEUP_LISTNE", "127.0.0.1:1")
    monkeypatch.setenv("MADEUP_WINDWO__LIMIT", "3")
    assert unknown_variables(MadeUpConfig) == ["MADEUP_LISTNE", "MADEUP_WINDWO__LIMIT"]


def test_a_service_without_a_prefix_claims_no_variable() -> None:
    assert unknown_variables(ServiceConfig) == []
