"""`meshctl certs`: makes the development certificate when needed and says where it is."""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated

import typer

from meshctl.edge.certificates import ensure_certificate, make_certificate
from meshctl.options import DEFAULT_MESH, AsJson, Mesh


def certs(
    renew: Annotated[bool, typer.Option("--renew", help="Make a new one now; Envoy shows it after a restart.")] = False,
    mesh: Mesh = DEFAULT_MESH,
    as_json: AsJson = False,
) -> None:
    """Prints the paths of the listener's certificate and of the authority that clients must trust."""
    folder = mesh / "certs"
    files = make_certificate(folder, now=dt.datetime.now(dt.UTC)) if renew else ensure_certificate(folder)
    paths = {"authority": str(files.authority), "certificate": str(files.chain), "private_key": str(files.private_key)}
    if as_json:
        print(json.dumps(paths))
        return
    for name, path in paths.items():
        print(f"{name.replace('_', ' '):<12} {path}")
