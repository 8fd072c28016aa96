"""Problems: what can go wrong, declared once in a module's public.py and worded by each system's Envelope."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import JsonValue


class Kind(StrEnum):
    """What sort of failure it is. A system maps each to a status."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    GONE = "gone"
    TOO_MANY = "too_many"
    TOO_LARGE = "too_large"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


STATUSES: Mapping[Kind, int] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.GONE: 410,
    Kind.TOO_MANY: 429,
    Kind.TOO_LARGE: 413,
    Kind.UNAVAILABLE: 503,
    Kind.FAILED: 500,
}


class Problem(Exception):
    """Base of everything a module can refuse. Subclasses say a kind and a message; details never repeat secrets."""

    kind: ClassVar[Kind]
    message: ClassVar[str] = ""
    known: ClassVar[dict[str, type["Problem"]]] = {}

    def __init__(self, **details: JsonValue) -> None:
        super().__init__(self.message.format_map(details))
        self.details = details

    def __init_subclass__(cls) -> None:
        # By name, so that a remote facade raises the caller's own class. Names are unique over the product.
        assert cls.__name__ not in Problem.known, f"two problems are called {cls.__name__}"
        Problem.known[cls.__name__] = cls


class InvalidField(Problem):
    """One value of the request breaks a rule of the domain. `reason` is a whole sentence for a person."""

    kind = Kind.INVALID
    message = "{reason}"


class NotAllowed(Problem):
    """Whoever calls is known, and may not do this."""

    kind = Kind.FORBIDDEN
    message = "Insufficient permissions"


class Unavailable(Problem):
    """Another part of the product, or a server it needs, did not answer. The outcome is unknown."""

    kind = Kind.UNAVAILABLE
    message = "Service unavailable"


class StorageFailed(Problem):
    """The database refused a statement for a reason that nobody expected; the reason is in the log."""

    kind = Kind.FAILED
    message = "Database operation failed"


class TooLarge(Problem):
    """The request body is over the limit."""

    kind = Kind.TOO_LARGE
    message = "Request body too large"


class TooMany(Problem):
    """A rate limit is used up. Details: limit (text), retry_after (seconds)."""

    kind = Kind.TOO_MANY
    message = "Rate limit exceeded: {limit}"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One finding of request validation: where, why, and pydantic's type of error (never the value).

    `location` is body, query, path, header or cookie; `field` is empty for the body as a whole.
    """

    location: str
    field: str
    reason: str
    type: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request on its way to a system's own error body."""

    status: int
    message: str
    request_id: str
    problem: Problem | None = None
    fields: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


# In place of pydantic's, which speaks of dictionaries. Without its Content-Type a body is not taken for JSON.
NO_OBJECT = "The body must be a JSON object; send Content-Type: application/json"


def reason_of(error: FieldError) -> str:
    """Why, in words for whoever has sent it."""
    whole = error.location == "body" and not error.field and error.type != "json_invalid"
    return NO_OBJECT if whole and error.type != "value_error" else error.reason


def field_errors(errors: Sequence[Any]) -> list[FieldError]:
    """Pydantic's findings without the input values that they carry."""
    return [
        FieldError(
            location=str(error["loc"][0]),
            field=_name(error["loc"][1:]) if error["type"] != "json_invalid" else "",
            reason=error["msg"].removeprefix("Value error, "),
            type=error["type"],
        )
        for error in errors
    ]


def _name(parts: Sequence[str | int]) -> str:
    """Without what pydantic calls the members of a union, such as `list[PartIn]`: no sender has written that."""
    return ".".join(str(part) for part in parts if "[" not in str(part))
