"""Builds the Python SDK: `dist/couponmesh_sdk-*.whl`, the generated `couponmesh.*` modules without any service.

The `buf.validate` rules are stripped from the descriptors first, so the wheel needs protobuf, grpcio and
googleapis-common-protos only: callers don't validate, servers do.

Usage: python tools/sdk.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message

from buf.validate import validate_pb2

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
SOURCE = ROOT / "sdk/python"
STAGE = ROOT / "build/sdk-python"
DIST = ROOT / "dist"
RULES_FILE = validate_pb2.DESCRIPTOR.name


def read_contract() -> FileDescriptorSet:
    """The contract with everything it imports and with its comments."""
    image = STAGE / "contract.binpb"
    subprocess.run([SCRIPTS / "buf", "build", "--as-file-descriptor-set", "-o", image], cwd=ROOT, check=True)
    return FileDescriptorSet.FromString(image.read_bytes())


def strip_rules(contract: FileDescriptorSet) -> FileDescriptorSet:
    """The same contract without `buf.validate`: neither its file, nor an import, nor an option of it."""
    stripped = FileDescriptorSet()
    for original in contract.file:
        if original.name == RULES_FILE:
            continue
        file = stripped.file.add()
        file.CopyFrom(original)
        kept = [name for name in file.dependency if name != RULES_FILE]
        del file.dependency[:]
        file.dependency.extend(kept)
        for element in elements(file):
            strip_options(element)
    return stripped


def elements(file: FileDescriptorProto) -> Iterator[Message]:
    """Every descriptor in a file that can carry options of `buf.validate`."""
    yield from file.extension
    yield from enum_elements(file.enum_type)
    for message in file.message_type:
        yield from message_elements(message)


def message_elements(message: DescriptorProto) -> Iterator[Message]:
    """A message, its fields and oneofs, and the same of the messages and enums within."""
    yield message
    yield from message.field
    yield from message.oneof_decl
    yield from message.extension
    yield from enum_elements(message.enum_type)
    for nested in message.nested_type:
        yield from message_elements(nested)


def enum_elements(enums: Iterable[EnumDescriptorProto]) -> Iterator[Message]:
    """Enums and their values."""
    for enum in enums:
        yield enum
        yield from enum.value


def strip_options(element: Message) -> None:
    """Clears the options of one element that `buf.validate` defines; options left empty go altogether."""
    options = element.options  # type: ignore[attr-defined]  # each descriptor of `elements` has them
    for field, _ in options.ListFields():
        if field.is_extension and field.file.name == RULES_FILE:
            options.ClearExtension(field)
    if not options.ByteSize():
        element.ClearField("options")


def generate(contract: FileDescriptorSet) -> None:
    """Writes the modules, stubs and `py.typed` markers of the couponmesh packages into the stage."""
    image = STAGE / "sdk.binpb"
    image.write_bytes(contract.SerializeToString())
    ours = [file for file in contract.file if file.package.startswith("couponmesh.")]
    plugins = [f"--plugin=protoc-gen-{name}={SCRIPTS / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    base = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={image}", *plugins]
    messages = [f"--python_out={STAGE}", f"--mypy_out=quiet:{STAGE}"]
    stubs = [f"--grpc_python_out={STAGE}", f"--mypy_grpc_out=quiet:{STAGE}"]
    subprocess.run([*base, *messages, *(file.name for file in ours)], check=True)
    subprocess.run([*base, *stubs, *(file.name for file in ours if file.service)], check=True)
    package = STAGE / "couponmesh"
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
        (folder / "py.typed").touch()


def main() -> int:
    """Builds the wheel and prints its path."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(SOURCE, STAGE)
    shutil.copy(ROOT / "LICENSE", STAGE)
    generate(strip_rules(read_contract()))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(DIST), str(STAGE)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    for wheel in sorted(DIST.glob("couponmesh_sdk-*.whl")):
        print(wheel.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
