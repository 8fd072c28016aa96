"""Transport: how a message leaves. Without SMTP_URL it does not: the mailbox in the database is its destination."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

# Called once for everything that was sent: type of the event, channel, seconds that it took.
Observe: TypeAlias = Callable[[str, str, float], None]

EMAIL = "email"
PUSH = "push"


def unobserved(event_type: str, channel: str, seconds: float) -> None:
    """For who does not count."""


@dataclass(frozen=True, slots=True)
class Message:
    """A rendered message. `id` is the same each time one event is delivered, so that receivers can tell a repeat."""

    id: str
    to: str
    subject: str
    text: str
    html: str


class Transport(ABC):
    #: Whether the database keeps the text as well.
    keeps_text: bool

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Raises Unavailable if the server did not take it."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable if mail cannot be sent at present."""


class MailboxOnly(Transport):
    keeps_text = True

    async def send(self, message: Message) -> None:
        return

    async def ping(self) -> None:
        return
