"""A chapter of the demonstration: many codes are issued by a job, a file is imported, and codes are exported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from meshctl.demo.calls import Rest, UnexpectedReplyError, expect
from meshctl.demo.people import Step, Tokens, cny

_SHOPPER = 20_251_114
_EXPIRES = "2036-01-01T00:00:00+08:00"
_QUANTITY = 5_000
_LOOK_EVERY_S = 0.5
_JOB_TIMEOUT_S = 60.0


class JobChapter:
    """Tells it over REST."""

    def __init__(self, rest: Rest, tokens: Tokens) -> None:
        """The way through the edge, and who speaks."""
        self._rest = rest
        self._tokens = tokens
        self._batch_id = ""
        self._job_id = ""
        self._code = ""

    def steps(self) -> list[Step]:
        """Titles and what they do, in order."""
        return [
            (f"An operator asks for {_QUANTITY:,} codes: the answer is a job", self.issue),
            ("The job tells how far it is", self.watch),
            ("The codes are exported as CSV, page by page", self.export),
            ("An auditor sees the same file with masked codes", self.export_masked),
            ("A code out of the file is activated for a shopper", self.activate),
            ("A file of another system with a wrong line: the line is named, nothing is imported", self.import_wrong),
            ("The corrected file is imported as a whole", self.import_right),
        ]

    def issue(self) -> None:
        """Above 1,000."""
        body: dict[str, Any] = {
            "request_id": "demo-bulk-batch",
            "name": "Demo bulk",
            "terms": {"cash_voucher": {"face_value": cny("5.00")}, "expires_at": _EXPIRES},
            "total_quantity": "10000",
        }
        batch = self._rest.post("/api/v1/batches", body, token=self._tokens.operator).data["batch"]
        self._batch_id = batch["batch_id"]
        body = {"request_id": "demo-bulk-issue", "quantity": _QUANTITY}
        path = f"/api/v1/batches/{self._batch_id}/coupons:issue"
        reply = self._rest.post(path, body, token=self._tokens.operator)
        expect(reply.data["job"]["state"], "JOB_STATE_RUNNING", "state")
        self._job_id = reply.data["job"]["job_id"]
        again = self._rest.post(path, body, token=self._tokens.operator)
        expect(again.text, reply.text, "the reply to the same request")

    def watch(self) -> None:
        """Until it has ended."""
        job = self._ended(self._job_id)
        expect((job["state"], job["done_count"]), ("JOB_STATE_SUCCEEDED", _QUANTITY), "the job")

    def export(self) -> None:
        """Two lines, and the whole."""
        page = self._export(self._tokens.operator, 2)
        header, first, _ = page["csv"].splitlines()
        expect(header, "coupon_id,code,status", "the header")
        self._code = first.split(",")[1]
        expect(bool(page["next_page_token"]), True, "whether there are more pages")

    def export_masked(self) -> None:
        """The same two lines."""
        _, first, _ = self._export(self._tokens.auditor, 2)["csv"].splitlines()
        expect(first.split(",")[1], f"****-****-{self._code[-4:]}", "the code")

    def activate(self) -> None:
        """By its code."""
        body = {"request_id": "demo-bulk-activate", "code": self._code, "user_id": str(_SHOPPER)}
        reply = self._rest.post("/api/v1/coupon/activate", body, token=self._tokens.operator)
        expect(reply.data["coupon"]["status"], "COUPON_STATUS_ACTIVATED", "status")

    def import_wrong(self) -> None:
        """Line 3 repeats line 1."""
        job = self._import("demo-import-wrong", ["PARTNER-0001", f"PARTNER-0002,{_SHOPPER}", "partner0001"])
        expect((job["state"], job["error_reason"]), ("JOB_STATE_FAILED", "CODE_DUPLICATED"), "the job")
        reply = self._rest.get(f"/api/v1/jobs/{job['job_id']}", token=self._tokens.operator)
        expect([(each["line"], each["field"]) for each in reply.data["line_errors"]], [(3, "code")], "the wrong lines")

    def import_right(self) -> None:
        """Three lines."""
        job = self._import("demo-import-right", ["PARTNER-0001", f"PARTNER-0002,{_SHOPPER}", "PARTNER-0003"])
        expect((job["state"], job["done_count"]), ("JOB_STATE_SUCCEEDED", 3), "the job")

    def _export(self, token: str, page_size: int) -> Mapping[str, Any]:
        path = f"/api/v1/batches/{self._batch_id}/codes:export"
        return self._rest.post(path, {"job_id": self._job_id, "page_size": page_size}, token=token).data

    def _import(self, request_id: str, lines: list[str]) -> Mapping[str, Any]:
        body = {"request_id": request_id, "csv": "\n".join(["code,user_id", *lines]) + "\n"}
        path = f"/api/v1/batches/{self._batch_id}/codes:import"
        reply = self._rest.post(path, body, token=self._tokens.operator)
        return self._ended(reply.data["job"]["job_id"])

    def _ended(self, job_id: str) -> Mapping[str, Any]:
        give_up = time.monotonic() + _JOB_TIMEOUT_S
        while time.monotonic() < give_up:
            job: Mapping[str, Any] = self._rest.get(f"/api/v1/jobs/{job_id}", token=self._tokens.operator).data["job"]
            if job["state"] != "JOB_STATE_RUNNING":
                return job
            time.sleep(_LOOK_EVERY_S)
        raise UnexpectedReplyError(f"job {job_id} must end within {_JOB_TIMEOUT_S:.0f} s")
