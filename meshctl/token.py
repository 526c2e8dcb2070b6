"""`meshctl token`: prints an access token that the local edge accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meshctl.edge.render import contract
from meshctl.edge.tokens import CHANNELS, Claims, DevKeys, parse_duration_s

_NEEDS_MERCHANT = "cashier"
_NEEDS_USER = "user"


def token(
    *,
    role: Annotated[list[str], typer.Option(help="What the caller may be; may be given several times.")],
    merchant: Annotated[str, typer.Option(help="The merchant a cashier acts for.")] = "",
    user: Annotated[str, typer.Option(help="The user id of a shopper.")] = "",
    client: Annotated[str, typer.Option(help="Which system calls.")] = "till-1",
    channel: Annotated[str, typer.Option(help=f"Sales channel: {', '.join(CHANNELS)}.")] = "",
    ttl: Annotated[str, typer.Option(help="How long it is valid: 90s, 15m, 1h, 7d.")] = "1h",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Sign with a new key; Envoy knows it after a restart.")
    ] = False,
    mesh: Annotated[Path, typer.Option(help="The stack's folder.")] = Path(".mesh"),
) -> None:
    """Prints a token, signed with the development key under the stack's folder, on one line."""
    roles = contract().roles()
    unknown = [name for name in role if name not in roles]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(roles)}", param_hint="--role")
    if _NEEDS_MERCHANT in role and not merchant:
        raise typer.BadParameter("a cashier acts for one merchant", param_hint="--merchant")
    if _NEEDS_USER in role and not user:
        raise typer.BadParameter("a shopper has a user id", param_hint="--user")
    if user and not user.isdecimal():
        raise typer.BadParameter("a user id is a number", param_hint="--user")
    if channel and channel not in CHANNELS:
        raise typer.BadParameter(f"not one of {', '.join(CHANNELS)}", param_hint="--channel")
    claims = Claims(subject=user or client, roles=tuple(role), client_id=client, merchant_id=merchant, channel=channel)
    keys = DevKeys(mesh / "keys")
    if rotate:
        keys.rotate()
    try:
        print(keys.token(claims, ttl_s=parse_duration_s(ttl)))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--ttl") from error
