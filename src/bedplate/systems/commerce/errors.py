"""Commerce API documentation: Error Codes. One shape in every service."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from bedplate.kernel.envelope import Envelope
from bedplate.kernel.errors import STATUSES, Failure, FieldError, Kind, Problem, reason_of
from bedplate.kernel.idempotency import IdempotencyKeyInWork, IdempotencyKeyReused
from bedplate.modules.checkout.public import OrderNotPaid, PaymentIdMissing
from bedplate.modules.identity.public import (
    AlreadyVerified,
    EmailTaken,
    InvalidResetToken,
    InvalidVerificationToken,
    UsernameTaken,
    UserNotFound,
)
from bedplate.modules.orders.public import EmptyOrder, InvalidOrderUser, OrderNotFound, OrderNotModifiable
from bedplate.modules.payments.public import AlreadyPaid, InvalidPaymentMethod, RefundNotAllowed


class InvalidIdempotencyKey(Problem):
    kind = Kind.INVALID
    message = "Idempotency-Key must be 1 to 255 printable ASCII characters"


class AuthenticationRequired(Problem):
    """Neither a token nor a service key was sent."""

    kind = Kind.UNAUTHENTICATED
    message = "Authentication required"


# The document's codes, and ours where it has none for a refusal that a program may want to tell from others.
CODES: Mapping[type[Problem], str] = {
    EmailTaken: "USER_001",
    UsernameTaken: "USER_002",
    InvalidVerificationToken: "USER_003",
    UserNotFound: "USER_004",
    InvalidOrderUser: "ORDER_001",
    EmptyOrder: "ORDER_002",
    OrderNotFound: "ORDER_003",
    OrderNotModifiable: "ORDER_004",
    OrderNotPaid: "ORDER_004",
    InvalidPaymentMethod: "PAY_001",
    AlreadyPaid: "PAY_003",
    RefundNotAllowed: "PAY_004",
    IdempotencyKeyReused: "IDEMPOTENCY_KEY_REUSED",
    IdempotencyKeyInWork: "IDEMPOTENCY_KEY_IN_WORK",
}
CODES_BY_STATUS: Mapping[int, str] = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT",
    410: "GONE",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "VALIDATION_ERROR",
    429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_ERROR",
    503: "SERVICE_UNAVAILABLE",
}
# The document's words where the modules have others.
WORDS: Mapping[type[Problem], str] = {
    InvalidVerificationToken: "Invalid verification token",
    EmptyOrder: "Empty order items",
}
BAD_REQUESTS = (
    InvalidVerificationToken,
    InvalidResetToken,
    AlreadyVerified,
    InvalidOrderUser,
    EmptyOrder,
    InvalidPaymentMethod,
    PaymentIdMissing,
)
# What of a problem's details leaves the building, and as what.
SHOWN: Mapping[str, Callable[[Any], object]] = {"reason": str, "retry_after": int, "status": str, "refundable": float}


class ErrorOut(BaseModel):
    """`error` repeats the message. `details`: the fields that are wrong and why, or figures such as `retry_after`."""

    code: str
    message: str
    error: str
    details: dict[str, object] | None


class CommerceEnvelope(Envelope):
    """`rename` writes the names of fields as the service's document does."""

    model = ErrorOut
    statuses = {**STATUSES, Kind.INVALID: 422}

    def __init__(self, rename: Callable[[str], str] = str) -> None:
        self._rename = rename

    def body(self, failure: Failure) -> dict[str, object]:
        return {
            "code": _code(failure),
            "message": failure.message,
            "error": failure.message,
            "details": self._details(failure),
        }

    def status_of(self, problem: Problem) -> int:
        return 400 if isinstance(problem, BAD_REQUESTS) else super().status_of(problem)

    def words_of(self, problem: Problem) -> str:
        return WORDS.get(type(problem)) or str(problem)

    def message(self, status: int) -> str:
        return "Internal server error" if status == 500 else HTTPStatus(status).phrase

    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        return 422, "Malformed JSON" if fields[0].type == "json_invalid" else "Validation error"

    def _details(self, failure: Failure) -> dict[str, Any] | None:
        if failure.fields:
            return {"fields": [self._finding(error.field or "body", reason_of(error)) for error in failure.fields]}
        found = failure.problem.details if failure.problem is not None else {}
        if "field" in found:
            return {"fields": [self._finding(str(found["field"]), str(found["reason"]))]}
        return {name: show(found[name]) for name, show in SHOWN.items() if name in found} or None

    def _finding(self, field: str, reason: str) -> dict[str, str]:
        return {"field": ".".join(self._rename(part) for part in field.split(".")), "reason": reason}


def _code(failure: Failure) -> str:
    known = CODES.get(type(failure.problem)) if failure.problem is not None else None
    return known or CODES_BY_STATUS.get(failure.status, f"HTTP_{failure.status}")
