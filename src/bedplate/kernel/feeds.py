"""Feeds: texts that grow, followed by anybody from any position, in this process or (through Redis) in another.

A position is a number of characters, so whoever lost the connection goes on where he was: no gap, no repeat. A feed
ends once, with an outcome. It is kept for ten minutes after its last change, or until room is needed for others; what
is to last is stored elsewhere.
"""

import asyncio
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Unavailable

KEPT_SECONDS = 600.0
# A follower waits no longer than this for something to come. Longer than any one answer may take.
SILENT_SECONDS = 180.0
MAXIMUM_TEXT = 1_000_000
MAXIMUM_OPEN = 5_000
MAXIMUM_KEPT = 5_000
# Characters of all feeds that have ended.
MAXIMUM_KEPT_TEXT = 20_000_000


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text. `position`: characters up to and with this piece. `outcome`: only of the last one, whose text
    may be empty."""

    text: str
    position: int
    outcome: Mapping[str, Any] | None = None


class FeedGone(Exception):
    """There is no such feed, or nothing has come for longer than the limit."""


class Feeds(ABC):
    """Every feed of this process, or of this installation."""

    @abstractmethod
    async def open(self, feed_id: str) -> None:
        """A new feed. Raises Unavailable: there are too many."""

    @abstractmethod
    async def add(self, feed_id: str, text: str) -> None:
        """Let it grow; beyond a limit of characters (1,000,000) nothing is added."""

    @abstractmethod
    async def end(self, feed_id: str, outcome: Mapping[str, Any]) -> None:
        """With this outcome, JSON-safe. Only the first end counts."""

    @abstractmethod
    def follow(self, feed_id: str, position: int = 0) -> AsyncIterator[Piece]:
        """Everything from there on until the end. Pieces may be joined differently than they were added.
        Raises FeedGone."""


class Feed:
    """One text: its parts as they came, so that adding costs the same however long it is."""

    __slots__ = ("_ends", "_parts", "_waiting", "changed_at", "length", "outcome")

    def __init__(self, now: float) -> None:
        self._parts: list[str] = []
        self._ends: list[int] = []
        self._waiting: list[asyncio.Future[None]] = []
        self.length = 0
        self.outcome: Mapping[str, Any] | None = None
        self.changed_at = now

    def add(self, text: str, now: float) -> None:
        text = text[: MAXIMUM_TEXT - self.length]
        if text and self.outcome is None:
            self.length += len(text)
            self._parts.append(text)
            self._ends.append(self.length)
            self._changed(now)

    def end(self, outcome: Mapping[str, Any], now: float) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._parts, self._ends = ["".join(self._parts)], [self.length]
            self._changed(now)

    def since(self, position: int) -> str:
        """The text from there on."""
        if position >= self.length:
            return ""
        first = bisect_right(self._ends, position)
        begins = self._ends[first] - len(self._parts[first])
        if first == len(self._parts) - 1:
            return self._parts[first][position - begins :]
        return "".join([self._parts[first][position - begins :], *self._parts[first + 1 :]])

    async def changed(self, seconds: float) -> None:
        """Wait until there is more. Raises FeedGone: nothing has come for so long."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            raise FeedGone from None
        finally:
            if waiter.cancelled() and waiter in self._waiting:
                self._waiting.remove(waiter)

    def _changed(self, now: float) -> None:
        self.changed_at = now
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class MemoryFeeds(Feeds):
    """Feeds of this process."""

    def __init__(self, clock: Clock, silent_seconds: float = SILENT_SECONDS) -> None:
        self._clock = clock
        self._silent_seconds = silent_seconds
        # Those that grow, and those that have ended, the one that ended first in front.
        self._open: dict[str, Feed] = {}
        self._kept: dict[str, Feed] = {}
        self._kept_text = 0

    async def open(self, feed_id: str) -> None:
        now = self._clock.timestamp()
        if len(self._open) >= MAXIMUM_OPEN:
            self._forget_silent(now)
        if len(self._open) >= MAXIMUM_OPEN:
            raise Unavailable()
        self._open[feed_id] = Feed(now)

    async def add(self, feed_id: str, text: str) -> None:
        feed = self._open.get(feed_id)
        if feed is not None:
            feed.add(text, self._clock.timestamp())

    async def end(self, feed_id: str, outcome: Mapping[str, Any]) -> None:
        feed = self._open.pop(feed_id, None)
        if feed is not None:
            now = self._clock.timestamp()
            feed.end(outcome, now)
            self._kept[feed_id] = feed
            self._kept_text += feed.length
            self._forget_old(now)

    def find(self, feed_id: str) -> Feed | None:
        """The feed itself."""
        feed = self._open.get(feed_id) or self._kept.get(feed_id)
        if feed is None or feed.changed_at <= self._clock.timestamp() - KEPT_SECONDS:
            return None
        return feed

    async def follow(self, feed_id: str, position: int = 0) -> AsyncIterator[Piece]:
        feed = self.find(feed_id)
        if feed is None:
            raise FeedGone
        position = max(position, 0)
        while True:
            outcome, text = feed.outcome, feed.since(position)
            if text or outcome is not None:
                position += len(text)
                yield Piece(text, position, outcome)
            if outcome is not None:
                return
            # While the last piece was taken more may have come, of which nobody will tell.
            if feed.outcome is None and feed.length <= position:
                await feed.changed(self._silent_seconds)

    def _forget_old(self, now: float) -> None:
        while self._kept:
            feed_id, feed = next(iter(self._kept.items()))
            full = len(self._kept) > MAXIMUM_KEPT or self._kept_text > MAXIMUM_KEPT_TEXT
            if not full and feed.changed_at > now - KEPT_SECONDS:
                return
            del self._kept[feed_id]
            self._kept_text -= feed.length

    def _forget_silent(self, now: float) -> None:
        for feed_id, feed in list(self._open.items()):
            if feed.changed_at <= now - KEPT_SECONDS:
                del self._open[feed_id]
