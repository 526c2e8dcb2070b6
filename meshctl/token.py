"""`meshctl token`: prints an access token that the local edge accepts."""

from __future__ import annotations

from typing import Annotated

import typer

from meshctl.edge.render import contract
from meshctl.edge.tokens import CHANNELS, Claims, DevKeys, parse_duration_s
from meshctl.options import DEFAULT_MESH, Mesh
from meshctl.stack.failures import StackError

_NEEDS_MERCHANT = "cashier"
_NEEDS_USER = "user"
ROLES = "cashier, user, operator, finance, risk, auditor"
_CLIENTS = {"cashier": "till-1", "user": "app", "auditor": "audit-desk"}
_OTHER_CLIENT = "back-office"


def token(
    *,
    role: Annotated[list[str], typer.Option(help=f"What the caller may be: {ROLES}; may be given several times.")],
    merchant: Annotated[str, typer.Option(help="The merchant a cashier acts for.")] = "",
    user: Annotated[str, typer.Option(help="The user id of a shopper.")] = "",
    client: Annotated[
        str, typer.Option(help="Which system calls. Default: till-1, app or audit-desk by role, else back-office.")
    ] = "",
    channel: Annotated[str, typer.Option(help=f"Sales channel: {', '.join(CHANNELS)}.")] = "",
    ttl: Annotated[str, typer.Option(help="How long it is valid: 90s, 15m, 1h, 7d.")] = "1h",
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Sign with a new key; Envoy knows it after a restart.")
    ] = False,
    mesh: Mesh = DEFAULT_MESH,
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
    client = client or _CLIENTS.get(role[0], _OTHER_CLIENT)
    claims = Claims(subject=user or client, roles=tuple(role), client_id=client, merchant_id=merchant, channel=channel)
    keys = DevKeys(mesh / "keys")
    if not keys.exist():
        raise StackError(
            f"there are no keys in {mesh.absolute()}, and no edge would know new ones: run `meshctl up` first, or name "
            "the stack's folder with --mesh"
        )
    if rotate:
        keys.rotate()
    try:
        print(keys.token(claims, ttl_s=parse_duration_s(ttl)))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--ttl") from error
