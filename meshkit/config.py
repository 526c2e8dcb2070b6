"""Owns how a service reads its configuration: environment over TOML file, one frozen object, every fault at once."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

HostPort = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[0-9A-Za-z._-]+):[0-9]{1,5}$")]


class ConfigError(Exception):
    """Every fault of a configuration; values are never part of the text, since they may be secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("configuration is not valid:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


class _ForgivingEnvironment(EnvSettingsSource):
    """Hands text that is not JSON on as it is, so that its field is named together with all other faults."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class ServiceConfig(BaseSettings):
    """What every service can be told; a subclass sets `env_prefix` and adds its own.

    `<PREFIX>CONFIG_FILE` may name a TOML file; the environment wins over it.
    """

    model_config = SettingsConfigDict(
        env_nested_delimiter="__",
        # A variable set to nothing counts as not set.
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    service_name: str = "mesh"
    # Port 0 lets the system choose.
    listen: HostPort = "127.0.0.1:50051"
    metrics_listen: HostPort = "127.0.0.1:9464"
    zookeeper: str = "127.0.0.1:2181"
    zookeeper_root: Annotated[str, Field(pattern=r"^/[0-9A-Za-z/_.-]*[^/]$")] = "/couponmesh"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console"] = "json"
    # Between NOT_SERVING and the refusal of new calls, in seconds: what a load balancer needs to notice.
    drain_s: Annotated[float, Field(ge=0, le=300)] = 2.0
    # How long running calls may take to finish after that, in seconds.
    grace_s: Annotated[float, Field(ge=0, le=300)] = 10.0
    # For callers that state no deadline; and the longest that a stated one is honoured.
    default_deadline_ms: Annotated[int, Field(ge=1, le=600_000)] = 5_000
    max_deadline_ms: Annotated[int, Field(ge=1, le=600_000)] = 60_000
    # Calls being served at once; the next one is OVERLOADED.
    max_in_flight: Annotated[int, Field(ge=1)] = 8_192
    max_message_bytes: Annotated[int, Field(ge=1_024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    # Lets deliberate workers share a port; otherwise a second server on it must fail.
    so_reuseport: bool = False
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    # Spans as JSON lines; none are recorded without it.
    trace_file: Path | None = None
    shard_map_file: Path | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file; nothing else is read."""
        del env_settings, dotenv_settings, file_secret_settings
        path = _file_named(settings_cls)
        sources: list[PydanticBaseSettingsSource] = [init_settings, _ForgivingEnvironment(settings_cls)]
        if path is not None and _file_problem(path) is None:
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=path))
        return tuple(sources)


C = TypeVar("C", bound=ServiceConfig)


def parse(cls: type[C]) -> C:
    """Reads the configuration from environment and file.

    Raises:
        ConfigError: Names every bad value, by the variable that sets it.
    """
    problems: list[str] = []
    path = _file_named(cls)
    fault = _file_problem(path) if path is not None else None
    if fault is not None:
        problems.append(f"{_prefix(cls)}CONFIG_FILE: {fault}")
    try:
        config = cls()
    except ValidationError as error:
        problems.extend(f"{_variable(cls, fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return config


def load(cls: type[C]) -> C:
    """As `parse`, for a process's start: a bad configuration is printed on stderr and ends it with status 2."""
    try:
        return parse(cls)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def unknown_variables(cls: type[ServiceConfig]) -> list[str]:
    """Names of variables with the service's prefix that set nothing, such as misspelt ones, in order."""
    prefix = _prefix(cls).upper()
    if not prefix:
        return []
    known = {"CONFIG_FILE", *(name.upper() for name in cls.model_fields)}
    delimiter = cls.model_config.get("env_nested_delimiter") or "__"
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(prefix) and name.upper().removeprefix(prefix).partition(delimiter)[0] not in known
    )


def _prefix(cls: type[BaseSettings]) -> str:
    return cls.model_config.get("env_prefix", "")


def _variable(cls: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    return _prefix(cls) + "__".join(str(part).upper() for part in location)


def _file_named(cls: type[BaseSettings]) -> Path | None:
    name = os.environ.get(f"{_prefix(cls)}CONFIG_FILE", "")
    return Path(name) if name else None


def _file_problem(path: Path) -> str | None:
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path} is not TOML: {error}"
    return None
