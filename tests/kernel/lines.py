"""A line: from the outbox of one database through a broker to the listeners of another."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from bedplate.kernel.broker import CONSUMER, Broker, with_broker
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.events import Event
from bedplate.kernel.intake import Intake
from bedplate.kernel.outbox import Delivery, Listener, OutboxRow, emit
from bedplate.kernel.publisher import SENT, Publisher
from bedplate.kernel.relay import Relay

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class BoxMoved(Event):
    topic = "boxes"
    key_field = "box"

    box: str
    number: int


@dataclass(frozen=True, slots=True)
class BoxOpened(Event):
    """Nobody listens to this one."""

    topic = "boxes"
    key_field = "box"

    box: str


@dataclass(frozen=True, slots=True)
class BoxWeighed(Event):
    """Said by a module to itself."""

    topic = "boxes"
    key_field = "box"
    published = False

    box: str


@dataclass(frozen=True, slots=True)
class CrateMoved(Event):
    """On a stream of its own."""

    topic = "crates"
    key_field = "crate"

    crate: str


async def until(true: Callable[[], Awaitable[bool] | bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for it, looking again and again."""
    async with asyncio.timeout(seconds):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.005)


@dataclass
class Sender:
    """What is said in its database goes to the broker for these groups."""

    database: Database
    broker: Broker
    clock: Clock
    groups: Sequence[str] = ("store",)
    publisher: Publisher = field(init=False)

    def __post_init__(self) -> None:
        self.database.routes = with_broker({})
        self.publisher = Publisher(self.database, self.broker, self.clock, {"boxes": self.groups})
        self.database.listeners.append(self.publisher)

    async def say(self, box: str, *numbers: int) -> None:
        for number in numbers:
            async with self.database.transaction() as tx:
                await emit(tx, BoxMoved(box, number), self.clock.now())

    async def say_all(self, pairs: Iterable[tuple[str, int]]) -> None:
        for box, number in pairs:
            await self.say(box, number)

    async def waiting(self) -> int:
        """Rows that are not published yet."""
        return await self._count(CONSUMER)

    async def held(self) -> int:
        """Rows that are published, but not yet confirmed."""
        return await self._count(f"{SENT}boxes")

    async def _count(self, consumer: str) -> int:
        rows = select(func.count()).select_from(OutboxRow).where(OutboxRow.consumer == consumer)
        return int(await self.database.scalar(rows))


@dataclass
class Receiver:
    """A consumer that counts every delivery: it does not know an event that comes twice."""

    database: Database
    broker: Broker
    clock: Clock
    group: str = "store"
    handle: Callable[[Delivery], Awaitable[None]] | None = None
    heard: list[tuple[str, int]] = field(default_factory=list)
    intake: Intake = field(init=False)
    relay: Relay = field(init=False)

    def __post_init__(self) -> None:
        listener = Listener(f"{self.group}.shelf", BoxMoved, self.handle or self._hear)
        self.relay = Relay(self.database, [listener], self.clock)
        self.intake = self.reader()

    def reader(self, broker: Broker | None = None) -> Intake:
        """Another one of the same group, as another process would have it."""
        wanted = {"boxes": [BoxMoved]}
        return Intake(self.database, broker or self.broker, self.group, self.group, wanted, self.clock, self.relay.look)

    async def take(self) -> list[tuple[str, int]]:
        """All that is there, handled. Everything that was heard so far."""
        await self.intake.drain()
        await self.relay.drain()
        return self.heard

    async def start(self) -> None:
        await self.relay.start()
        await self.intake.start()

    async def stop(self) -> None:
        await self.intake.stop()
        await self.relay.stop()

    async def _hear(self, delivery: Delivery) -> None:
        self.heard.append((delivery.event.box, delivery.event.number))


@contextlib.contextmanager
def killable() -> Iterator[list[asyncio.Task[Any]]]:
    """The tasks that were started inside, as what dies with a process."""
    before, found = asyncio.all_tasks(), list[asyncio.Task[Any]]()
    yield found
    found += asyncio.all_tasks() - before


async def kill(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End them wherever they are."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while alive := [task for task in tasks if not task.done()]:
            for task in alive:  # again if need be: a cancellation can be lost in a library's clean-up
                task.cancel()
            await asyncio.wait(alive, timeout=0.2)


def numbers(heard: Sequence[tuple[str, int]], box: str) -> list[int]:
    return [number for place, number in heard if place == box]
