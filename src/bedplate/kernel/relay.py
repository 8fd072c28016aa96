"""Relay: delivers the outbox to the listeners of this process, at least once, in order per key.

Each consumer has a lane of its own: a queue, a bound on what is under way, retries. One that fails or hangs holds up
nobody else. Three retries with back-off, then the event is a dead letter for this consumer. What fails because
somebody does not answer says nothing against the event: it is tried again for an hour before that counts.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import bindparam, delete, exists, insert, null, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Committed, Database, Effects, UtcTime, delete_by_parts
from bedplate.kernel.errors import Problem, Unavailable
from bedplate.kernel.events import Event
from bedplate.kernel.outbox import DeadLetterRow, Delivery, InboxRow, Listener, OutboxRow, routes_of

log = logging.getLogger("bedplate.relay")

UNDER_WAY = 32
HANDLING_SECONDS = 10.0
# Longer than any handling, so that nobody takes over what is still being handled; it is also how long what a killed
# process had in its hands has to wait.
LEASE = timedelta(seconds=20)
RETRIES = (1.0, 5.0, 25.0)
# Of an outage: pauses as long as it has lasted for the event, within these.
AWAY_SECONDS = (1.0, 60.0)
AWAY_FOR = timedelta(hours=1)
IDLE_SECONDS = 1.0
TIDY_SECONDS = 0.02
KEPT = timedelta(days=7)

_due = aliased(OutboxRow)
_earlier = aliased(OutboxRow)
_READY = (
    _due.consumer == bindparam("whose"),
    _due.due_at <= bindparam("now"),
    _due.type.in_(bindparam("types", expanding=True)),  # what a newer version says is left to it
    or_(_due.claimed_until.is_(None), _due.claimed_until < bindparam("now")),
)
_CLAIM = (
    update(OutboxRow)
    .where(
        tuple_(OutboxRow.id, OutboxRow.consumer).in_(
            select(_due.id, _due.consumer)
            .where(
                *_READY,
                ~exists().where(_earlier.consumer == _due.consumer, _earlier.key == _due.key, _earlier.id < _due.id),
            )
            .order_by(_due.id)
            .limit(bindparam("free"))
            .with_for_update(skip_locked=True)
        )
    )
    .values(claimed_until=bindparam("lease", type_=UtcTime()), attempts=OutboxRow.attempts + 1)
    .returning(OutboxRow.__table__)
    .execution_options(synchronize_session=False)
)
_WAITING = select(exists().where(*_READY))
_DONE = delete(OutboxRow).where(OutboxRow.id == bindparam("row_id"), OutboxRow.consumer == bindparam("row_consumer"))


class Lane:
    """One consumer's queue in one database."""

    def __init__(self, database: Database, consumer: str, listeners: Sequence[Listener], clock: Clock) -> None:
        self._database = database
        self.consumer = consumer
        self._clock = clock
        self._listeners: dict[str, list[Listener]] = {}
        for listener in listeners:
            self._listeners.setdefault(listener.event.__name__, []).append(listener)
        self._under_way: set[asyncio.Task[None]] = set()
        self._delivered: list[dict[str, str]] = []
        self.wake = asyncio.Event()
        self.stopping = False
        self._spoken = False
        self._backlog = False
        self.delivered: Callable[[Event], None] = lambda event: None

    async def run(self) -> None:
        """Deliver until told to stop; then finish what is under way. The rest waits for the next start."""
        tidy = away = False
        while not self.stopping:
            self.wake.clear()
            try:
                started = await self.step(tidy=tidy)
                away = False
                if started:
                    continue
            except Exception as error:  # the database may be away; what is in the outbox stays there
                if not away:  # one line for an outage, not one a second
                    log.warning("events wait: the outbox cannot be read", extra={"reason": type(error).__name__})
                away = True
            tidy = False
            try:
                await asyncio.wait_for(self.wake.wait(), TIDY_SECONDS if self._delivered else IDLE_SECONDS)
            except TimeoutError:
                tidy = True
        if self._under_way:
            await asyncio.wait(self._under_way)
        with contextlib.suppress(Problem):  # the database may be away: what was delivered comes again, and is known
            await self._turn(free=0)

    async def drain(self) -> int:
        """Deliver until nothing is due. The number of deliveries."""
        handled = 0
        try:
            while True:
                handled += await self.step(tidy=True)
                if self._under_way:
                    await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
                elif not self._delivered:
                    return handled
        finally:
            for task in self._under_way:
                task.cancel()

    async def step(self, *, tidy: bool) -> int:
        """Start what is due. How many were started. What is delivered is forgotten along the way, or if it is time to
        `tidy`: a transaction for each delivery would cost as much as the delivery."""
        free = UNDER_WAY - len(self._under_way)
        # On SQLite a transaction takes the only writer: look before asking for it, unless somebody has just spoken.
        due = free > 0 and (self._spoken or await self._database.scalar(_WAITING, self._wanted()))
        self._spoken = False
        if not due and not (tidy and self._delivered):
            return 0
        claimed = await self._turn(free if due else 0)
        self._backlog = len(claimed) == free
        for row in claimed:
            task = asyncio.create_task(self._deliver(row))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
        return len(claimed)

    def speak(self) -> None:
        """Something was said that this consumer listens to."""
        self._spoken = True
        self.wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._backlog or len(self._delivered) >= UNDER_WAY:
            self.wake.set()

    def _wanted(self) -> dict[str, Any]:
        return {"whose": self.consumer, "now": self._clock.now(), "types": list(self._listeners)}

    async def _turn(self, free: int) -> Sequence[Any]:
        """One transaction: what was delivered goes, what is due is claimed."""
        delivered, self._delivered = self._delivered, []
        if not delivered and not free:
            return []
        try:
            async with self._database.transaction() as tx:
                if delivered:
                    await tx.execute(_DONE, delivered)
                if not free or self.stopping:
                    return []
                wanted = self._wanted()
                return await tx.all(_CLAIM, {**wanted, "free": free, "lease": wanted["now"] + LEASE})
        except BaseException:
            self._delivered += delivered  # still there; delivered again, it would be known
            raise

    async def _deliver(self, row: Any) -> None:
        try:
            event = Event.known[row.type](**row.payload)
            async with asyncio.timeout(HANDLING_SECONDS):
                for listener in self._listeners.get(row.type, ()):
                    await listener.handle(Delivery(event, row.id, listener.name, row.created_at))
        except Exception as error:
            await self._failed(row, error)
            return
        self._delivered.append({"row_id": row.id, "row_consumer": row.consumer})
        self.delivered(event)

    async def _failed(self, row: Any, error: Exception) -> None:
        now = self._clock.now()
        log.warning(
            "an event could not be delivered",
            extra={"type": row.type, "id": row.id, "consumer": row.consumer, "attempt": row.attempts},
            exc_info=error,
        )
        this = (OutboxRow.id == row.id, OutboxRow.consumer == row.consumer)
        try:
            async with self._database.transaction() as tx:
                again = _again(row, error, now)
                if again is not None:
                    await tx.execute(update(OutboxRow).where(*this).values(again))
                    return
                await tx.execute(delete(OutboxRow).where(*this))
                kept = ("id", "consumer", "type", "key", "payload", "created_at")
                reason = str(error) if isinstance(error, Problem) else type(error).__name__
                letter = {**{name: getattr(row, name) for name in kept}, "died_at": now, "error": reason}
                await tx.execute(insert(DeadLetterRow), letter)
        except Problem as away:  # the claim runs out, and then it is tried again
            log.warning("a failed delivery could not be noted", extra={"id": row.id, "reason": str(away)})


def _again(row: Any, error: Exception, now: datetime) -> dict[str, Any] | None:
    """When a failed delivery is due again; None: not any more."""
    if isinstance(error, Unavailable) and now - row.created_at < AWAY_FOR:
        # Not counted among the attempts. An open circuit says itself from when on it is worth asking.
        age, (least, longest) = (now - row.created_at).total_seconds(), AWAY_SECONDS
        wanted = error.details.get("retry_after")
        seconds = float(wanted) if isinstance(wanted, int | float) else min(max(age, least), longest)
        pause = timedelta(seconds=seconds * random.uniform(1.0, 1.2))
        return {"due_at": now + pause, "claimed_until": null(), "attempts": row.attempts - 1}
    if row.attempts > len(RETRIES):
        return None
    pause = timedelta(seconds=RETRIES[row.attempts - 1] * random.uniform(0.8, 1.2))
    return {"due_at": now + pause, "claimed_until": null()}


class Relay(Committed):
    """The lanes of one database, one for each consumer of this process. What is said there is written for them."""

    def __init__(self, database: Database, listeners: Sequence[Listener], clock: Clock) -> None:
        self._database = database
        self._clock = clock
        database.routes = routes_of(listeners)
        consumers = dict.fromkeys(listener.consumer for listener in listeners)
        self._lanes = {
            consumer: Lane(database, consumer, [each for each in listeners if each.consumer == consumer], clock)
            for consumer in consumers
        }
        self._tasks: list[asyncio.Task[None]] = []
        self.delivered: list[Callable[[str, Event], None]] = []
        for lane in self._lanes.values():
            lane.delivered = partial(self._tell, lane.consumer)

    def _tell(self, consumer: str, event: Event) -> None:
        for tell in self.delivered:
            tell(consumer, event)

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(lane.run()) for lane in self._lanes.values()]

    async def stop(self) -> None:
        """Finish the deliveries under way; the rest waits for the next start."""
        for lane in self._lanes.values():
            lane.stopping = True
            lane.wake.set()
        await asyncio.gather(*self._tasks)

    async def committed(self, effects: Effects) -> None:
        for event in effects.emitted:
            for consumer in self._database.routes.get(type(event).__name__, ()):
                if consumer in self._lanes:
                    self._lanes[consumer].speak()

    def look(self) -> None:
        """Something may be due."""
        for lane in self._lanes.values():
            lane.speak()

    async def drain(self) -> int:
        """Deliver until nothing is due for anybody. The number of deliveries."""
        total = 0
        while handled := sum([await lane.drain() for lane in self._lanes.values()]):
            total += handled
        return total

    async def forget_old(self) -> None:
        """Inbox rows are needed while an event may come again: for a week, or as long as it is a dead letter."""
        may_come_again = exists().where(DeadLetterRow.id == InboxRow.event_id)
        old = select(InboxRow.event_id).where(InboxRow.at < self._clock.now() - KEPT, ~may_come_again)
        await delete_by_parts(self._database, InboxRow, InboxRow.event_id, old)
