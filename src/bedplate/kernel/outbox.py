"""Outbox: events are written in the transaction that makes them true, one row for each consumer that listens.

Consumers are idempotent: each claims the event in an inbox row of its own transaction. `relay.py` delivers the rows;
what it cannot deliver is a dead letter that an operator sees and replays.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Index,
    String,
    Text,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
)
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Base, Database, Id, Routes, Statements, Transaction, UniqueViolation, Unit, UtcTime
from bedplate.kernel.events import Event
from bedplate.kernel.ids import is_id, new_id

MAXIMUM_LISTED = 500
MAXIMUM_REVIVED = 100
REVIVED_AFTER = timedelta(minutes=5)
REVIVED_WITHIN = timedelta(hours=1)
REVIVED_FOR = timedelta(days=7)
# In the inbox: what the outbox has taken over from a store of documents.
MOVED = "outbox"


class OutboxRow(Base):
    """One event on its way to one consumer. `position`: where the broker has put it, for the consumer "broker"."""

    __tablename__ = "kernel_outbox"
    __table_args__ = (
        Index("ix_kernel_outbox_consumer_key_id", "consumer", "key", "id"),
        Index("ix_kernel_outbox_consumer_id", "consumer", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    consumer: Mapped[str] = mapped_column(String(32), primary_key=True)
    type: Mapped[str] = mapped_column(String(100))
    key: Mapped[str] = mapped_column(String(254))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    due_at: Mapped[datetime] = mapped_column(UtcTime)
    attempts: Mapped[int] = mapped_column(default=0)
    claimed_until: Mapped[datetime | None] = mapped_column(UtcTime)
    position: Mapped[str | None] = mapped_column(String(64))


class InboxRow(Base):
    __tablename__ = "kernel_inbox"

    event_id: Mapped[str] = mapped_column(Id, primary_key=True)
    consumer: Mapped[str] = mapped_column(String(100), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcTime, index=True)


class DeadLetterRow(Base):
    __tablename__ = "kernel_dead_letters"
    __table_args__ = (Index("ix_kernel_dead_letters_consumer_key", "consumer", "key"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    consumer: Mapped[str] = mapped_column(String(32), primary_key=True)
    type: Mapped[str] = mapped_column(String(100))
    key: Mapped[str] = mapped_column(String(254))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    died_at: Mapped[datetime] = mapped_column(UtcTime)
    error: Mapped[str] = mapped_column(Text)


# Built once: building a statement costs more than running it.
_EMIT = insert(OutboxRow)
_HANDLED = select(InboxRow.event_id).where(
    InboxRow.event_id == bindparam("event"), InboxRow.consumer == bindparam("listener")
)
_BACKLOG = select(
    select(func.count()).select_from(OutboxRow).scalar_subquery(),
    select(func.count()).select_from(DeadLetterRow).scalar_subquery(),
)
_UNDER_WAY = [
    select(table.key).where(table.consumer == bindparam("whose"), table.key.in_(bindparam("keys", expanding=True)))
    for table in (OutboxRow, DeadLetterRow)
]
# One statement instead of a look and an insert; both engines know this form.
_FIRST_TIME = text(
    "INSERT INTO kernel_inbox (event_id, consumer, at) VALUES (:event_id, :consumer, :at) ON CONFLICT DO NOTHING"
).bindparams(bindparam("event_id", type_=Id()), bindparam("consumer", type_=String()), bindparam("at", type_=UtcTime()))


async def emit(tx: Unit, event: Event, at: datetime) -> str:
    """Say that this happened, in the transaction that makes it true. The event's id."""
    event_id = new_id()
    tx.emitted.append(event)
    consumers = tx.routes.get(type(event).__name__, ())
    if consumers:
        await tx.queue(_EMIT, rows_of(event_id, event, at, consumers))
    return event_id


async def move(database: Database, rows: Sequence[dict[str, Any]], at: datetime) -> None:
    """Take rows over that were written somewhere else, in their order: each event once, however often it is brought."""
    events = {row["id"]: [each for each in rows if each["id"] == row["id"]] for row in rows}
    async with database.transaction() as tx:
        for event_id, its in events.items():
            if await tx.execute(_FIRST_TIME, {"event_id": event_id, "consumer": MOVED, "at": at}):
                await tx.execute(_EMIT, its)


async def under_way(database: Database, consumer: str, keys: Sequence[str]) -> set[str]:
    """Those of the keys of which an event is on its way to this consumer, or undeliverable."""
    found = [await database.all(each, {"whose": consumer, "keys": keys}) for each in _UNDER_WAY]
    return {row[0] for rows in found for row in rows}


def rows_of(event_id: str, event: Event, at: datetime, consumers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that carry an event to these consumers."""
    row = {"id": event_id, "type": type(event).__name__, "key": event.key, "payload": event.payload()}
    return [{**row, "consumer": each, "created_at": at, "due_at": at, "attempts": 0} for each in consumers]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one listener. `consumer` is the listener's name, which the inbox remembers."""

    event: Any
    id: str
    consumer: str
    created_at: datetime

    async def handled(self, statements: Statements) -> bool:
        """Whether this listener has handled the event before."""
        return await statements.first(_HANDLED, {"event": self.id, "listener": self.consumer}) is not None

    async def first_time(self, tx: Transaction) -> bool:
        """Claim the event in the listener's transaction; False if it was handled before.

        Two processes that deliver it at the same moment meet at the primary key: one waits for the other.
        """
        row = {"event_id": self.id, "consumer": self.consumer, "at": self.created_at}
        return await tx.execute(_FIRST_TIME, row) == 1


@dataclass(frozen=True, slots=True)
class Listener:
    """A name that never changes (the inbox remembers it), the event class, what to do.

    "mail.verification" belongs to the consumer "mail": what stands before the dot. Consumers have queues of their own.
    """

    name: str
    event: type[Event]
    handle: Callable[[Delivery], Awaitable[None]]

    @property
    def consumer(self) -> str:
        return self.name.partition(".")[0]


def routes_of(listeners: Iterable[Listener]) -> Routes:
    """Which consumers hear which event."""
    routes: dict[str, list[str]] = {}
    for listener in listeners:
        consumers = routes.setdefault(listener.event.__name__, [])
        if listener.consumer not in consumers:
            consumers.append(listener.consumer)
    return routes


def nothing_for(consumer: str, key: ColumnElement[str] | InstrumentedAttribute[str]) -> Sequence[ColumnElement[bool]]:
    """Conditions of a query: no event of this key is on its way to the consumer, and none is a dead letter, which
    `revive` puts back."""
    return [~exists().where(each.consumer == consumer, each.key == key) for each in (OutboxRow, DeadLetterRow)]


async def replay(database: Database, clock: Clock, letter_id: str) -> bool:
    """Put a dead letter back into the outbox under its own id, for each consumer that failed. False: no such letter."""
    now = clock.now()
    if not is_id(letter_id):
        return False
    names = ("id", "consumer", "type", "key", "payload", "created_at")
    try:
        async with database.transaction() as tx:
            letters = await tx.all(select(DeadLetterRow.__table__).where(DeadLetterRow.id == letter_id))
            if not letters:
                return False
            await tx.execute(delete(DeadLetterRow).where(DeadLetterRow.id == letter_id))
            rows = [{name: getattr(letter, name) for name in names} for letter in letters]
            await tx.execute(insert(OutboxRow), [{**row, "due_at": now, "attempts": 0} for row in rows])
    except UniqueViolation:  # somebody replayed it a moment ago
        return False
    return True


async def revive(database: Database, clock: Clock, consumers: Sequence[str]) -> None:
    """Put back what has been dead for these consumers for a while: the reason may be gone. It rests as long as it was
    tried before, at least five minutes and at most an hour. For a week; what is still undeliverable then is left to a
    person."""
    now = clock.now()
    rested = DeadLetterRow.died_at + (DeadLetterRow.died_at - DeadLetterRow.created_at) < now
    long_dead = select(DeadLetterRow.id).where(
        DeadLetterRow.consumer.in_(consumers),
        DeadLetterRow.died_at < now - REVIVED_AFTER,
        or_(rested, DeadLetterRow.died_at < now - REVIVED_WITHIN),
        DeadLetterRow.created_at > now - REVIVED_FOR,
    )
    for letter in await database.all(long_dead.order_by(DeadLetterRow.died_at).limit(MAXIMUM_REVIVED)):
        await replay(database, clock, letter.id)


async def dead_letters(database: Database, limit: int = 100) -> Sequence[Any]:
    """The newest dead letters."""
    newest_first = select(DeadLetterRow.__table__).order_by(DeadLetterRow.died_at.desc())
    return await database.all(newest_first.limit(min(max(limit, 1), MAXIMUM_LISTED)))


async def waiting(database: Database) -> int:
    """How many deliveries are still to be made."""
    return (await backlog(database))[0]


async def backlog(database: Database) -> tuple[int, int]:
    """How many deliveries are still to be made, and how many were given up."""
    row = await database.first(_BACKLOG)
    return (row[0], row[1]) if row is not None else (0, 0)
