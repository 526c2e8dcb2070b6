"""Sends the demonstration's calls through Envoy and prints each with its reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from rich.console import Console

_TIMEOUT_S = 10.0
_SHOWN_TOKEN = "$TOKEN"  # noqa: S105 - what stands for a token on the screen


class UnexpectedReplyError(Exception):
    """A reply was not what it must be; the message says which part."""


@dataclass(frozen=True, slots=True)
class RestReply:
    """An HTTP reply: its status, its body as sent, and the envelope inside."""

    status: int
    text: str
    envelope: Mapping[str, Any]

    @property
    def data(self) -> Mapping[str, Any]:
        """The envelope's data; empty for a refusal."""
        data: Mapping[str, Any] = self.envelope.get("data", {})
        return data


def expect(got: object, wanted: object, what: str) -> None:
    """Compares one part of a reply.

    Raises:
        UnexpectedReplyError: they differ.
    """
    if got != wanted:
        raise UnexpectedReplyError(f"{what} must be {wanted!r}, but is {got!r}")


class Rest:
    """REST calls over HTTPS, as a cashier or an operator sends them."""

    def __init__(self, base_url: str, authority: Path, console: Console) -> None:
        """`authority` is the certificate that vouches for the edge."""
        self._client = httpx.Client(base_url=base_url, verify=_trusting(authority), timeout=_TIMEOUT_S)
        self._console = console

    def __enter__(self) -> Self:
        """Opens connections as they are needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes them."""
        self._client.close()

    def post(self, path: str, body: object, *, token: str, key: str = "", status: int = 200) -> RestReply:
        """Sends JSON; a text is sent byte for byte as it is. `key` becomes the Idempotency-Key header.

        Raises:
            UnexpectedReplyError: the HTTP status or the envelope's code is another.
        """
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        if key:
            headers["idempotency-key"] = key
        return self._send("POST", path, headers, text, status)

    def get(self, path: str, *, token: str, status: int = 200) -> RestReply:
        """Asks; raises UnexpectedReplyError as `post` does."""
        return self._send("GET", path, {"authorization": f"Bearer {token}"}, "", status)

    def _send(self, method: str, path: str, headers: dict[str, str], text: str, status: int) -> RestReply:
        shown = {**headers, "authorization": f"Bearer {_SHOWN_TOKEN}"}
        extra = "".join(f" -H '{name}: {value}'" for name, value in shown.items() if name == "idempotency-key")
        self._console.print(f"  → {method} {path}{extra}", style="cyan", highlight=False, markup=False)
        if text:
            self._console.print(f"    {text}", highlight=False, markup=False)
        reply = self._client.request(
            method, path, headers={**headers, "accept-language": "en"}, content=text.encode() or None
        )
        self._console.print(f"  ← HTTP {reply.status_code}", style="green", highlight=False, markup=False)
        self._console.print(f"    {reply.text}", highlight=False, markup=False)
        envelope = reply.json()
        expect(reply.status_code, status, "the HTTP status")
        expect(envelope.get("code"), status, "the envelope's code")
        return RestReply(reply.status_code, reply.text, envelope)


class Grpc:
    """Native gRPC calls through the same port."""

    def __init__(self, target: str, authority: Path, console: Console) -> None:
        """`authority` is the certificate that vouches for the edge."""
        # The generated stubs are typed for asyncio; over this channel their methods block.
        self.channel: Any = grpc.secure_channel(target, grpc.ssl_channel_credentials(authority.read_bytes()))
        self._console = console

    def __enter__(self) -> Self:
        """Connects with the first call."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        self.channel.close()

    def call(self, method: Any, request: Message, *, token: str) -> Any:
        """Calls a stub's method and gives the reply."""
        self._show("→", "cyan", type(request).DESCRIPTOR.full_name, request)
        reply = method(request, timeout=_TIMEOUT_S, metadata=(("authorization", f"Bearer {token}"),))
        self._show("←", "green", "OK", reply)
        return reply

    def refused(self, method: Any, request: Message, *, token: str) -> tuple[str, str]:
        """Calls a method that must refuse; gives the status name and the reason.

        Raises:
            UnexpectedReplyError: it was accepted.
        """
        self._show("→", "cyan", type(request).DESCRIPTOR.full_name, request)
        try:
            method(request, timeout=_TIMEOUT_S, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            reason = _reason(error)
            text = f"  ← {error.code().name} {reason}: {error.details()}"
            self._console.print(text, style="green", highlight=False, markup=False)
            return error.code().name, reason
        raise UnexpectedReplyError("the call must be refused, but was accepted")

    def _show(self, arrow: str, style: str, title: str, message: Message) -> None:
        body = json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)
        self._console.print(f"  {arrow} gRPC {title}", style=style, highlight=False, markup=False)
        self._console.print(f"    {body}", highlight=False, markup=False)


def _reason(error: Any) -> str:
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return str(info.reason)
    return ""


def _trusting(authority: Path) -> Any:
    return httpx.create_ssl_context(verify=str(authority))
