"""Dev-PyNode API reference: Error Responses. Under /v1 errors have the shape that OpenAI's clients read."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from bedplate.kernel.envelope import Envelope
from bedplate.kernel.errors import STATUSES, Failure, FieldError, InvalidField, Kind, Problem, reason_of
from bedplate.modules.chat.public import (
    AnswerInterrupted,
    ModelBusy,
    ModelRefused,
    ModelSilent,
    ModelUnavailable,
    PromptTooLong,
    TokenBudgetExceeded,
    UnknownModel,
)
from bedplate.modules.files.public import FileTooLarge, StorageQuotaExceeded, TextNotReady
from bedplate.modules.identity.public import AccountDisabled, EmailTaken, InvalidCredentials

# The document's codes and words, by status.
DOCUMENTED: Mapping[int, tuple[str, str]] = {
    400: ("INVALID_PARAMETERS", "Invalid request parameters"),
    401: ("AUTHENTICATION_REQUIRED", "Authentication required"),
    403: ("INSUFFICIENT_PERMISSIONS", "Insufficient permissions"),
    404: ("RESOURCE_NOT_FOUND", "Resource not found"),
    429: ("RATE_LIMIT_EXCEEDED", "Rate limit exceeded"),
    500: ("INTERNAL_ERROR", "An unexpected error occurred"),
}
# Ours, for statuses of which it says nothing. A problem has its own words for the message.
CODES: Mapping[int, tuple[str, str]] = {
    **DOCUMENTED,
    405: ("METHOD_NOT_ALLOWED", "Method not allowed"),
    409: ("CONFLICT", "Conflict"),
    413: ("PAYLOAD_TOO_LARGE", "Request body too large"),
    416: ("RANGE_NOT_SATISFIABLE", "Range not satisfiable"),
    502: ("UPSTREAM_FAILED", "An upstream service failed"),
    503: ("SERVICE_UNAVAILABLE", "Service unavailable"),
}
# Refusals that a program may want to tell from others of the same status: code and, if it is another, the message.
NAMED: Mapping[type[Problem], tuple[str, str]] = {
    EmailTaken: ("EMAIL_ALREADY_EXISTS", "Email already exists"),
    InvalidCredentials: ("INVALID_CREDENTIALS", "Invalid email or password"),
    FileTooLarge: ("FILE_TOO_LARGE", "{}"),
    StorageQuotaExceeded: ("STORAGE_QUOTA_EXCEEDED", "{}"),
    TokenBudgetExceeded: ("TOKEN_BUDGET_EXCEEDED", "{}"),
    TextNotReady: ("TEXT_NOT_READY", "{}"),
    ModelBusy: ("MODEL_BUSY", "{}"),
    ModelUnavailable: ("MODEL_UNAVAILABLE", "{}"),
    ModelSilent: ("MODEL_TIMEOUT", "{}"),
    AnswerInterrupted: ("ANSWER_INTERRUPTED", "{}"),
    ModelRefused: ("MODEL_REFUSED", "{}"),
}
# Problems that name no field themselves: which one they are about.
FIELDS: Mapping[type[Problem], str] = {
    UnknownModel: "model",
    PromptTooLong: "message",
    StorageQuotaExceeded: "file",
    AccountDisabled: "account",
}


class DetailsOut(BaseModel):
    field: str
    reason: str


class ErrorOut(BaseModel):
    """`error`: the status in words. `details`: the first field that is wrong. `retry_after`: seconds, where waiting
    helps."""

    error: str
    message: str
    code: str
    details: DetailsOut | None = None
    retry_after: int | None = None


class PynodeEnvelope(Envelope):
    model = ErrorOut

    def __init__(self) -> None:
        self._door = OpenAIEnvelope()

    def at(self, path: str) -> Envelope:
        return self._door if path.startswith("/v1/") else self

    def body(self, failure: Failure) -> dict[str, Any]:
        code, message = code_of(failure)
        body: dict[str, Any] = {"error": phrase(failure.status), "message": message, "code": code}
        details = _details(failure)
        if details is not None:
            body["details"] = details
        if failure.problem is not None and "retry_after" in failure.problem.details:
            body["retry_after"] = failure.problem.details["retry_after"]
        return body

    def status_of(self, problem: Problem) -> int:
        return status_of(problem)

    def message(self, status: int) -> str:
        return CODES.get(status, ("", phrase(status)))[1]

    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        return 400, self.message(400)


class OpenAIErrorOut(BaseModel):
    """`param`: the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIEnvelope(Envelope):
    """What OpenAI's own clients turn into exceptions of theirs."""

    model = OpenAIErrorOut
    TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

    def body(self, failure: Failure) -> dict[str, Any]:
        code, message = code_of(failure)
        details = _details(failure) or {}
        other = "api_error" if failure.status >= 500 else "invalid_request_error"
        error = {
            "message": details.get("reason") or message,
            "type": self.TYPES.get(failure.status, other),
            "param": details.get("field"),
            "code": self._code(failure, code),
        }
        return {"error": error}

    def status_of(self, problem: Problem) -> int:
        return 404 if isinstance(problem, UnknownModel) else status_of(problem)

    def message(self, status: int) -> str:
        return CODES.get(status, ("", phrase(status)))[1]

    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        return 400, self.message(400)

    def _code(self, failure: Failure, code: str) -> str:
        if isinstance(failure.problem, UnknownModel):
            return "model_not_found"
        if failure.status == 401:
            return "invalid_api_key"
        return code.lower()


def phrase(status: int) -> str:
    """A status in words. Python's own for 413 depend on its version."""
    return "Payload Too Large" if status == 413 else HTTPStatus(status).phrase


def status_of(problem: Problem) -> int:
    """A model that refuses is another server's failure, not ours."""
    return 502 if isinstance(problem, ModelRefused) else STATUSES[problem.kind]


def code_of(failure: Failure) -> tuple[str, str]:
    """The code of a failure, and its message."""
    for kind in type(failure.problem).__mro__ if failure.problem is not None else ():
        if kind in NAMED:
            code, words = NAMED[kind]
            return code, words.format(failure.problem)
    code, message = CODES.get(failure.status, (f"HTTP_{failure.status}", failure.message))
    if failure.problem is not None and failure.status not in DOCUMENTED:
        return code, str(failure.problem)
    return code, message


def failure_of(problem: Problem) -> Failure:
    """A problem that no answer's status can tell any more."""
    return Failure(status_of(problem), str(problem), "", problem=problem)


def error_body(problem: Problem) -> dict[str, Any]:
    """The documented body, for an answer that has begun and ends with a problem, and for sockets."""
    return _plain.body(failure_of(problem))


def _details(failure: Failure) -> dict[str, str] | None:
    if failure.fields:
        first = failure.fields[0]
        if first.type == "json_invalid":
            return {"field": "body", "reason": "Malformed JSON"}
        return {"field": first.field or first.location, "reason": reason_of(first)}
    problem = failure.problem
    if problem is None:
        return None
    if isinstance(problem, InvalidField) or ("field" in problem.details and "reason" in problem.details):
        return {"field": str(problem.details["field"]), "reason": str(problem.details["reason"])}
    field = next((FIELDS[kind] for kind in type(problem).__mro__ if kind in FIELDS), None)
    if field is None and problem.kind is Kind.INVALID:
        field = "body"
    return {"field": field, "reason": str(problem)} if field else None


_plain = PynodeEnvelope()
