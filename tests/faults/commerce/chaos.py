"""A broker that delivers every message several times, in any order, and at first not at all; and listeners that hear
everything twice. What the product promises, it promises to whoever has such a broker."""

import dataclasses
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from bedplate.kernel.broker import Broker, Message, Standing, Wire
from bedplate.kernel.outbox import Delivery, Listener

MOST_COPIES = 5
DROPPED_AT_FIRST = 0.05


class ChaosBroker(Broker):
    """In this process. Positions are the numbers of messages; a group has confirmed what it has acknowledged all
    copies of. What is dropped at first comes when nothing else is left."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._streams: dict[str, list[Wire]] = {}
        self._pending: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._dropped: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._left: dict[tuple[str, str], Counter[int]] = {}
        self._handed: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.published = 0
        self.delivered = 0
        self.dropped = 0

    async def publish(self, topic: str, messages: Sequence[Wire]) -> tuple[str, str]:
        stream = self._streams.setdefault(topic, [])
        for message in messages:
            stream.append(message)
            for (known, group), pending in self._pending.items():
                if known == topic:
                    self._schedule(topic, group, len(stream) - 1, pending)
        self.published += len(messages)
        return "one", f"{len(stream):012d}"

    async def standing(self, topic: str, groups: Sequence[str]) -> Standing:
        length = len(self._streams.get(topic, ()))
        confirmed = length
        for group in groups:
            self._join(topic, group)
            unsettled = [number for number, copies in self._left[topic, group].items() if copies]
            confirmed = min(confirmed, min(unsettled, default=length))
        return Standing("one", f"{confirmed:012d}", length)

    async def trim(self, topic: str, standing: Standing) -> None:
        """Nothing is forgotten."""

    async def hold(self, topic: str, group: str, name: str, seconds: float) -> bool:
        return True

    async def release(self, topic: str, group: str, name: str) -> None:
        """Nobody else wants it."""

    async def read(self, topic: str, group: str, limit: int, wait_seconds: float, *, again: bool) -> Sequence[Message]:
        self._join(topic, group)
        pending, handed = self._pending[topic, group], self._handed[topic, group]
        if again and handed:
            chosen = list(handed)
        else:
            if not pending:
                pending += self._dropped[topic, group]
                self._dropped[topic, group].clear()
            self._dice.shuffle(pending)
            chosen = [pending.pop() for _ in range(min(len(pending), self._dice.randint(1, limit)))]
            handed += chosen
        self.delivered += len(chosen)
        return [Message(f"{number}-{copy}", self._streams[topic][number]) for number, copy in chosen]

    async def acknowledge(self, topic: str, group: str, receipts: Sequence[str]) -> None:
        for receipt in receipts:
            number, _, copy = receipt.partition("-")
            self._handed[topic, group].remove((int(number), int(copy)))
            self._left[topic, group][int(number)] -= 1

    def tail(self, topics: Sequence[str], listening: Callable[[], None] = lambda: None) -> AsyncIterator[Wire]:
        raise NotImplementedError

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing is open."""

    def _join(self, topic: str, group: str) -> None:
        if (topic, group) in self._pending:
            return
        pending: list[tuple[int, int]] = []
        self._pending[topic, group], self._dropped[topic, group], self._handed[topic, group] = pending, [], []
        self._left[topic, group] = Counter()
        for number in range(len(self._streams.setdefault(topic, []))):
            self._schedule(topic, group, number, pending)

    def _schedule(self, topic: str, group: str, number: int, pending: list[tuple[int, int]]) -> None:
        copies = self._dice.randint(1, MOST_COPIES)
        self._left[topic, group][number] = copies
        late = self._dice.random() < DROPPED_AT_FIRST
        self.dropped += late
        (self._dropped[topic, group] if late else pending).extend((number, copy) for copy in range(copies))


@dataclass
class Echo:
    """Hands every delivery to its listener a second time, at some later moment, in any order."""

    seed: int
    kept: list[tuple[Listener, Delivery]] = field(default_factory=list)
    repeated: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def of(self, listener: Listener) -> Listener:
        async def handle(delivery: Delivery) -> None:
            await listener.handle(delivery)
            self.kept.append((listener, delivery))

        return dataclasses.replace(listener, handle=handle)

    async def repeat(self, share: float) -> int:
        """A share of what was delivered so far, again. How many."""
        self._dice.shuffle(self.kept)
        chosen = [self.kept.pop() for _ in range(math.ceil(len(self.kept) * share))]
        for listener, delivery in chosen:
            await listener.handle(delivery)
        self.repeated += len(chosen)
        return len(chosen)
