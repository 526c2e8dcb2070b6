import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\w.!+]+)[^\n]*((?:\n    --hash=\S+(?: \\)?)*)", LOCK, re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SDK = tomllib.loads((ROOT / "sdk/python/pyproject.toml").read_text(encoding="utf-8"))


def versions_of(name: str) -> list[Version]:
    return [Version(version) for pinned, version, _ in PINS if canonicalize_name(pinned) == canonicalize_name(name)]


def declared() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    return [*PROJECT["project"]["dependencies"], *extras["stack"], *extras["dev"], *PROJECT["build-system"]["requires"]]


@pytest.mark.parametrize("line", declared())
def test_each_declared_requirement_is_pinned_within_its_range(line: str) -> None:
    requirement = Requirement(line)
    pinned = versions_of(requirement.name)
    assert pinned, f"{requirement.name} is not in requirements.lock: run `make lock`"
    assert all(version in requirement.specifier for version in pinned), f"{line} but locked at {pinned}"


def test_each_pin_carries_a_hash() -> None:
    assert len(PINS) > 50
    assert [name for name, _, hashes in PINS if "--hash=sha256:" not in hashes] == []


def test_the_lock_names_no_index_and_no_host() -> None:
    assert re.findall(r"(?m)^--?\w.*|.*://.*", LOCK) == []


def test_the_sdk_asks_for_no_older_runtime_than_its_stubs_were_generated_with() -> None:
    message = (ROOT / "gen/couponmesh/type/v1/money_pb2.py").read_text(encoding="utf-8")
    stub = (ROOT / "gen/couponmesh/risk/v1/risk_service_pb2_grpc.py").read_text(encoding="utf-8")
    generated_with = {
        "protobuf": re.search(r"# Protobuf Python Version: (\S+)", message),
        "grpcio": re.search(r"GRPC_GENERATED_VERSION = '(\S+)'", stub),
    }
    floors = {
        requirement.name: requirement.specifier for requirement in map(Requirement, SDK["project"]["dependencies"])
    }
    for name, found in generated_with.items():
        assert found is not None, name
        assert str(floors[name]) == f">={found[1]}"


def test_the_sdk_has_the_version_of_the_project() -> None:
    assert SDK["project"]["version"] == PROJECT["project"]["version"]
