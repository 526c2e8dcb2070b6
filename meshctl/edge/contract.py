"""Reads from the descriptor set what the edge must know of the contract: routes, fields, roles and error reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

_PACKAGE = "couponmesh."
_VERBS = ("get", "put", "post", "delete", "patch")
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)\}")
_REASON_PREFIX = "ERROR_REASON_"
_ROLE_PREFIX = "ROLE_"
# These have a JSON form of their own (a string, a number, anything), so their fields are not looked at.
_WELL_KNOWN = "google.protobuf."


@dataclass(frozen=True, slots=True)
class Route:
    """One REST mapping of one RPC.

    Attributes:
        verb: HTTP method, upper case.
        template: the path as the contract has it, such as "/api/v1/batches/{batch_id}:block".
        request: full name of the request message.
        has_body: whether the request is the JSON body.
        variables: fields that the path gives.
        rpc: gRPC path, "/package.Service/Method".
    """

    verb: str
    template: str
    request: str
    has_body: bool
    variables: tuple[str, ...]
    rpc: str

    @property
    def lua_pattern(self) -> str:
        """A Lua pattern that matches exactly the paths of this template."""
        pattern = ""
        position = 0
        for variable in _VARIABLE.finditer(self.template):
            pattern += _lua_literal(self.template[position : variable.start()]) + "[^/:]+"
            position = variable.end()
        return f"^{pattern}{_lua_literal(self.template[position:])}$"


@dataclass(frozen=True, slots=True)
class Reason:
    """One error reason and what a caller sees for it.

    Attributes:
        name: without the ERROR_REASON_ prefix.
        grpc_code: number of the gRPC status.
        en: English message; {name} stands for a metadata value.
        zh: Chinese message, likewise.
        retry_after_ms: how long to wait before a retry; 0 when the reason is not retryable.
    """

    name: str
    grpc_code: int
    en: str
    zh: str
    retry_after_ms: int


class Contract:
    """The contract as its descriptor set states it."""

    def __init__(self, descriptor_set: bytes) -> None:
        """Args: descriptor_set: a serialized google.protobuf.FileDescriptorSet with all imports."""
        self._pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
        for file in files:
            self._pool.AddSerializedFile(file.SerializeToString())
        self._services = [
            self._pool.FindServiceByName(f"{file.package}.{service.name}")
            for file in files
            if file.package.startswith(_PACKAGE)
            for service in file.service
        ]

    @classmethod
    def load(cls, path: Path) -> Contract:
        """Reads the descriptor set from a file."""
        return cls(path.read_bytes())

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the services, sorted."""
        return tuple(sorted(service.full_name for service in self._services))

    def methods(self) -> dict[str, list[str]]:
        """Names of the RPCs of each service."""
        services = sorted(self._services, key=lambda service: service.full_name)
        return {service.full_name: [method.name for method in service.methods] for service in services}

    def routes(self) -> tuple[Route, ...]:
        """Every REST mapping, additional bindings included, in the contract's order.

        Raises:
            ValueError: an RPC has no mapping, or one of a form the edge does not know.
        """
        return tuple(route for service in self._services for route in self._service_routes(service))

    def _service_routes(self, service: ServiceDescriptor) -> Iterator[Route]:
        for method in service.methods:
            rule = self._option("google.protobuf.MethodOptions", "google.api.http", method)
            if rule is None:
                raise ValueError(f"{method.full_name} has no google.api.http mapping")
            for binding in (rule, *rule.additional_bindings):
                yield _route(service, method, binding)

    def fields(self) -> dict[str, dict[str, tuple[str, str]]]:
        """For each message that a request may hold: JSON name or proto name → (proto name, message or "").

        The message is "" for scalars, enums, maps and well-known types. Protobuf's JSON form takes both names of a
        field (https://protobuf.dev/programming-guides/json/).
        """
        table: dict[str, dict[str, tuple[str, str]]] = {}
        waiting = [self._pool.FindMessageTypeByName(name) for name in sorted({r.request for r in self.routes()})]
        while waiting:
            message = waiting.pop()
            if message.full_name in table:
                continue
            names: dict[str, tuple[str, str]] = {}
            for field in message.fields:
                nested = _nested(field)
                names[field.name] = names[field.json_name] = (field.name, nested.full_name if nested else "")
                if nested is not None:
                    waiting.append(nested)
            table[message.full_name] = names
        return dict(sorted(table.items()))

    def reasons(self, enum: str = "couponmesh.type.v1.ErrorReason") -> dict[str, Reason]:
        """Reasons of one enum by name, without the value that is never sent.

        Raises:
            ValueError: a value says nothing about what a caller sees.
        """
        found: dict[str, Reason] = {}
        for value in self._pool.FindEnumTypeByName(enum).values:
            if value.number == 0:
                continue
            spec = self._option("google.protobuf.EnumValueOptions", "couponmesh.type.v1.error", value)
            if spec is None:
                raise ValueError(f"{value.name} has no couponmesh.type.v1.error option")
            name = value.name.removeprefix(_REASON_PREFIX)
            wait_ms = spec.retry_after_ms if spec.retryable else 0
            found[name] = Reason(name=name, grpc_code=spec.code, en=spec.en, zh=spec.zh, retry_after_ms=wait_ms)
        return found

    def roles(self) -> tuple[str, ...]:
        """Names a token may carry: lower case, without the prefix; calls between services have no token."""
        values = self._pool.FindEnumTypeByName("couponmesh.type.v1.Role").values
        names = (value.name.removeprefix(_ROLE_PREFIX).lower() for value in values)
        return tuple(name for name in names if name not in {"unspecified", "service"})

    def _option(self, options: str, extension: str, described: Any) -> Any | None:
        """The value of a custom option, read with the descriptor set's own types; None when it is not set."""
        found = self._pool.FindExtensionByName(extension)
        message = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(options))
        parsed: Any = message.FromString(described.GetOptions().SerializeToString())
        return parsed.Extensions[found] if parsed.HasExtension(found) else None


def _route(service: ServiceDescriptor, method: MethodDescriptor, binding: Any) -> Route:
    verb = binding.WhichOneof("pattern")
    if verb not in _VERBS or binding.body not in {"", "*"}:
        raise ValueError(f'{method.full_name}: a mapping has one of {_VERBS} and no body or body "*"')
    template: str = getattr(binding, verb)
    return Route(
        verb=verb.upper(),
        template=template,
        request=method.input_type.full_name,
        has_body=binding.body == "*",
        variables=tuple(_VARIABLE.findall(template)),
        rpc=f"/{service.full_name}/{method.name}",
    )


def _nested(field: FieldDescriptor) -> Descriptor | None:
    message = field.message_type
    if message is None or message.full_name.startswith(_WELL_KNOWN) or message.GetOptions().map_entry:
        return None
    return message


def _lua_literal(text: str) -> str:
    """Escapes a text so that a Lua pattern matches it literally."""
    return re.sub(r"([^A-Za-z0-9_/])", r"%\1", text)
