import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = str(Path(sysconfig.get_path("scripts")) / "uv")

PROGRAM = """
import importlib.util
import grpc
from couponmesh.coupon.v1 import cashier_service_pb2, cashier_service_pb2_grpc, coupon_service_pb2_grpc
from couponmesh.risk.v1 import risk_service_pb2_grpc

for absent in ("coupon_svc", "risk_svc", "settle_svc", "campaign_svc", "meshkit", "meshctl", "buf", "protovalidate"):
    assert importlib.util.find_spec(absent) is None, absent

request = cashier_service_pb2.ConsumeRequest(coupon_code="7XK9-B2T4", merchant_id="10086", amount=150.0)
assert cashier_service_pb2.ConsumeRequest.FromString(request.SerializeToString()) == request
with grpc.insecure_channel("127.0.0.1:1") as channel:
    cashier = cashier_service_pb2_grpc.CashierServiceStub(channel)
    coupon_service_pb2_grpc.CouponServiceStub(channel)
    risk_service_pb2_grpc.RiskServiceStub(channel)
    try:
        cashier.Consume(request, timeout=5)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    else:
        raise AssertionError("nothing listens on port 1")
print("works")
"""


def command(*arguments: str | Path) -> str:
    done = subprocess.run(list(map(str, arguments)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    [path] = [line for line in command(sys.executable, "tools/sdk.py").splitlines() if line.startswith("dist/")]
    return ROOT / path


def test_the_wheel_holds_typed_stubs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"couponmesh", "couponmesh_sdk"}
    assert {"couponmesh/py.typed", "couponmesh/coupon/v1/coupon_service_pb2_grpc.pyi"} <= set(names)


def test_the_wheel_speaks_of_no_validation_rule(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        speaking = [name for name in archive.namelist() if b"buf.validate" in archive.read(name)]
    assert speaking == []


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    command(UV, "venv", "-q", "--no-project", "--python", sys.executable, environment)
    python = environment / "bin/python"
    # The versions of the lock, so that what was downloaded at set-up serves again.
    command(UV, "pip", "install", "-q", "--python", python, "--constraint", "requirements.lock", wheel)
    assert command(python, "-I", "-c", PROGRAM) == "works\n"
    installed = {line.split("==")[0] for line in command(UV, "pip", "freeze", "--python", python).splitlines()}
    assert {name.split(" ")[0] for name in installed} == {
        "couponmesh-sdk",
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
        "typing-extensions",
    }
