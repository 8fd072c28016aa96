"""Intake: takes what the broker brings for one consumer of this process into its outbox, from where the relay delivers.

One process of a group reads a stream at a time, so that the events of one key keep their order. What was read is
written in one transaction and acknowledged after its commit; what comes a second time is known by its inbox row.
"""

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import and_, bindparam, delete, func, insert, or_, select

from bedplate.kernel.broker import Broker, BrokerAway, Message, Wire
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import EPOCH, Database, UniqueViolation
from bedplate.kernel.events import Event, from_wire
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.outbox import InboxRow, OutboxRow, rows_of
from bedplate.kernel.rounds import Rounds

log = logging.getLogger("bedplate.intake")

BATCH = 256
WAIT_SECONDS = 0.5
LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
RELEASE_SECONDS = 0.25
# How often somebody who does not read looks whether it is needed, and a reader whether others have left something.
STANDBY_SECONDS = 1.0
LEFT_SECONDS = 30.0
LONGEST_KEY = 254
LONGEST_TYPE = 100
ENVELOPE = ("event_id", "event_type", "occurred_at", "data")
KEPT = timedelta(days=7)
# What this version does not know waits for the version that does, a week, and not without limit.
UNKNOWN = "unknown"
MAXIMUM_UNKNOWN = 10_000
FORGET_SECONDS = 3600.0

_KNOWN = select(InboxRow.event_id).where(
    InboxRow.consumer == bindparam("consumer"), InboxRow.event_id.in_(bindparam("ids", expanding=True))
)
_HERE = select(OutboxRow.id).where(
    OutboxRow.consumer == bindparam("consumer"), OutboxRow.id.in_(bindparam("ids", expanding=True))
)
_UNKNOWN = and_(OutboxRow.consumer == bindparam("consumer"), OutboxRow.position == UNKNOWN)
_FORGET = delete(OutboxRow).where(
    _UNKNOWN,
    or_(OutboxRow.created_at < bindparam("before"), OutboxRow.type.in_(bindparam("unwanted", expanding=True))),
)


class Unreadable(ValueError):
    """Nothing that this product, in any version, has written."""


class Intake:
    """One consumer's. `group`: its name at the broker; `wanted`: what it hears of others, by topic; `look`: tells the
    relay that something came."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        group: str,
        consumer: str,
        wanted: Mapping[str, Sequence[type[Event]]],
        clock: Clock,
        look: Callable[[], None],
    ) -> None:
        self._database = database
        self._consumer = consumer
        self._clock = clock
        self._look = look
        self._wanted = {kind.__name__ for kinds in wanted.values() for kind in kinds}
        self._readers = [Reader(broker, topic, group, self._take) for topic in wanted]
        self._forget_at = 0.0
        self.unreadable = 0

    async def start(self) -> None:
        for reader in self._readers:
            await reader.start()

    async def stop(self) -> None:
        """Within a second. What is read and not acknowledged is read again, here or by another process."""
        await asyncio.gather(*(reader.stop() for reader in self._readers))

    async def drain(self) -> int:
        """Take what is there. The number of entries that were read."""
        total = 0
        for reader in self._readers:
            while read := await reader.step(0.0):
                total += read
        return total

    async def _take(self, topic: str, messages: Sequence[Message]) -> None:
        rows: dict[str, dict[str, Any]] = {}
        for message in messages:
            try:
                row = self._row(message.wire)
            except Unreadable:
                self.unreadable += 1
                log.warning("an entry cannot be read", extra={"topic": topic, "entry": message.receipt})
                continue
            if row is not None:
                rows.setdefault(row["id"], row)
        await self._forget_unknown()
        if not rows:
            return
        try:
            new = await self._store(rows)
        except UniqueViolation:  # another reader, whose lease had run out, at the same moment
            new = await self._store(rows)
        if new:
            self._look()

    async def _store(self, rows: Mapping[str, dict[str, Any]]) -> int:
        """Those that did not come before. How many."""
        now = self._clock.now()
        these = {"consumer": self._consumer, "ids": list(rows)}
        async with self._database.transaction() as tx:
            known = {row[0] for statement in (_KNOWN, _HERE) for row in await tx.all(statement, these)}
            new = [{**row, "due_at": now} for each, row in rows.items() if each not in known]
            if any(row["position"] == UNKNOWN for row in new):
                waiting = await tx.scalar(select(func.count()).where(_UNKNOWN), {"consumer": self._consumer})
                if waiting >= MAXIMUM_UNKNOWN:
                    log.warning("too many events of a newer version: they are left out", extra={"waiting": waiting})
                    new = [row for row in new if row["position"] is None]
            if new:
                await tx.execute(insert(OutboxRow), new)
                # By now, not by the time of the event: until then it may come again.
                inbox = [{"event_id": row["id"], "consumer": self._consumer, "at": now} for row in new]
                await tx.execute(insert(InboxRow), inbox)
        return len(new)

    def _row(self, wire: Wire | None) -> dict[str, Any] | None:
        """The outbox row of a message; None if this consumer does not want it.

        Everything that a database could refuse is refused here: a transaction that fails is tried for ever.
        """
        if wire is None:
            raise Unreadable
        try:
            name = _class_name(wire["event_type"])
            if name in Event.known and name not in self._wanted:
                return None
            row = _known(wire) if name in Event.known else _unknown(wire, name)
            at = row["created_at"].astimezone(UTC) if row["created_at"].tzinfo else None
            row["key"].encode()
            orjson.dumps(row["payload"])  # refuses what is nested too deeply, and half characters
            json.dumps(row["payload"], allow_nan=False)  # and this what is no number
            sound = is_id(row["id"]) and len(row["key"]) <= LONGEST_KEY and "\0" not in row["key"]
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise Unreadable from error
        if at is None or at < EPOCH or not sound:
            raise Unreadable
        return {**row, "created_at": at, "consumer": self._consumer, "attempts": 0}

    async def _forget_unknown(self) -> None:
        """What a newer version said: this one knows it by now and does not want it, or it is a week old."""
        if time.monotonic() < self._forget_at:
            return
        unwanted = [name for name in Event.known if name not in self._wanted]
        gone = {"consumer": self._consumer, "before": self._clock.now() - KEPT, "unwanted": unwanted}
        async with self._database.transaction() as tx:
            await tx.execute(_FORGET, gone)
        self._forget_at = time.monotonic() + FORGET_SECONDS


class Reader:
    """Reads one stream for one group, if no other process does."""

    def __init__(
        self, broker: Broker, topic: str, group: str, take: Callable[[str, Sequence[Message]], Awaitable[None]]
    ) -> None:
        self._broker = broker
        self._stream = (topic, group)
        self._take = functools.partial(take, topic)
        self._name = new_id()
        self._held_until = 0.0
        # Whether something may have been read and not acknowledged, here or by whoever read before.
        self._again = True
        self._again_at = 0.0
        self._rounds = Rounds(self._turn, "events of others wait: they cannot be taken in")

    async def start(self) -> None:
        await self._rounds.start()

    async def stop(self) -> None:
        await self._rounds.stop()
        if self._held_until > time.monotonic():
            with contextlib.suppress(BrokerAway, TimeoutError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self._broker.release(*self._stream, self._name)
            self._held_until = 0.0

    async def _turn(self) -> float:
        if not await self._holds():
            return STANDBY_SECONDS
        await self.step(WAIT_SECONDS)
        return 0.0

    async def step(self, wait_seconds: float) -> int:
        """Take one batch. How many entries it had."""
        again = self._again or time.monotonic() > self._again_at
        self._again = True  # unless this goes well
        messages = await self._broker.read(*self._stream, BATCH, 0.0 if again else wait_seconds, again=again)
        if messages:
            await self._take(messages)
            await self._broker.acknowledge(*self._stream, [message.receipt for message in messages])
        elif again:
            self._again_at = time.monotonic() + LEFT_SECONDS
            self._again = False
            return await self.step(wait_seconds)
        self._again = again
        return len(messages)

    async def _holds(self) -> bool:
        now = time.monotonic()
        if now < self._held_until - LEASE_SECONDS + RENEW_SECONDS:
            return True
        if await self._broker.hold(*self._stream, self._name, LEASE_SECONDS):
            self._held_until = now + LEASE_SECONDS
            return True
        self._held_until = 0.0
        self._again = True
        return False


def _class_name(event_type: str) -> str:
    """`OrderCreated` for order_created."""
    if not (event_type.isascii() and event_type.isidentifier() and len(event_type) <= LONGEST_TYPE):
        raise Unreadable
    return "".join(word.capitalize() for word in event_type.split("_"))


def _known(wire: Wire) -> dict[str, Any]:
    event_id, event, at = from_wire(wire)
    return rows_of(event_id, event, at, [""])[0] | {"position": None}


def _unknown(wire: Wire, name: str) -> dict[str, Any]:
    """As the version that knows the event would have written it, but that the first id is taken for its key."""
    top = {field: value for field, value in wire.items() if field not in ENVELOPE}
    payload = {**wire["data"], **top}
    return {
        "id": wire["event_id"],
        "type": name,
        "key": str(next(iter(top.values()), wire["event_id"])),
        "payload": payload,
        "created_at": datetime.fromisoformat(wire["occurred_at"]),
        "position": UNKNOWN,
    }
