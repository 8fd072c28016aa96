"""Mail's public face."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime

from bedplate.kernel.errors import Kind, Problem


@dataclass(frozen=True, slots=True)
class Mail:
    """One message that was sent or put into the mailbox."""

    id: str
    to: str
    subject: str
    text: str
    html: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Push:
    """A short message to whatever shows a user's messages. `event_id`: of the event that it tells of."""

    id: str
    event_id: str
    title: str
    body: str
    created_at: datetime


class MailNotFound(Problem):
    kind = Kind.NOT_FOUND
    message = "Mail not found"


class Mailbox(ABC):
    """The mail that this installation has sent, and the push messages that it keeps."""

    @abstractmethod
    async def list_mail(self, limit: int = 50, offset: int = 0, to: str | None = None) -> list[Mail]:
        """Newest first, at most 200 at once; of one recipient if `to` is given."""

    @abstractmethod
    async def get_mail(self, mail_id: str) -> Mail:
        """Raises MailNotFound."""

    @abstractmethod
    async def list_push(self, user_id: str, limit: int = 50) -> list[Push]:
        """A user's push messages, newest first. The last 50 are kept."""
