"""`meshctl migrate`: brings the schemas of a running stack up to date."""

from __future__ import annotations

import asyncio
import json

from meshctl.options import DEFAULT_MESH, AsJson, Mesh
from meshctl.stack.databases import migrate_all, read_maps
from meshctl.stack.layout import Layout


def migrate(mesh: Mesh = DEFAULT_MESH, as_json: AsJson = False) -> None:
    """Applies the migrations that a database of the shard maps doesn't have yet; `meshctl up` does so by itself."""
    done = asyncio.run(migrate_all(read_maps(Layout.of(mesh))))
    if as_json:
        entries = [{"service": e.service, "database": e.database, "applied": list(e.applied)} for e in done]
        print(json.dumps({"databases": entries}))
        return
    for entry in done:
        print(f"{entry.database:<12} {', '.join(entry.applied) or 'up to date'}")
