"""`meshctl audit`: verifies the audit trail and shows a coupon's journal, through the edge, as an auditor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from couponmesh.coupon.v1 import audit_pb2, coupon_pb2, coupon_service_pb2, coupon_service_pb2_grpc
from couponmesh.type.v1 import money_pb2
from meshctl.edge.tokens import Claims, DevKeys
from meshctl.options import DEFAULT_MESH, AsJson, Mesh
from meshctl.stack.failures import StackError
from meshctl.stack.stack import LocalStack

SHARDS = 128
_CALL_TIMEOUT_S = 9.0
_TOKEN_TTL_S = 3_600
# A verification that does not get on is not tried for ever.
_TRIES_WITHOUT_PROGRESS = 3
_FILE_WIDTH = 240
_FOUND = 1
_NOT_VERIFIED = 2

app = typer.Typer(no_args_is_help=True, help="Verifies the audit trail, and shows a coupon's journal.")


@dataclass
class Verdict:
    """What a verification came to."""

    findings: list[audit_pb2.AuditFinding] = field(default_factory=list)
    chains: int = 0
    rows: int = 0
    transactions: int = 0
    roots: int = 0
    seconds: float = 0.0

    def add(self, progress: audit_pb2.AuditProgress) -> None:
        """Adds what one stream did."""
        self.chains += progress.chains
        self.rows += progress.rows
        self.transactions += progress.transactions
        self.roots += progress.roots

    @property
    def rows_per_s(self) -> int:
        """Journal rows verified in a second."""
        return round(self.rows / self.seconds) if self.seconds else 0


class Desk:
    """An auditor's calls through the edge."""

    def __init__(self, stack: LocalStack) -> None:
        """Connects with the first call."""
        self._keys = DevKeys(stack.layout.mesh / "keys")
        credentials = grpc.ssl_channel_credentials(stack.envoy.authority.read_bytes())
        # The generated stubs are typed for asyncio; over this channel their methods block.
        channel: Any = grpc.secure_channel(stack.envoy.endpoint.removeprefix("https://"), credentials)
        self._channel = channel
        self.coupons: Any = coupon_service_pb2_grpc.CouponServiceStub(channel)

    def close(self) -> None:
        """Disconnects."""
        self._channel.close()

    def options(self) -> dict[str, Any]:
        """Deadline and a fresh token for a call."""
        claims = Claims(subject="meshctl", roles=("auditor",), client_id="meshctl")
        token = self._keys.token(claims, ttl_s=_TOKEN_TTL_S)
        return {"timeout": _CALL_TIMEOUT_S, "metadata": (("authorization", f"Bearer {token}"),)}

    def events(self, coupon_id: str) -> Iterator[coupon_pb2.AuditEvent]:
        """A coupon's journal, oldest first."""
        token = ""
        while True:
            request = coupon_service_pb2.ListAuditEventsRequest(coupon_id=coupon_id, page_size=500, page_token=token)
            reply = self.coupons.ListAuditEvents(request, **self.options())
            yield from reply.events
            token = reply.next_page_token
            if not token:
                return


def verify_scope(
    coupons: Any, scope: dict[str, Any], verdict: Verdict, options: Callable[[], dict[str, Any]]
) -> Iterator[audit_pb2.VerifyAuditTrailResponse]:
    """Verifies a scope to its end, over as many streams as it takes, and gives each message.

    Args:
        coupons: a blocking stub of CouponService.
        scope: one of coupon_id, user_id and shard.
        verdict: what is found is added here.
        options: deadline and metadata of each call.

    Raises:
        StackError: it was refused, or a stream broke, and broke again.
    """
    token, failures = "", 0
    while True:
        began = token
        last: audit_pb2.VerifyAuditTrailResponse | None = None
        try:
            request = audit_pb2.VerifyAuditTrailRequest(resume_token=token, **scope)
            for reply in coupons.VerifyAuditTrail(request, **options()):
                last = reply
                verdict.findings += reply.findings
                token = reply.resume_token
                yield reply
        except grpc.RpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise StackError(f"the verification was refused: {error.code().name} {error.details()}") from error
            failures = failures + 1 if token == began else 0
            if failures == _TRIES_WITHOUT_PROGRESS:
                raise StackError(f"the verification broke off: {error.code().name} {error.details()}") from error
        if last is not None:
            verdict.add(last.progress)
            if last.complete:
                return


@contextmanager
def _desk(mesh: Any) -> Iterator[Desk]:
    stack = LocalStack.running(mesh)
    if stack is None:
        raise StackError(f"nothing runs in {mesh}; `meshctl up` starts it")
    desk = Desk(stack)
    try:
        yield desk
    finally:
        desk.close()


@app.command()
def verify(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every shard.")] = False,
    coupon: Annotated[str, typer.Option(help="One coupon or batch, by its id.")] = "",
    user: Annotated[int | None, typer.Option(help="The coupons of a user.", min=1)] = None,
    shard: Annotated[int | None, typer.Option(help="One logical shard.", min=0, max=SHARDS - 1)] = None,
    mesh: Mesh = DEFAULT_MESH,
    as_json: AsJson = False,
) -> None:
    """Finds rows that were altered, removed, inserted, cut off or recomputed, and what no longer agrees with them.

    Exit status: 0 when the trail holds, 1 when something was found, 2 when it could not be verified.
    """
    scopes: list[dict[str, Any]] = [
        *([{"shard": number} for number in range(SHARDS)] if everything else []),
        *([{"coupon_id": coupon}] if coupon else []),
        *([{"user_id": user}] if user is not None else []),
        *([{"shard": shard}] if shard is not None else []),
    ]
    if not scopes or (len(scopes) > 1 and (coupon or user is not None or shard is not None)):
        raise typer.BadParameter("give exactly one of --all, --coupon, --user and --shard")
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    try:
        with _desk(mesh) as desk:
            verdict = _verify(desk, scopes, console)
    except StackError as error:
        console.print(f"[red]not verified:[/] {error}", markup=True)
        raise typer.Exit(_NOT_VERIFIED) from error
    if as_json:
        print(json.dumps(_as_dict(verdict), ensure_ascii=False))
    else:
        _show_verdict(verdict, console)
    if verdict.findings:
        raise typer.Exit(_FOUND)


def _verify(desk: Desk, scopes: Sequence[dict[str, Any]], console: Console) -> Verdict:
    verdict = Verdict()
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        for number, scope in enumerate(scopes):
            for reply in verify_scope(desk.coupons, scope, verdict, desk.options):
                verdict.seconds = time.monotonic() - began
                done = f"{number} of {len(scopes)} shards, " if len(scopes) > 1 else ""
                rows = verdict.rows + reply.progress.rows
                text = f"{done}{rows:,} rows, {rows / verdict.seconds:,.0f}/s, {len(verdict.findings)} findings"
                progress.update(task, description=text)
    verdict.seconds = time.monotonic() - began
    return verdict


def _show_verdict(verdict: Verdict, console: Console) -> None:
    for finding in verdict.findings:
        console.print(f"[bold red]{describe(finding)}[/]", markup=True)
        for each in finding.differences:
            text = f"    {each.field}: stored {each.stored}, expected {each.expected}"
            console.print(text, markup=False)
    console.print(
        f"{verdict.rows:,} rows of {verdict.chains:,} chains, {verdict.transactions:,} transactions, "
        f"{verdict.roots:,} signed roots in {verdict.seconds:.1f} s ({verdict.rows_per_s:,} rows/s)",
        markup=False,
    )
    if verdict.findings:
        console.print(f"{len(verdict.findings)} findings", style="bold red")
    else:
        console.print("the audit trail holds", style="bold green")


def describe(finding: audit_pb2.AuditFinding) -> str:
    """A finding in one line: what, where, why."""
    kind = audit_pb2.AuditFindingKind.Name(finding.kind).removeprefix("AUDIT_FINDING_KIND_")
    where = [f"shard {finding.shard}"]
    if finding.coupon_id:
        where.append(f"coupon {finding.coupon_id}")
    if finding.last_seq > finding.seq:
        where.append(f"rows {finding.seq} to {finding.last_seq}")
    elif finding.seq:
        where.append(f"row {finding.seq}")
    if finding.transaction_id:
        where.append(f"transaction {finding.transaction_id}")
    if finding.root_number:
        where.append(f"root {finding.root_number}")
    return f"{kind}: {', '.join(where)}: {finding.detail}"


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "holds": not verdict.findings,
        "findings": [
            {
                **MessageToDict(finding, preserving_proto_field_name=True),
                "kind": audit_pb2.AuditFindingKind.Name(finding.kind).removeprefix("AUDIT_FINDING_KIND_"),
            }
            for finding in verdict.findings
        ],
        "chains": verdict.chains,
        "rows": verdict.rows,
        "transactions": verdict.transactions,
        "roots": verdict.roots,
        "seconds": round(verdict.seconds, 3),
        "rows_per_s": verdict.rows_per_s,
    }


@app.command()
def show(
    coupon_id: Annotated[str, typer.Argument(help="The coupon or batch.")],
    *,
    mesh: Mesh = DEFAULT_MESH,
    as_json: AsJson = False,
) -> None:
    """Shows a coupon's journal, oldest row first, and says whether it holds. Amounts are yuan.

    Exit status: 0 when it holds, 1 when it doesn't, 2 when it could not be read.
    """
    console = _wide(Console(stderr=as_json, highlight=False))
    verdict = Verdict()
    try:
        with _desk(mesh) as desk:
            events = list(desk.events(coupon_id))
            for _ in verify_scope(desk.coupons, {"coupon_id": coupon_id}, verdict, desk.options):
                pass
    except StackError as error:
        console.print(f"[red]not shown:[/] {error}", markup=True)
        raise typer.Exit(_NOT_VERIFIED) from error
    except grpc.RpcError as error:
        console.print(f"[red]not shown:[/] {error.code().name} {error.details()}", markup=True)
        raise typer.Exit(_NOT_VERIFIED) from error
    if as_json:
        rows = [MessageToDict(event, preserving_proto_field_name=True) for event in events]
        print(json.dumps({"coupon_id": coupon_id, "events": rows, **_as_dict(verdict)}, ensure_ascii=False))
    else:
        console.print(_table(events, {finding.seq for finding in verdict.findings}))
        _show_verdict(verdict, console)
    if verdict.findings:
        raise typer.Exit(_FOUND)


def _wide(console: Console) -> Console:
    """A console whose tables are not folded where nobody looks at them."""
    return console if console.is_terminal else Console(stderr=console.stderr, highlight=False, width=_FILE_WIDTH)


def _table(events: Sequence[coupon_pb2.AuditEvent], marked: set[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("row", "right"), ("time (UTC)", "left"), ("kind", "left"), ("status", "left"), ("order", "right"),
        ("taken", "right"), ("balance", "right"), ("transaction", "left"), ("caller", "left"), ("request", "left"),
    ):  # fmt: skip
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]  # One of its literals.
    for event in events:
        table.add_row(
            str(event.seq),
            event.event_time.ToDatetime().isoformat(sep=" ", timespec="milliseconds"),
            coupon_pb2.AuditKind.Name(event.kind).removeprefix("AUDIT_KIND_"),
            _status(event),
            yuan(event.order_amount),
            yuan(event.deduction),
            yuan(event.balance_after),
            event.transaction_id or "-",
            event.caller,
            event.request_id,
            style="bold red" if event.seq in marked else "",
        )
    return table


def _status(event: coupon_pb2.AuditEvent) -> str:
    before, after = (
        coupon_pb2.CouponStatus.Name(status).removeprefix("COUPON_STATUS_")
        for status in (event.status_before, event.status_after)
    )
    return after if before in {after, "UNSPECIFIED"} else f"{before} → {after}"


def yuan(money: money_pb2.Money) -> str:
    """An amount with two decimals: 15000 fen → "150.00"."""
    return f"{Decimal(money.amount_minor) / 100:,.2f}"
