"""`meshctl demo`: starts a stack of its own, tells the story, stops it."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import httpx
import typer
from rich.console import Console

from meshctl.demo.calls import Grpc, Rest, UnexpectedReplyError
from meshctl.demo.people import MERCHANT, Tokens
from meshctl.demo.story import Story
from meshctl.edge.certificates import EdgeCertificate
from meshctl.edge.tokens import Claims, DevKeys
from meshctl.stack.failures import StackError
from meshctl.stack.stack import LocalStack, Observer, StackSettings

_TOKEN_TTL_S = 3600


def run() -> None:
    """Starts a private stack, shows coupons from issue to journal over HTTPS and gRPC, and stops it.

    Exits with 0 only if every reply was as it must be; then nothing is left behind, nor when nothing was started.
    """
    console = Console(soft_wrap=True)
    mesh = Path(tempfile.mkdtemp(prefix="couponmesh-demo-"))
    began = time.monotonic()
    try:
        stack = LocalStack.plan(mesh, StackSettings(https_port=None), observe=_narrator(console))
    except BaseException:
        # Nothing ran, so there is nothing to look at.
        shutil.rmtree(mesh, ignore_errors=True)
        raise
    try:
        stack.start()
        try:
            console.print(f"The stack is up after {time.monotonic() - began:.1f} s.\n", style="bold")
            steps = _tell(stack, mesh, console)
        finally:
            stack.stop()
    except (StackError, UnexpectedReplyError, httpx.HTTPError, KeyError, ValueError) as error:
        console.print(f"\nThe demo failed: {error}", style="bold red", highlight=False, markup=False)
        console.print(f"Logs and data are kept in {mesh}.", highlight=False, markup=False)
        raise typer.Exit(1) from error
    shutil.rmtree(mesh)
    console.print(
        f"\nAll {steps} steps were as they must be; {time.monotonic() - began:.1f} s in all.", style="bold green"
    )


def _tell(stack: LocalStack, mesh: Path, console: Console) -> int:
    keys = DevKeys(mesh / "keys")
    authority = EdgeCertificate.under(mesh / "certs").authority
    tokens = Tokens(
        operator=_token(keys, "operator", client="back-office"),
        cashier=_token(keys, "cashier", client="till-7", merchant=MERCHANT),
        auditor=_token(keys, "auditor", client="audit-desk"),
        risk=_token(keys, "risk", client="risk-desk"),
    )
    port = stack.envoy.port
    with (
        Rest(f"https://localhost:{port}", authority, console) as rest,
        Grpc(f"localhost:{port}", authority, console) as grpc,
    ):
        return Story(rest, grpc, tokens, console, stack).tell()


def _token(keys: DevKeys, role: str, *, client: str, merchant: str = "") -> str:
    return keys.token(Claims(subject=client, roles=(role,), client_id=client, merchant_id=merchant), ttl_s=_TOKEN_TTL_S)


def _narrator(console: Console) -> Observer:
    def narrate(component: str, step: str, detail: str) -> None:
        if step in {"ready", "failed"}:
            console.print(f"  {component} {step} {detail}", style="dim", highlight=False, markup=False)

    return narrate
