"""Cache: values remembered in the process for as long as they are true.

A value is kept under tags; a transaction that makes a tag stale says so (`tx.invalidate`), and every process has
forgotten it before the caller of that transaction gets an answer. Where this cannot be promised (several processes on
PostgreSQL without Redis, or a lost connection to Redis) nothing is remembered.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Committed, Database, Effects

V = TypeVar("V")

CAPACITY = 20_000
# Bounds how long a process that lost the others without noticing can be wrong.
LIFETIME_SECONDS = 5.0


class Cache(Committed):
    """Remembered values of one process. `database` sees the commits of others on SQLite; `signals` carries them."""

    def __init__(self, clock: Clock, database: Database | None = None, signals: "Signals | None" = None) -> None:
        self._clock = clock
        self._database = database
        self._signals = signals
        self._values: dict[str, tuple[Any, float, tuple[str, ...]]] = {}
        self._tagged: dict[str, set[str]] = {}
        self._generation = 0
        self.hits = 0
        self.misses = 0
        if signals is not None:
            signals.receivers.append(self)

    @property
    def coherent(self) -> bool:
        """Whether a change anywhere is sure to be heard here."""
        if self._signals is not None:
            return self._signals.live
        return self._database is not None and self._database.dialect.name == "sqlite"

    @property
    def hit_rate(self) -> float:
        """Share of look-ups answered from memory, 0 to 1."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    async def get(
        self,
        key: str,
        load: Callable[[], Awaitable[V]],
        tags: Callable[[V], Iterable[str]],
        seconds: float = 60.0,
    ) -> V:
        """The value under key, loaded if it is not known to be true. `seconds` bounds its life."""
        found: V | None = self.peek(key)
        return found if found is not None else await self.load(key, load, tags, seconds)

    async def load(
        self,
        key: str,
        load: Callable[[], Awaitable[V]],
        tags: Callable[[V], Iterable[str]],
        seconds: float = 60.0,
    ) -> V:
        """Load the value and remember it under key."""
        generation = self._generation
        value = await load()
        # A change while it was being loaded may have been missed by the load: then it is not kept.
        if self.coherent and generation == self._generation:
            self._keep(key, value, tuple(tags(value)), seconds)
        return value

    def peek(self, key: str) -> Any:
        """The value under key if it is known and true, else None."""
        if self._database is not None and self._database.changed_elsewhere():
            self.forget_all()
        found = self._values.get(key)
        if found is not None and found[1] > self._clock.timestamp() and self.coherent:
            self.hits += 1
            return found[0]
        self.misses += 1
        return None

    def forget(self, tags: Iterable[str]) -> None:
        """Drop every value under these tags."""
        self._generation += 1
        for tag in tags:
            for key in tuple(self._tagged.get(tag, ())):
                self._drop(key)

    def forget_all(self) -> None:
        """Drop everything."""
        self._generation += 1
        self._values.clear()
        self._tagged.clear()

    async def committed(self, effects: Effects) -> None:
        if effects.stale:
            self.forget(effects.stale)
            if self._signals is not None:
                await self._signals.publish(effects.stale)

    def _drop(self, key: str) -> None:
        for tag in self._values.pop(key)[2]:
            keys = self._tagged[tag]
            keys.discard(key)
            if not keys:
                del self._tagged[tag]

    def _keep(self, key: str, value: Any, tags: tuple[str, ...], seconds: float) -> None:
        if key in self._values:
            self._drop(key)
        while len(self._values) >= CAPACITY:
            self._drop(next(iter(self._values)))
        if self._signals is not None:
            seconds = min(seconds, LIFETIME_SECONDS)
        self._values[key] = (value, self._clock.timestamp() + seconds, tuple(dict.fromkeys(tags)))
        for tag in tags:
            self._tagged.setdefault(tag, set()).add(key)


class Signals(ABC):
    """Tells every process which tags are stale. `live`: whether this one is sure to hear the others now."""

    def __init__(self) -> None:
        self.receivers: list[Cache] = []
        self.live = False

    @abstractmethod
    async def publish(self, tags: Iterable[str]) -> None:
        """Returns once all listening processes have forgotten."""
