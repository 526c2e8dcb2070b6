"""`meshctl reconcile`: proves that issued = available + held + consumed - refunded + expired + recalled."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from coupon_svc.adapters.mysql_books import MysqlBookStore
from coupon_svc.app.reconcile import Reconcile, Reconciliation
from coupon_svc.domain.reconciliation import BatchBooks, Sums
from meshctl.options import DEFAULT_MESH, AsJson, Mesh
from meshctl.stack.databases import read_maps
from meshctl.stack.failures import StackError
from meshctl.stack.layout import Layout
from meshkit.mysql import Databases
from meshkit.mysql_errors import DatabaseError

_TIMEOUT_S = 60.0
_FOUND = 1
_NOT_RECONCILED = 2
_COLUMNS = ("issued", "available", "held", "consumed", "refunded", "expired", "recalled")


def reconcile(
    *,
    shards: Annotated[bool, typer.Option("--shards", help="Show each shard of a batch.")] = False,
    mesh: Mesh = DEFAULT_MESH,
    as_json: AsJson = False,
) -> None:
    """Compares every coupon with its journal, and every batch with its draws, straight in the databases.

    It locks nothing and may run while coupons are consumed. Exit status: 0 when the books agree, 1 when they don't, 2
    when they could not be read.
    """
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    try:
        result = asyncio.run(reconcile_all(Layout.of(mesh)))
    except (StackError, DatabaseError) as error:
        console.print(f"[red]not reconciled:[/] {error}", markup=True)
        raise typer.Exit(_NOT_RECONCILED) from error
    if as_json:
        print(json.dumps(_as_dict(result), ensure_ascii=False))
    else:
        _show(result, console, each_shard=shards)
    if not result.agrees:
        raise typer.Exit(_FOUND)


async def reconcile_all(layout: Layout) -> Reconciliation:
    """Reconciles every shard of the coupon databases of a stack.

    Raises:
        StackError: the stack was never started here.
        DatabaseError: a database is away.
    """
    result = Reconciliation()
    async with Databases.open(read_maps(layout)["coupon"], pool_size=2) as databases:
        every = sorted(shard for database in databases.all for shard in database.shards)
        async for _ in Reconcile(MysqlBookStore(databases, timeout_s=_TIMEOUT_S))(every, result):
            pass
    return result


def _show(result: Reconciliation, console: Console, *, each_shard: bool) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("batch", no_wrap=True)
    table.add_column("shard", justify="right")
    table.add_column("of")
    for name in (*_COLUMNS, "moved", "difference"):
        table.add_column(name, justify="right")
    for batch_id, books in sorted(result.of_batches().items()):
        _add(table, batch_id, "all", books)
        if each_shard:
            of_batch = sorted((key.shard, each) for key, each in result.books.items() if key.batch_id == batch_id)
            for shard, each in of_batch:
                _add(table, "", str(shard), each)
    console.print(table)
    for found in result.disagreements:
        where = f"coupon {found.coupon_id}" if found.coupon_id else f"batch {found.batch_id}"
        console.print(f"[bold red]shard {found.shard}, {where}:[/] {found.problem}", markup=True)
    verdict = "the books agree" if result.agrees else f"the books do not agree: {len(result.disagreements)} differences"
    console.print(f"{result.coupons:,} coupons; {verdict}", style="bold green" if result.agrees else "bold red")


def _add(table: Table, batch_id: str, shard: str, books: BatchBooks) -> None:
    for unit, sums in (("coupons", books.coupons), ("yuan", books.minor)):
        if unit == "yuan" and sums == Sums():
            continue
        values = [getattr(sums, name) for name in _COLUMNS]
        values += [sums.moved_in - sums.moved_out, sums.difference]
        cells = [f"{Decimal(value) / 100:,.2f}" if unit == "yuan" else f"{value:,}" for value in values]
        table.add_row(batch_id, shard, unit, *cells, style="bold red" if sums.difference else "")


def _as_dict(result: Reconciliation) -> dict[str, Any]:
    return {
        "agrees": result.agrees,
        "coupons": result.coupons,
        "books": [
            {
                "batch_id": key.batch_id,
                "shard": key.shard,
                "coupons": {**asdict(books.coupons), "difference": books.coupons.difference},
                "minor": {**asdict(books.minor), "difference": books.minor.difference},
            }
            for key, books in sorted(result.books.items())
        ],
        "disagreements": [asdict(each) for each in result.disagreements],
    }
