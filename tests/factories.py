"""Makers of what tests need."""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx2

from bedplate.kernel.clock import Clock

PASSWORD = "SecurePass123!"
_numbers = itertools.count(1)


class TurnableClock(Clock):
    """A clock that goes on by itself and can be advanced."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)


@dataclass(frozen=True)
class Account:
    """A signed-in account of one system. `client` sends its bearer token and keeps its cookies."""

    id: str
    email: str
    username: str
    password: str
    access_token: str
    refresh_token: str
    client: httpx2.AsyncClient


def number() -> int:
    """Another one each time, so that names are unique over all tests of a run."""
    return next(_numbers)


def email(name: str = "user") -> str:
    return f"{name}{number()}@example.com"


def username(name: str = "user") -> str:
    return f"{name}{number()}"
