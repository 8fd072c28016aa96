"""An account's history: what was said of it, kept in the transaction that says it."""

from datetime import datetime

from sqlalchemy import bindparam, func, insert, select

from bedplate.kernel.db import Statements, Transaction
from bedplate.kernel.events import Event
from bedplate.kernel.outbox import emit
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.identity.models import UserEventRow
from bedplate.modules.identity.public import UserEvent

_KEEP = insert(UserEventRow)
_OF_USER = UserEventRow.user_id == bindparam("user")
# In the order of UserEvent's fields. Ids of events are ordered by the time they were said.
_OLDEST_FIRST = (
    select(UserEventRow.id, UserEventRow.event_type, UserEventRow.data, UserEventRow.created_at)
    .where(_OF_USER)
    .order_by(UserEventRow.id)
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
_COUNT = select(func.count()).select_from(UserEventRow).where(_OF_USER)


async def record(tx: Transaction, event: Event, at: datetime) -> None:
    """Emit an event of an account, and remember it under the event's own id."""
    event_id = await emit(tx, event, at)
    data = event.payload()
    user_id = data.pop("user_id")
    row = {"id": event_id, "user_id": user_id, "event_type": event.event_type(), "data": data, "created_at": at}
    await tx.execute(_KEEP, row)


async def events_of(statements: Statements, user_id: str, part: Slice) -> Page[UserEvent]:
    """What was recorded of an account, oldest first."""
    rows = await statements.all(_OLDEST_FIRST, {"user": user_id, "limit": part.limit, "offset": part.offset})
    return Page([UserEvent(*row) for row in rows], int(await statements.scalar(_COUNT, {"user": user_id})))
