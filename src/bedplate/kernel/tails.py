"""Tails: whoever follows the events of databases live (`bedplate events tail`) is a consumer as long as it looks.

It says so in each, in a row with an end that it keeps moving. The servers of a database look once a second and route
everything to it; what they have said to a tail that is over they delete, a while after, when nobody can say any more.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import String, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.broker import Wire, wire_of
from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.db import Base, Database, Record, UtcTime
from bedplate.kernel.events import Event
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import OutboxRow
from bedplate.kernel.rounds import Rounds

LOOK_SECONDS = 1.0
# A look and what it takes.
NOTICED_SECONDS = 1.2
READ_SECONDS = 0.2
RENEW_SECONDS = 3.0
FOLLOWED = timedelta(seconds=10)
# Longer than any transaction that still has the routes of a tail that is over.
GRACE = timedelta(seconds=30)
PART = 500
MAXIMUM_TAILS = 20
PREFIX = "tail-"


class TailRow(Base):
    """`name`: the consumer, "tail-…"; its rows of the outbox are its own to delete."""

    __tablename__ = "kernel_tails"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    until: Mapped[datetime] = mapped_column(UtcTime)


_THIS = TailRow.name == bindparam("tail")
_LIVE = select(TailRow.name).where(TailRow.until > bindparam("now")).order_by(TailRow.name).limit(MAXIMUM_TAILS)
_OVER = select(TailRow.name).where(TailRow.until < bindparam("before")).limit(PART)
_MOVE = update(TailRow).where(_THIS).values(until=bindparam("end", type_=UtcTime()))
_REMOVE = delete(TailRow).where(_THIS)
_IS_KNOWN = select(TailRow.name).where(_THIS)
_NEXT_CONSUMER = select(func.min(OutboxRow.consumer)).where(OutboxRow.consumer > bindparam("after"))
_READ = select(OutboxRow.__table__).where(OutboxRow.consumer == bindparam("tail")).order_by(OutboxRow.id).limit(PART)
_PART = select(OutboxRow.id).where(OutboxRow.consumer == bindparam("tail")).order_by(OutboxRow.id).limit(PART)
_CLEAR = delete(OutboxRow).where(OutboxRow.consumer == bindparam("tail"), OutboxRow.id.in_(_PART.scalar_subquery()))
_SHOWN = delete(OutboxRow).where(
    OutboxRow.consumer == bindparam("tail"), OutboxRow.id.in_(bindparam("ids", expanding=True))
)


class TailRoutes:
    """Routes what a database publishes to those who follow it. `database.routes` is complete when this is made."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._routes = database.routes
        self._tails: tuple[str, ...] = ()
        self._swept = False
        self._rounds = Rounds(self._turn, "nobody can follow the events: the database cannot be read")

    async def start(self) -> None:
        await self._rounds.start()

    async def stop(self) -> None:
        await self._rounds.stop()
        self._route(())

    async def look(self) -> None:
        """See who follows now. What was meant for those who no longer do goes."""
        now = self._clock.now()
        self._route(tuple(row.name for row in await self._database.all(_LIVE, {"now": now})))
        over = await self._database.all(_OVER, {"before": now - GRACE})
        if over:
            async with self._database.transaction() as tx:
                for row in over:
                    await tx.execute(_REMOVE, {"tail": row.name})
        if over or not self._swept:  # at first also what is left of servers that were killed
            await self._sweep()
            self._swept = True

    async def _turn(self) -> float:
        try:
            await self.look()
        except BaseException:
            self._route(())  # who has ended is not heard of any more
            raise
        return LOOK_SECONDS

    def _route(self, tails: tuple[str, ...]) -> None:
        if tails != self._tails:
            self._tails = tails
            # As with a broker: what a module says to itself is nothing for others.
            shown = {
                name: (*self._routes.get(name, ()), *tails) for name, kind in Event.known.items() if kind.published
            }
            self._database.routes = {**self._routes, **shown} if tails else self._routes

    async def _sweep(self) -> None:
        """Delete what is there for tails that are not."""
        consumer = ""
        while consumer := await self._database.scalar(_NEXT_CONSUMER, {"after": consumer}) or "":
            if consumer.startswith(PREFIX) and await self._database.first(_IS_KNOWN, {"tail": consumer}) is None:
                await _clear(self._database, consumer)


async def follow(
    databases: Sequence[Database], clock: Clock, listening: Callable[[], None] = lambda: None
) -> AsyncIterator[Wire]:
    """All that is published in these databases from now on, in the form of the wire, until the caller ends it.
    In the order in which it was said in each; between them there is none. `listening` is called once, when every
    server has had the time to notice.

    Raises:
        Unavailable: a database does not answer.
    """
    name = f"{PREFIX}{new_id().replace('-', '')[-16:]}"
    renew_at = 0.0
    noticed_at = time.monotonic() + NOTICED_SECONDS
    try:
        while True:
            if time.monotonic() >= renew_at:
                for database in databases:
                    await _renew(database, name, clock.now() + FOLLOWED)
                renew_at = time.monotonic() + RENEW_SECONDS
            if time.monotonic() >= noticed_at:
                noticed_at = math.inf
                listening()
            parts = [await _take(database, name) for database in databases]
            for row in itertools.chain.from_iterable(parts):
                yield _shown(row)
            if all(len(part) < PART for part in parts):
                await asyncio.sleep(READ_SECONDS)
    finally:
        # The rows stay a while, for the servers that have yet to see that it is over.
        for database in databases:
            await _renew(database, name, clock.now())
            await _clear(database, name)


async def _take(database: Database, name: str) -> Sequence[Record]:
    rows = await database.all(_READ, {"tail": name})
    if rows:
        async with database.transaction() as tx:
            await tx.execute(_SHOWN, {"tail": name, "ids": [row.id for row in rows]})
    return rows


async def _renew(database: Database, name: str, end: datetime) -> None:
    async with database.transaction() as tx:
        if not await tx.execute(_MOVE, {"tail": name, "end": end}):
            await tx.execute(insert(TailRow), {"name": name, "until": end})


async def _clear(database: Database, name: str) -> None:
    while True:
        async with database.transaction() as tx:
            if not await tx.execute(_CLEAR, {"tail": name}):
                return


def _shown(row: Record) -> Wire:
    try:
        return wire_of(row)
    except (LookupError, TypeError):  # a newer version's
        top = {"event_id": row.id, "event_type": row.type, "occurred_at": iso(row.created_at)}
        return {**top, "data": row.payload}
