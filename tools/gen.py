"""Generates `gen/` from `protos/`; with `--check` proves that what is committed is fresh.

Usage: python tools/gen.py [--check]
"""

from __future__ import annotations

import filecmp
import importlib.resources
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GEN = ROOT / "gen"
# google/* Python modules come from the googleapis-common-protos package, so only ours and buf's are generated.
OWN_PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
VENDORED_PROTOS = [ROOT / "vendor/buf/validate/validate.proto"]


def generate(out: Path) -> None:
    """Writes Python modules, type stubs and the descriptor set under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    includes = [ROOT / "protos", ROOT / "vendor", importlib.resources.files("grpc_tools") / "_proto"]
    services = [proto for proto in OWN_PROTOS if "\nservice " in proto.read_text(encoding="utf-8")]
    base = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in includes)]
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    messages = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    # mypy-protobuf names its option for async-only stubs `only_async`.
    stubs = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}"]
    descriptors = ["--include_imports", f"--descriptor_set_out={out / 'couponmesh.binpb'}"]
    # Error details travel inside google.rpc.Status; without their descriptors the edge transcodes an empty body.
    error_protos = [ROOT / "vendor/google/rpc" / name for name in ("status.proto", "error_details.proto")]
    for arguments in (
        [*plugins, *messages, *OWN_PROTOS, *VENDORED_PROTOS],
        [*plugins, *stubs, *services],
        [*descriptors, *OWN_PROTOS, *error_protos],
    ):
        subprocess.run([*base, *map(str, arguments)], check=True)
    for folder in [path for path in out.rglob("*") if path.is_dir()]:
        (folder / "__init__.py").touch()
        (folder / "py.typed").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Relative paths of files that differ between two trees or stand in one of them only."""
    names = {
        str(path.relative_to(root))
        for root in (left, right)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(
        name
        for name in names
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    """Returns 0 when `gen/` is (now) what `protos/` says, 1 when `--check` found it stale."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "gen"
        generate(fresh)
        stale = differences(fresh, GEN)
        if "--check" in sys.argv[1:]:
            for name in stale:
                print(f"gen/{name} is stale: run `make gen`", file=sys.stderr)
            return 1 if stale else 0
        shutil.rmtree(GEN, ignore_errors=True)
        shutil.copytree(fresh, GEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
