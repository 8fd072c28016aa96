"""Broker: carries published events between processes that have databases of their own.

The outboxes are the truth and the broker is a hint: a row stays where the event was said until every group of readers
has it in a database of its own, and is published again when the broker may have forgotten it. `publisher.py` is the
one end, `intake.py` the other; `streams.py`, the one implementation so far, is what lies between.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.kernel.db import Record, Routes
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.events import Event, to_wire

# The consumer of rows that are still to be published.
CONSUMER = "broker"
# Beyond this many entries in one stream publishing waits for the readers; what waits is in the outbox.
MAXIMUM_LENGTH = 1_000_000
# What every group has taken stays a while, for tails and for other programs that read along.
LINGER_SECONDS = 600
# What some group has not taken by then it is not expected to take any more.
KEPT_SECONDS = 7 * 86_400

Wire = dict[str, Any]


class BrokerAway(Unavailable):
    """The broker did not answer, or refused. What it was to carry waits in the outbox."""


@dataclass(frozen=True, slots=True)
class Message:
    """One entry as it was read. `wire` is None if it is nothing that this product has written."""

    receipt: str
    wire: Wire | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the groups of one stream are.

    `incarnation` changes when the broker may have forgotten something: positions compare, as text, within one only.
    `confirmed`: up to there every expected group has taken everything; None if one of them has yet to come.
    """

    incarnation: str
    confirmed: str | None
    length: int


class Broker(ABC):
    """Streams, one for each topic, in which the events of one key keep their order. Every method but `close` raises
    BrokerAway; none waits longer than a few seconds."""

    @abstractmethod
    async def publish(self, topic: str, messages: Sequence[Wire]) -> tuple[str, str]:
        """Append them, in this order: all, or the outcome is unknown. The incarnation, and the last one's position."""

    @abstractmethod
    async def standing(self, topic: str, groups: Sequence[str]) -> Standing:
        """How far these groups are: the position that the slowest has acknowledged, with everything before it."""

    @abstractmethod
    async def trim(self, topic: str, standing: Standing) -> None:
        """Let go of what is confirmed, after a while, and of what is too old to be waited for."""

    @abstractmethod
    async def hold(self, topic: str, group: str, name: str, seconds: float) -> bool:
        """Be the group's one reader for so long, if nobody else is. Asked again, it goes on from now."""

    @abstractmethod
    async def release(self, topic: str, group: str, name: str) -> None:
        """Be its reader no longer."""

    @abstractmethod
    async def read(self, topic: str, group: str, limit: int, wait_seconds: float, *, again: bool) -> Sequence[Message]:
        """What the group has not yet read, in order; or, `again`, what was read and never acknowledged.

        A group that does not exist, or no longer, begins with the oldest entry that is there.
        """

    @abstractmethod
    async def acknowledge(self, topic: str, group: str, receipts: Sequence[str]) -> None:
        """These are safe with the group."""

    @abstractmethod
    def tail(self, topics: Sequence[str], listening: Callable[[], None] = lambda: None) -> AsyncIterator[Wire]:
        """What is published from now on, for ever, through outages. For people: nothing is promised. `listening` is
        called when "now" has come."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises BrokerAway if it does not answer."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""


def with_broker(routes: Routes) -> Routes:
    """The routes of a database whose published events the broker carries to others as well."""
    published = {kind.__name__: (*routes.get(kind.__name__, ()), CONSUMER) for kind in _published()}
    return {**routes, **published}


def published_types() -> dict[str, list[str]]:
    """The class names of the events that leave the process, by topic."""
    types: dict[str, list[str]] = {}
    for kind in _published():
        types.setdefault(kind.topic, []).append(kind.__name__)
    return types


def wire_of(row: Record) -> Wire:
    """An outbox row as it goes over the wire.

    Raises:
        LookupError, TypeError: a newer version wrote it, or a much older one.
    """
    return to_wire(row.id, Event.known[row.type](**row.payload), row.created_at)


def _published() -> list[type[Event]]:
    return [kind for kind in Event.known.values() if kind.published]
