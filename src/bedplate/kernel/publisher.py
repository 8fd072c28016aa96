"""Publisher: takes what is to leave one database to the broker, and keeps it until every group has it.

A row of the consumer "broker" is claimed, published, and then belongs to "sent.<topic>" with its position. It goes when
the position is confirmed by all groups that are expected, and back to "broker" when the broker has another incarnation.
Nothing of this is ever a dead letter: a broker that is away is waited for.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, exists, not_, null, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from bedplate.kernel.broker import (
    CONSUMER,
    KEPT_SECONDS,
    MAXIMUM_LENGTH,
    Broker,
    Standing,
    Wire,
    published_types,
    wire_of,
)
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Committed, Database, Effects, Record, UtcTime
from bedplate.kernel.outbox import OutboxRow
from bedplate.kernel.rounds import Rounds

log = logging.getLogger("bedplate.publisher")

BATCH = 256
# Longer than publishing can take.
LEASE = timedelta(seconds=15)
IDLE_SECONDS = 1.0
SETTLE_SECONDS = 0.5
TRIM_SECONDS = 10.0
SWEEP_SECONDS = 300.0
# Another process may have sent something and died.
LOOK_SECONDS = 5.0
PART = 500
KEPT = timedelta(seconds=KEPT_SECONDS)
# However old a row is, once it is published the groups have this long to take it.
GRACE = timedelta(hours=1)
SENT = "sent."

_due = aliased(OutboxRow)
_earlier = aliased(OutboxRow)
_READY = (
    _due.consumer == CONSUMER,
    _due.type.in_(bindparam("types", expanding=True)),  # what a newer version says is left to it
    or_(_due.claimed_until.is_(None), _due.claimed_until < bindparam("now")),
)
# The oldest of each key only: two processes of one database never have the same key in their hands.
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
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )
    )
    .values(claimed_until=bindparam("lease", type_=UtcTime()), attempts=OutboxRow.attempts + 1)
    .returning(OutboxRow.__table__)
    .execution_options(synchronize_session=False)
)
_WAITING = select(exists().where(*_READY))
_THESE = (OutboxRow.consumer == bindparam("from"), OutboxRow.id.in_(bindparam("ids", expanding=True)))
_MARK = (
    update(OutboxRow)
    .where(*_THESE)
    .values(
        consumer=bindparam("to"),
        position=bindparam("at"),
        due_at=bindparam("now", type_=UtcTime()),
        claimed_until=null(),
    )
)
_UNCLAIM = update(OutboxRow).where(*_THESE).values(claimed_until=null())
_AGAIN = update(OutboxRow).where(*_THESE).values(consumer=CONSUMER, position=null(), claimed_until=null())
_DELETE = delete(OutboxRow).where(*_THESE)
_OLDEST = (
    select(OutboxRow.id, OutboxRow.position, OutboxRow.created_at, OutboxRow.due_at)
    .where(OutboxRow.consumer == bindparam("from"))
    .order_by(OutboxRow.id)
    .limit(PART)
)
_FORGOTTEN = (
    select(OutboxRow.id)
    .where(OutboxRow.consumer == bindparam("from"), not_(OutboxRow.position.like(bindparam("incarnation"))))
    .order_by(OutboxRow.id)
    .limit(PART)
)


class Topic:
    """What is known of one stream: its types of events, who is to have them, and how far they are."""

    def __init__(self, name: str, types: Sequence[str], groups: Sequence[str]) -> None:
        self.name = name
        self.types = types
        self.groups = groups
        self.sent = f"{SENT}{name}"
        self.incarnation = ""
        self.full = False
        # Whether there may be something in the stream that has to be looked after.
        self.unsettled = True
        self.used = False
        self.sweep_at = 0.0
        self.trim_at = 0.0


class Publisher(Committed):
    """One database's. `groups`: who is expected to take what is published, by topic; without any, it is let go at
    once. Any number of processes may publish from one database."""

    def __init__(self, database: Database, broker: Broker, clock: Clock, groups: Mapping[str, Sequence[str]]) -> None:
        self._database = database
        self._broker = broker
        self._clock = clock
        topics = published_types()
        self._topics = {name: Topic(name, types, groups.get(name, ())) for name, types in topics.items()}
        self._of = {each: topic for topic in self._topics.values() for each in topic.types}
        self._settle_at = 0.0
        self._look_at = 0.0
        self._rounds = Rounds(self._turn, "events wait: they cannot be published")

    async def start(self) -> None:
        await self._rounds.start()

    async def stop(self) -> None:
        """Within a second. What is not published yet waits for the next start."""
        await self._rounds.stop()

    async def committed(self, effects: Effects) -> None:
        if any(event.published for event in effects.emitted):
            self.look()

    def look(self) -> None:
        """Something may be there to be published."""
        self._rounds.wake.set()

    async def drain(self) -> int:
        """Publish until nothing is left that can be, and let go of what is confirmed. The number published."""
        total = 0
        while True:
            published = await self._publish()
            moved = [await self._settle(topic) for topic in self._topics.values()]
            total += published
            if not published and not any(moved):
                return total

    async def _turn(self) -> float:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            for topic in self._topics.values():
                topic.unsettled = True
        if now >= self._settle_at:
            self._settle_at = now + SETTLE_SECONDS
            for topic in self._topics.values():
                if topic.unsettled:
                    await self._settle(topic)
        if await self._publish():
            return 0.0
        return SETTLE_SECONDS if any(topic.unsettled for topic in self._topics.values()) else IDLE_SECONDS

    async def _publish(self) -> int:
        """Publish one batch. How many rows were claimed for it."""
        types = [name for name, topic in self._of.items() if not topic.full]
        if not types:
            return 0
        now = self._clock.now()
        wanted = {"types": types, "now": now}
        # On SQLite a transaction takes the only writer: look before asking for it.
        if not await self._database.scalar(_WAITING, wanted):
            return 0
        async with self._database.transaction() as tx:
            claimed = await tx.all(_CLAIM, {**wanted, "lease": now + LEASE})
        rows: dict[str, list[Record]] = {}
        for row in sorted(claimed, key=lambda row: row.id):
            rows.setdefault(self._of[row.type].name, []).append(row)
        outcomes = await asyncio.gather(
            *(self._send(self._topics[name], batch) for name, batch in rows.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return len(claimed)

    async def _send(self, topic: Topic, rows: Sequence[Record]) -> None:
        messages = {row.id: wire for row in rows if (wire := _readable(row)) is not None}
        ids = list(messages)
        if not ids:
            return
        try:
            incarnation, position = await self._broker.publish(topic.name, list(messages.values()))
        except BaseException:
            # Back at once, so that they need not wait for the lease when the broker is there again.
            await self._change(_UNCLAIM, ids, CONSUMER)
            raise
        topic.unsettled = topic.used = True
        if topic.groups:
            now = self._clock.now()
            # The last one's position for all of them: confirmed a moment too late is not wrong.
            await self._change(_MARK, ids, CONSUMER, to=topic.sent, at=f"{incarnation}:{position}", now=now)
        else:
            await self._change(_DELETE, ids, CONSUMER)

    async def _settle(self, topic: Topic) -> bool:
        """Let go of what is confirmed, take back what the broker has forgotten. Whether anything moved."""
        oldest = await self._database.all(_OLDEST, {"from": topic.sent})
        if not oldest and not topic.used:
            topic.unsettled = False
            return False
        standing = await self._broker.standing(topic.name, topic.groups)
        moved = await self._take_back(topic, standing.incarnation)
        while oldest:
            gone = _confirmed(oldest, standing) | self._given_up(topic, oldest)
            if not gone:
                break
            await self._change(_DELETE, list(gone), topic.sent)
            moved = True
            oldest = await self._database.all(_OLDEST, {"from": topic.sent})
        await self._bound(topic, standing)
        topic.used = topic.full
        topic.unsettled = bool(oldest) or topic.full
        return moved

    async def _bound(self, topic: Topic, standing: Standing) -> None:
        """The stream is kept short; if it cannot be, publishing waits for its readers."""
        full = standing.length >= MAXIMUM_LENGTH
        if full and not topic.full:
            log.warning("events wait: the stream is full of what a group has not taken", extra={"topic": topic.name})
        topic.full = full
        if full or time.monotonic() >= topic.trim_at:
            await self._broker.trim(topic.name, standing)
            topic.trim_at = time.monotonic() + TRIM_SECONDS

    async def _take_back(self, topic: Topic, incarnation: str) -> bool:
        """What was published to another incarnation is published again, under the ids that it has.

        Now and then also if it has not changed: another process may have noted an old position since, and died.
        """
        if incarnation == topic.incarnation and time.monotonic() < topic.sweep_at:
            return False
        forgotten = {"from": topic.sent, "incarnation": f"{incarnation}:%"}
        moved = 0
        while rows := await self._database.all(_FORGOTTEN, forgotten):
            await self._change(_AGAIN, [row.id for row in rows], topic.sent)
            moved += len(rows)
        if moved:
            log.warning("the broker was restarted or emptied: events are published again", extra={"events": moved})
        topic.incarnation, topic.sweep_at = incarnation, time.monotonic() + SWEEP_SECONDS
        return moved > 0

    def _given_up(self, topic: Topic, rows: Sequence[Record]) -> set[str]:
        """A group that nobody runs does not hold them for ever."""
        now = self._clock.now()
        given_up = {row.id for row in rows if row.created_at < now - KEPT and row.due_at < now - GRACE}
        if given_up:
            log.warning(
                "events are given up: not every group has taken them within a week",
                extra={"topic": topic.name, "groups": list(topic.groups), "events": len(given_up)},
            )
        return given_up

    async def _change(self, statement: Any, ids: Sequence[str], consumer: str, **values: Any) -> None:
        async with self._database.transaction() as tx:
            await tx.execute(statement, {"ids": ids, "from": consumer, **values})


def _readable(row: Record) -> Wire | None:
    try:
        return wire_of(row)
    except (LookupError, TypeError) as error:  # its lease runs out, and then another version may know it
        log.error(
            "an event cannot be published by this version", extra={"type": row.type, "id": row.id}, exc_info=error
        )
        return None


def _confirmed(rows: Sequence[Record], standing: Standing) -> set[str]:
    if standing.confirmed is None:
        return set()
    limit, here = f"{standing.incarnation}:{standing.confirmed}", f"{standing.incarnation}:"
    return {row.id for row in rows if row.position.startswith(here) and row.position <= limit}
