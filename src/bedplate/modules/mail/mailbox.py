"""The mailbox: what was sent, newest first."""

from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.orm import aliased

from bedplate.kernel.db import Database, Statements, Transaction
from bedplate.kernel.ids import is_id, new_id
from bedplate.modules.mail.models import MailRow, PushRow
from bedplate.modules.mail.public import Mail, Mailbox, MailNotFound, Push
from bedplate.modules.mail.transport import Message

MAXIMUM_LISTED = 200
KEPT_PUSHES = 50

# In the order of Mail's fields.
_MAIL = select(MailRow.id, MailRow.to, MailRow.subject, MailRow.text, MailRow.html, MailRow.created_at)
_KEEP_MAIL = insert(MailRow)
_SINCE = (
    select(func.count())
    .select_from(MailRow)
    .where(MailRow.to == bindparam("address"), MailRow.created_at > bindparam("since"))
)
# In the order of Push's fields. Ids are ordered by the time they were made.
_PUSHES = (
    select(PushRow.id, PushRow.event_id, PushRow.title, PushRow.body, PushRow.created_at)
    .where(PushRow.user_id == bindparam("user"))
    .order_by(PushRow.id.desc())
    .limit(bindparam("limit"))
)
_KEEP_PUSH = insert(PushRow)
_kept = aliased(PushRow)
# At most so many steps in the index of one user, and as a rule one row.
_FORGET_PUSHES = delete(PushRow).where(
    PushRow.user_id == bindparam("user"),
    PushRow.id
    <= select(_kept.id)
    .where(_kept.user_id == bindparam("user"))
    .order_by(_kept.id.desc())
    .limit(1)
    .offset(KEPT_PUSHES)
    .scalar_subquery(),
)


async def keep_mail(tx: Transaction, message: Message, at: datetime, *, keeps_text: bool) -> None:
    """Put a message that was sent into the mailbox."""
    row = {
        "id": new_id(),
        "to": message.to,
        "subject": message.subject,
        "text": message.text if keeps_text else "",
        "html": message.html if keeps_text else "",
        "created_at": at,
    }
    await tx.execute(_KEEP_MAIL, row)


async def keep_push(tx: Transaction, user_id: str, event_id: str, title: str, body: str, at: datetime) -> None:
    """Keep a push message for its user, and forget the one that is too many."""
    row = {"id": new_id(), "user_id": user_id, "event_id": event_id, "title": title, "body": body, "created_at": at}
    await tx.execute(_KEEP_PUSH, row)
    await tx.execute(_FORGET_PUSHES, {"user": user_id})


async def mailed_since(statements: Statements, address: str, since: datetime) -> int:
    """How many messages an address was sent."""
    return int(await statements.scalar(_SINCE, {"address": address, "since": since}))


class MailboxService(Mailbox):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def list_mail(self, limit: int = 50, offset: int = 0, to: str | None = None) -> list[Mail]:
        newest_first = _MAIL.order_by(MailRow.created_at.desc(), MailRow.id.desc())
        if to is not None:
            newest_first = newest_first.where(MailRow.to == to)
        part = newest_first.limit(min(max(limit, 1), MAXIMUM_LISTED)).offset(max(offset, 0))
        return [Mail(*row) for row in await self._db.all(part)]

    async def get_mail(self, mail_id: str) -> Mail:
        found = _MAIL.where(MailRow.id == bindparam("id"))
        row = await self._db.first(found, {"id": mail_id}) if is_id(mail_id) else None
        if row is None:
            raise MailNotFound()
        return Mail(*row)

    async def list_push(self, user_id: str, limit: int = KEPT_PUSHES) -> list[Push]:
        if not is_id(user_id):
            return []
        part = {"user": user_id, "limit": min(max(limit, 1), KEPT_PUSHES)}
        return [Push(*row) for row in await self._db.all(_PUSHES, part)]
