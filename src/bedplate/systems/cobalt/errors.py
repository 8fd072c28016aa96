"""Cobalt API reference: Error Handling. Every error is `{"error": text}`."""

from http import HTTPStatus

from fastapi import Request
from pydantic import BaseModel

from bedplate.kernel.envelope import Envelope
from bedplate.kernel.errors import Failure, FieldError, InvalidField, Kind, Problem, TooMany
from bedplate.modules.identity.public import (
    AlreadyVerified,
    EmailTaken,
    InvalidResetToken,
    InvalidVerificationToken,
    UsernameTaken,
)

WRONG_JSON_TYPE = 422


class AdminRequired(Problem):
    kind = Kind.FORBIDDEN
    message = "Admin access required"


class EmailNotVerified(Problem):
    kind = Kind.FORBIDDEN
    message = "Email not verified"


class TooManyLogins(TooMany):
    message = "Too many login attempts"


class TooManyRegistrations(TooMany):
    message = "Too many registration attempts"


class TooManyResets(TooMany):
    message = "Too many password reset requests"


WORDS: dict[type[Problem], str] = {
    EmailTaken: "User already exists",
    UsernameTaken: "User already exists",
    InvalidField: "Invalid input: {}",
    AlreadyVerified: "Invalid input: {}",
    InvalidVerificationToken: "Verification failed: {}",
    InvalidResetToken: "Reset failed: {}",
}


class ErrorOut(BaseModel):
    error: str


class CobaltEnvelope(Envelope):
    model = ErrorOut

    def body(self, failure: Failure) -> dict[str, str]:
        return {"error": failure.message}

    def words_of(self, problem: Problem) -> str:
        return WORDS.get(type(problem), "{}").format(problem)

    def message(self, status: int) -> str:
        return "Internal server error" if status == 500 else HTTPStatus(status).phrase

    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        """400 for a value that is missing, malformed or out of its range, 422 for one of another JSON type."""
        first = fields[0]
        if first.location != "body":
            return 400, f"Invalid {first.field} parameter"
        if first.type == "json_invalid":
            return 400, "Invalid input: Malformed JSON"
        if first.field:
            status = WRONG_JSON_TYPE if first.type.endswith("_type") else 400
            return status, f"Invalid input: {_sentence(first)}"
        if first.type == "missing":
            return 400, "Invalid input: Request body is required"
        if "json" not in request.headers.get("content-type", ""):
            return 400, "Invalid input: Content-Type must be application/json"
        return WRONG_JSON_TYPE, "Invalid input: Request body must be an object"


def _sentence(error: FieldError) -> str:
    name = error.field.replace("_", " ").capitalize()
    if error.type.endswith("_type"):
        return f"{name} must be a {error.type.removesuffix('_type')}"
    if error.type == "string_unicode":
        return f"{name} must be valid text"
    return error.reason if error.type == "value_error" else f"{name} is invalid"
