"""Identity's public face: values, problems and facades."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from pydantic import JsonValue

from bedplate.kernel.errors import Kind, Problem
from bedplate.kernel.paging import Page, Slice

# Preferences, on until somebody switches them off. Mails that an account cannot do without are always sent.
EMAIL_NOTIFICATIONS = "email_notifications"
PUSH_NOTIFICATIONS = "push_notifications"


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


class Purpose(StrEnum):
    """What a token that was mailed to somebody is good for."""

    VERIFY = "verify"
    RESET = "reset"


class User(NamedTuple):
    """One account, valid for every system. `id` is a UUID; each system prints it in its own form.
    A named tuple, because lists make many of them: a frozen dataclass takes six times as long."""

    id: str
    email: str
    username: str | None
    name: str | None
    first_name: str | None
    last_name: str | None
    phone: str | None
    role: Role
    email_verified: bool
    disabled_at: datetime | None
    last_login_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def is_admin(self) -> bool:
        return self.role == Role.ADMIN


@dataclass(frozen=True, slots=True)
class Registration:
    """What somebody who signs up says. The password is not kept."""

    email: str
    password: str = field(repr=False)
    username: str | None = None
    name: str | None = None
    username_required: bool = False
    first_name: str | None = None
    last_name: str | None = None
    phone: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change of an account; None leaves a field as it is."""

    email: str | None = None
    name: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Profile:
    """What somebody tells of himself. `date_of_birth`: YYYY-MM-DD. `preferences`: an account has all; as a change, only
    those that are named. As a change, None leaves a field and an empty text empties it."""

    avatar_url: str | None = None
    bio: str | None = None
    date_of_birth: str | None = None
    gender: str | None = None
    country: str | None = None
    city: str | None = None
    address: str | None = None
    postal_code: str | None = None
    preferences: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Details:
    """What to change of names, phone and profile; None leaves a field as it is."""

    first_name: str | None = None
    last_name: str | None = None
    phone: str | None = None
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """An account with its profile."""

    user: User
    profile: Profile


@dataclass(frozen=True, slots=True)
class UserEvent:
    """One thing that has happened to an account. `data`: as the event has it on the wire."""

    id: str
    event_type: str
    data: dict[str, JsonValue]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which accounts a list shows. `search` is part of a username or e-mail address, in any case."""

    role: Role | None = None
    email_verified: bool | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True)
class UserCounts:
    total: int
    verified: int
    admins: int
    disabled: int


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How long one system's tokens live (seconds), and what the reuse of a spent refresh token ends: the session it
    belongs to, or all sessions of that account in this system. `rotates`: whether its use spends a refresh token."""

    audience: str
    access_seconds: int
    refresh_seconds: int
    reuse_ends_all: bool = False
    rotates: bool = True


@dataclass(frozen=True, slots=True)
class Grant:
    """What a signed-in client gets. `expires_in`: seconds that the access token lives."""

    user: User
    session_id: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, proven by an access token."""

    user: User
    session_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A credential of another program; the key itself is shown once, at creation."""

    id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewServiceKey:
    id: str
    name: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EmailToken:
    """A token to be mailed; only its hash is stored."""

    user: User
    token: str = field(repr=False)


class EmailTaken(Problem):
    kind = Kind.CONFLICT
    message = "Email already exists"


class UsernameTaken(Problem):
    kind = Kind.CONFLICT
    message = "Username already exists"


class UserNotFound(Problem):
    kind = Kind.NOT_FOUND
    message = "User not found"


class ServiceKeyNotFound(Problem):
    kind = Kind.NOT_FOUND
    message = "Service key not found"


class InvalidCredentials(Problem):
    kind = Kind.UNAUTHENTICATED
    message = "Invalid credentials"


class InvalidToken(Problem):
    """Missing, malformed, forged, or of another kind or audience."""

    kind = Kind.UNAUTHENTICATED
    message = "Invalid token"


class TokenExpired(Problem):
    kind = Kind.UNAUTHENTICATED
    message = "Token expired"


class TokenRevoked(Problem):
    kind = Kind.UNAUTHENTICATED
    message = "Token has been revoked"


class AccountGone(Problem):
    """The token is genuine, but its account was deleted. Details: user_id."""

    kind = Kind.UNAUTHENTICATED
    message = "Invalid token"


class AccountDisabled(Problem):
    kind = Kind.FORBIDDEN
    message = "Account disabled"


class InvalidVerificationToken(Problem):
    kind = Kind.INVALID
    message = "Invalid or expired token"


class InvalidResetToken(Problem):
    kind = Kind.INVALID
    message = "Invalid or expired token"


class AlreadyVerified(Problem):
    kind = Kind.INVALID
    message = "Email already verified"


class AlreadyDisabled(Problem):
    kind = Kind.INVALID
    message = "User already disabled"


class AlreadyEnabled(Problem):
    kind = Kind.INVALID
    message = "User already enabled"


class CannotDisableYourself(Problem):
    kind = Kind.INVALID
    message = "Cannot disable your own account"


class Users(ABC):
    """Accounts."""

    @abstractmethod
    async def register(self, registration: Registration) -> User:
        """A new account with role user, not verified. Raises InvalidField, EmailTaken, UsernameTaken."""

    @abstractmethod
    async def create_admin(self, registration: Registration) -> User:
        """A new verified administrator. Raises InvalidField, EmailTaken, UsernameTaken."""

    @abstractmethod
    async def promote(self, registration: Registration) -> User:
        """Make an existing account a verified administrator with this password. Whoever had access before, and may have
        taken the address without owning it, has it no more. Raises InvalidField, UserNotFound."""

    @abstractmethod
    async def get_user(self, user_id: str) -> User:
        """Raises UserNotFound."""

    @abstractmethod
    async def get_account(self, user_id: str) -> Account:
        """Raises UserNotFound."""

    @abstractmethod
    async def list_users(self, filter: UserFilter, part: Slice) -> Page[User]:
        """Newest first, with the exact total."""

    @abstractmethod
    async def count_users(self) -> UserCounts:
        """How many accounts there are, by state."""

    @abstractmethod
    async def update_user(self, user_id: str, changes: Changes, keep_session: str | None = None) -> User:
        """A new password ends all sessions but `keep_session`; a new address has to be verified again.
        Raises UserNotFound, InvalidField, EmailTaken."""

    @abstractmethod
    async def update_details(self, user_id: str, details: Details) -> Account:
        """Raises UserNotFound, InvalidField (of a part of the profile: `profile.city`)."""

    @abstractmethod
    async def list_events(self, user_id: str, part: Slice) -> Page[UserEvent]:
        """What has happened to the account, oldest first, with the exact total. Raises UserNotFound."""

    @abstractmethod
    async def delete_user(self, user_id: str, actor_id: str) -> None:
        """Delete the account with its sessions. Raises UserNotFound."""

    @abstractmethod
    async def disable_user(self, user_id: str, actor_id: str) -> None:
        """Lock the account out and end its sessions.
        Raises UserNotFound, AlreadyDisabled, CannotDisableYourself."""

    @abstractmethod
    async def enable_user(self, user_id: str, actor_id: str) -> None:
        """Let the account sign in again. Raises UserNotFound, AlreadyEnabled."""


class Sessions(ABC):
    """Sign-in, refresh and sign-out."""

    @abstractmethod
    async def sign_up(self, registration: Registration, policy: SessionPolicy) -> Grant:
        """A new account, signed in. Raises InvalidField, EmailTaken, UsernameTaken."""

    @abstractmethod
    async def sign_in(self, login: str, password: str, policy: SessionPolicy) -> Grant:
        """`login` is a username or an e-mail address. Raises InvalidCredentials, AccountDisabled."""

    @abstractmethod
    async def refresh(self, token: str, policy: SessionPolicy) -> Grant:
        """Trade a refresh token for a new pair. Raises InvalidToken, TokenExpired. The token just spent may be shown
        again for ten seconds, until its successor is used: it is answered with the same successor. Any other spent
        token ends what the policy says. Where tokens do not rotate the pair has the same refresh token again."""

    @abstractmethod
    async def sign_out(self, refresh_token: str, audience: str, access_token: str = "") -> None:
        """End the session of a refresh token, and that of an access token if one is shown.
        Nothing happens to a session that has ended. Raises InvalidToken."""

    @abstractmethod
    async def end_session(self, session_id: str) -> None:
        """End a session; nothing happens if it has ended."""


class Principals(ABC):
    """Who is calling."""

    @abstractmethod
    async def authenticate(self, token: str, audience: str) -> Principal:
        """The account behind an access token. Raises InvalidToken, TokenExpired, TokenRevoked, AccountGone."""


class Confirmations(ABC):
    """What a person proves by reading mail: an address, or that a password may be set anew."""

    @abstractmethod
    async def request_verification(self, user_id: str) -> None:
        """Mail a verification link, at most once a minute. Raises UserNotFound, AlreadyVerified."""

    @abstractmethod
    async def verify_email(self, token: str) -> User:
        """Spend a verification token. Raises InvalidVerificationToken."""

    @abstractmethod
    async def verify_user(self, user_id: str, token: str) -> Account:
        """As verify_email, but another account's token is not spent. Raises UserNotFound, InvalidVerificationToken."""

    @abstractmethod
    async def request_password_reset(self, email: str) -> None:
        """Mail a reset link if there is such an account; the caller cannot tell. At most once a minute."""

    @abstractmethod
    async def reset_password(self, token: str, password: str) -> None:
        """Spend a reset token and end every session. Raises InvalidField, InvalidResetToken."""

    @abstractmethod
    async def issue_email_token(
        self, purpose: Purpose, email: str, cause: str, requested_at: datetime
    ) -> EmailToken | None:
        """A fresh token for the mail that the event `cause` asked for; None if no mail is due."""


class ServiceKeys(ABC):
    """Credentials of other programs (`X-API-Key`)."""

    @abstractmethod
    async def create_key(self, name: str) -> NewServiceKey:
        """The only time the key is shown. Raises InvalidField."""

    @abstractmethod
    async def list_keys(self) -> list[ServiceKey]:
        """Newest first, at most 1,000."""

    @abstractmethod
    async def revoke_key(self, key_id: str) -> None:
        """Refuse the key from now on. Raises ServiceKeyNotFound."""

    @abstractmethod
    async def authenticate_key(self, key: str) -> ServiceKey:
        """Raises InvalidToken."""
