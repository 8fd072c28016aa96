"""What happens to accounts. Commerce document: User Events; the others are additions."""

from dataclasses import dataclass
from typing import ClassVar

from bedplate.kernel.events import Event


@dataclass(frozen=True, slots=True)
class UserCreated(Event):
    topic = "user_events"
    key_field = "user_id"

    user_id: str
    email: str
    username: str | None = None
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class UserVerified(Event):
    topic = "user_events"
    key_field = "user_id"

    user_id: str
    verified_at: str


@dataclass(frozen=True, slots=True)
class UserUpdated(Event):
    """`fields`: the names of what was changed, never the values."""

    topic = "user_events"
    key_field = "user_id"

    user_id: str
    fields: list[str]
    updated_at: str


@dataclass(frozen=True, slots=True)
class VerificationRequested(Event):
    topic = "user_events"
    key_field = "user_id"

    user_id: str
    email: str


@dataclass(frozen=True, slots=True)
class PasswordResetRequested(Event):
    """Said for every request, whether or not the account exists, so that the answer tells nothing."""

    topic = "user_events"
    key_field = "email"

    email: str


@dataclass(frozen=True, slots=True)
class UserDisabled(Event):
    topic = "user_events"
    key_field = "user_id"
    ids: ClassVar[tuple[str, ...]] = ("user_id", "actor_id")

    user_id: str
    actor_id: str


@dataclass(frozen=True, slots=True)
class UserEnabled(Event):
    topic = "user_events"
    key_field = "user_id"
    ids: ClassVar[tuple[str, ...]] = ("user_id", "actor_id")

    user_id: str
    actor_id: str


@dataclass(frozen=True, slots=True)
class UserDeleted(Event):
    topic = "user_events"
    key_field = "user_id"
    ids: ClassVar[tuple[str, ...]] = ("user_id", "actor_id")

    user_id: str
    actor_id: str


@dataclass(frozen=True, slots=True)
class AdminAppointed(Event):
    """From the command line: by an operator, not by an account."""

    topic = "user_events"
    key_field = "user_id"

    user_id: str
