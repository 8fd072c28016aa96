"""What a username, an address, a name and a password may be. Lengths count characters."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from functools import cache
from urllib.parse import urlsplit

from email_validator import EmailNotValidError, validate_email

from bedplate.kernel.errors import InvalidField

USERNAME = range(3, 51)
MAXIMUM_EMAIL = 254
PASSWORD = range(8, 129)
STRICT_PASSWORD = range(12, 129)
NAME = range(1, 201)
NAME_PART = range(1, 101)
PHONE = re.compile(r"[0-9 +\-()./]{3,32}")
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
BORN_SINCE = date(1900, 1, 1)


def key_of(username: str) -> str:
    """The form in which usernames are compared."""
    return unicodedata.normalize("NFKC", username).casefold()


def login_key(login: str) -> str | None:
    """The key of the username or address that somebody signs in with; None if it can be neither."""
    if len(login) > MAXIMUM_EMAIL:  # before anything that takes longer the longer it is
        return None
    if "@" not in login:
        return key_of(login)
    try:
        return email(login).key
    except InvalidField:
        return None


def username(text: str) -> str:
    """A username: no "@" and no white space, so that it can never be taken for somebody's address."""
    if not text:
        raise InvalidField(field="username", reason="Username cannot be empty")
    if len(text) not in USERNAME:
        raise InvalidField(field="username", reason="Username must be between 3 and 50 characters")
    # The key as well: some characters stand for several, or for "@", when they are compared.
    key = key_of(text)
    if "@" in key or not _printable(text) or any(character.isspace() for character in key):
        raise InvalidField(field="username", reason="Username must not contain @, spaces or control characters")
    if len(key) not in USERNAME:
        raise InvalidField(field="username", reason="Username must be between 3 and 50 characters")
    return text


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address in the form in which mail is sent to it, and the key by which it is compared."""

    address: str
    key: str


def email(text: str) -> Mailbox:
    """An address. Two mailboxes never have one key: only letter case is folded, and domains are compared as DNS does.

    Local parts with characters that only look like others are refused, and those that mail programs take for encoded
    text (RFC 2047): `=?utf-8?q?ada?=` is the mailbox of ada to them.
    """
    if not text:
        raise InvalidField(field="email", reason="Email cannot be empty")
    if len(text) > MAXIMUM_EMAIL:
        raise InvalidField(field="email", reason="Invalid email format")
    try:
        found = validate_email(text, check_deliverability=False)
    except EmailNotValidError:
        raise InvalidField(field="email", reason="Invalid email format") from None
    if unicodedata.normalize("NFKC", found.local_part) != found.local_part or "=?" in found.local_part:
        raise InvalidField(field="email", reason="Invalid email format")
    return Mailbox(found.normalized, f"{found.local_part.lower()}@{found.ascii_domain.lower()}")


def name(text: str, field: str = "name", length: range = NAME) -> str:
    """A person's name, or a part of it, free of control characters."""
    stripped, label = text.strip(), _label(field)
    if not stripped:
        raise InvalidField(field=field, reason=f"{label} cannot be empty")
    if len(stripped) not in length:
        raise InvalidField(field=field, reason=f"{label} must not exceed {length.stop - 1} characters")
    if not _printable(stripped):
        raise InvalidField(field=field, reason=f"{label} must not contain control characters")
    return stripped


def phone(text: str) -> str:
    """A telephone number as people write them: nobody is called, so its form is not judged further."""
    stripped = text.strip()
    if not PHONE.fullmatch(stripped) or not any(character.isdigit() for character in stripped):
        reason = "Phone must be 3 to 32 characters: digits, spaces and + - ( ) . /"
        raise InvalidField(field="phone", reason=reason)
    return stripped


def profile_text(text: str, field: str, longest: int, *, lines: bool) -> str:
    """A text of a profile, which may be empty. `lines`: it may have several."""
    stripped = text.strip()
    if len(stripped) > longest:
        reason = f"{_label(field)} must not exceed {longest} characters"
        raise InvalidField(field=f"profile.{field}", reason=reason)
    if not _printable(stripped.replace("\n", "") if lines else stripped):
        raise InvalidField(field=f"profile.{field}", reason=f"{_label(field)} must not contain control characters")
    return stripped


def web_address(text: str, field: str) -> str:
    """An address that is safe to put into a page: http or https, nothing that runs."""
    try:
        parts = urlsplit(text)
        safe = parts.scheme in ("http", "https") and parts.hostname and not any(map(str.isspace, text))
    except ValueError:
        safe = False
    if not safe:
        raise InvalidField(field=field, reason="Avatar URL must be an address like https://example.com/me.png")
    return text


def date_of_birth(text: str, today: date) -> str:
    """A day since 1900 that is not in the future, as YYYY-MM-DD."""
    try:
        day = date.fromisoformat(text) if DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None or not BORN_SINCE <= day <= today:
        raise InvalidField(field="profile.date_of_birth", reason="Date of birth must be a past day like 1990-12-31")
    return day.isoformat()


def password(text: str, *, strict: bool) -> str:
    """A password of 8 to 128 characters; strict: 12 or more, and not among the common ones."""
    if len(text) < PASSWORD.start:
        raise InvalidField(field="password", reason="Password must be at least 8 characters")
    if len(text) >= PASSWORD.stop:
        raise InvalidField(field="password", reason="Password must not exceed 128 characters")
    if strict and len(text) < STRICT_PASSWORD.start:
        raise InvalidField(field="password", reason="Password must be at least 12 characters")
    if strict and text.lower() in _common_passwords():
        raise InvalidField(field="password", reason="Password is too common")
    return text


def _label(field: str) -> str:
    return field.replace("_", " ").capitalize().replace(" url", " URL")


def _printable(text: str) -> bool:
    return all(character.isprintable() or character == " " for character in text)


@cache
def _common_passwords() -> frozenset[str]:
    # Half a megabyte that only the strict policy needs.
    from zxcvbn.frequency_lists import FREQUENCY_LISTS  # noqa: PLC0415

    return frozenset(FREQUENCY_LISTS["passwords"])
