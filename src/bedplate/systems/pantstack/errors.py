"""Pantstack API reference: Error Handling. Five keys in every error, codes from the document's table."""

from collections.abc import Mapping
from datetime import datetime

from fastapi import Request
from pydantic import BaseModel

from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.envelope import Envelope
from bedplate.kernel.errors import Failure, FieldError, Kind, Problem, TooMany
from bedplate.modules.identity.public import TokenExpired

CODES: Mapping[Kind, str] = {
    Kind.INVALID: "VAL_001",
    Kind.UNAUTHENTICATED: "AUTH_001",
    Kind.FORBIDDEN: "AUTH_003",
    Kind.NOT_FOUND: "RES_001",
    Kind.CONFLICT: "RES_002",
    Kind.UNAVAILABLE: "SYS_002",
}


class UnknownApiVersion(Problem):
    kind = Kind.INVALID
    message = "Unknown API version; use v1 or v2"


class ErrorOut(BaseModel):
    """`error`: a code of the table. `request_id`: also in the X-Request-ID header and in the log."""

    error: str
    message: str
    details: dict[str, object] | None
    request_id: str
    timestamp: datetime


class PantstackEnvelope(Envelope):
    model = ErrorOut

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def body(self, failure: Failure) -> dict[str, object]:
        return {
            "error": _code(failure),
            "message": failure.message,
            "details": _details(failure),
            "request_id": failure.request_id,
            "timestamp": iso(self._clock.now()),
        }

    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        if any(error.type == "missing" for error in fields):
            return 400, "Missing required field"
        return 400, "Malformed JSON" if fields[0].type == "json_invalid" else "Validation error"


def _code(failure: Failure) -> str:
    if failure.fields:
        return "VAL_002" if any(error.type == "missing" for error in failure.fields) else "VAL_001"
    if isinstance(failure.problem, TokenExpired):
        return "AUTH_002"
    if failure.problem is not None and failure.problem.kind in CODES:
        return CODES[failure.problem.kind]
    return "SYS_001" if failure.status == 500 else f"HTTP_{failure.status}"


def _details(failure: Failure) -> dict[str, object] | None:
    if failure.fields:
        return {"fields": [{"field": error.field or "body", "reason": error.reason} for error in failure.fields]}
    problem = failure.problem
    if problem is not None and "field" in problem.details:
        return {"fields": [{"field": problem.details["field"], "reason": problem.details["reason"]}]}
    if isinstance(problem, TooMany):
        return {"retry_after": problem.details["retry_after"]}
    return None
