"""Feeds that processes share over Redis: each is written by the process that opened it, and read by any.

The writer keeps the whole text too, so followers in its own process wait for no Redis, and Redis is brought up to date
a few milliseconds later, with what was added meanwhile, as often as it takes: a piece is written at its place, not
appended, so writing it again changes nothing. Text is stored in UTF-32, where a character's place is known. What all
followers of a process want to know is asked at once, so a thousand of them cost Redis a few hundred requests a second.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bedplate.kernel.clock import Clock
from bedplate.kernel.feeds import KEPT_SECONDS, SILENT_SECONDS, Feed, FeedGone, Feeds, MemoryFeeds, Piece

log = logging.getLogger("bedplate.feeds")

JOINED_SECONDS = 0.004
ASKED_SECONDS = 0.008
# How long a follower waits for a feed that its writer may have just opened.
OPENING_SECONDS = 2.0
# A follower looks by itself this often, should Redis have lost a message.
LOOK_SECONDS = 1.0
RETRY_SECONDS = 0.5
# For so long a follower believes that Redis will be back.
LOST_SECONDS = 4.0
MOST_AT_ONCE = 200
WIDTH = 4
ENCODING = "utf-32-le"
# The text begins after one character, which is there from the beginning on: an empty value would not exist.
MARK = "\x01".encode(ENCODING)

# KEYS: text, outcome. ARGV: offset in bytes, text, outcome or '', milliseconds to keep. Answers how many bytes there
# are if some before the offset are missing (Redis was emptied), else -1.
WRITE = """
local length = redis.call('STRLEN', KEYS[1])
local offset = tonumber(ARGV[1])
if offset > length then return length end
redis.call('SETRANGE', KEYS[1], offset, ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3], 'NX', 'PX', ARGV[4]) end
return -1
"""


class _Written:
    """What Redis has of a feed of this process: so many bytes. `outcome`: as it is written, when it has ended."""

    __slots__ = ("feed", "offset", "outcome")

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.offset = 0
        self.outcome = b""


class _Look:
    """What a follower wants to know: the text from a position on, whether there is such a feed, and its outcome."""

    __slots__ = ("answer", "asked_at", "feed_id", "position")

    def __init__(self, feed_id: str, position: int) -> None:
        loop = asyncio.get_running_loop()
        self.feed_id, self.position, self.asked_at = feed_id, position, loop.time()
        self.answer: asyncio.Future[tuple[str, bool, Mapping[str, Any] | None]] = loop.create_future()


class RedisFeeds(Feeds):
    """Start it before the first use, and stop it after the last."""

    def __init__(self, redis: Redis, clock: Clock, silent_seconds: float = SILENT_SECONDS) -> None:
        self._redis = redis
        self._own = MemoryFeeds(clock, silent_seconds)
        self._silent_seconds = silent_seconds
        # Channels know no database numbers.
        self._channel = f"bedplate:feeds:{redis.connection_pool.connection_kwargs.get('db', 0)}"
        self._growing: dict[str, _Written] = {}
        self._behind: dict[str, _Written] = {}
        self._more = asyncio.Event()
        self._stopping = False
        self._followed: dict[str, set[asyncio.Event]] = {}
        self._looks: list[_Look] = []
        self._wanted = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        # Since somebody here has followed what another process writes.
        self._reader: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._writer = asyncio.create_task(self._keep_writing())

    async def stop(self) -> None:
        """What has been added is written, if Redis is there."""
        self._stopping = True
        self._more.set()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=2.0)
        for task in (self._writer, self._reader, self._listener):
            while task is not None and not task.done():
                # Again if need be: a cancellation can be lost in a library that meets it in its clean-up.
                task.cancel()
                await asyncio.wait([task], timeout=0.2)

    async def open(self, feed_id: str) -> None:
        await self._own.open(feed_id)
        feed = self._own.find(feed_id)
        assert feed is not None
        self._growing[feed_id] = _Written(feed)
        self._changed(feed_id)

    async def add(self, feed_id: str, text: str) -> None:
        await self._own.add(feed_id, text)
        self._changed(feed_id)

    async def end(self, feed_id: str, outcome: Mapping[str, Any]) -> None:
        encoded = orjson.dumps(dict(outcome))
        written = self._growing.pop(feed_id, None)
        if written is None:
            if self._own.find(feed_id) is None:
                await self._end_anothers(feed_id, encoded)
            return
        await self._own.end(feed_id, outcome)
        written.outcome = encoded
        self._behind[feed_id] = written
        self._more.set()

    def follow(self, feed_id: str, position: int = 0) -> AsyncIterator[Piece]:
        if self._own.find(feed_id) is not None:
            return self._own.follow(feed_id, position)
        return self._follow(feed_id, max(position, 0))

    def _changed(self, feed_id: str) -> None:
        written = self._growing.get(feed_id)
        if written is not None:
            self._behind[feed_id] = written
            self._more.set()

    async def _keep_writing(self) -> None:
        away = False
        while True:
            await self._more.wait()
            await asyncio.sleep(0 if self._stopping else JOINED_SECONDS)
            self._more.clear()
            try:
                await self._catch_up()
            except (RedisError, OSError) as error:
                if not away:
                    what = "Redis is away: other processes cannot follow what grows here"
                    log.warning(what, extra={"reason": type(error).__name__})
                away = True
                if self._stopping:
                    return
                self._forget_gone()
                await asyncio.sleep(RETRY_SECONDS)
                self._more.set()
                continue
            away = False
            if self._stopping and not self._behind:
                return

    async def _catch_up(self) -> None:
        """Write what Redis does not have, and tell who listens. What fails stays to be written."""
        behind = list(self._behind.items())
        for first in range(0, len(behind), MOST_AT_ONCE):
            part = behind[first : first + MOST_AT_ONCE]
            async with self._redis.pipeline(transaction=False) as pipe:
                sent = [self._put(pipe, feed_id, written) for feed_id, written in part]
                pipe.publish(self._channel, orjson.dumps([feed_id for feed_id, _ in part]))
                answers = await pipe.execute()
            for (feed_id, written), (offset, outcome), answer in zip(part, sent, answers, strict=False):
                written.offset = offset if answer == -1 else 0
                if written.offset == _offset(written.feed) and outcome == written.outcome:
                    self._behind.pop(feed_id, None)
        if self._behind:
            self._more.set()

    def _put(self, pipe: Any, feed_id: str, written: _Written) -> tuple[int, bytes]:
        """Adds the step of one feed; how many bytes there are after it, and with which outcome."""
        text = written.feed.since(max(written.offset // WIDTH - 1, 0)).encode(ENCODING, "surrogatepass")
        data = text if written.offset else MARK + text
        pipe.eval(WRITE, 2, *_keys(feed_id), written.offset, data, written.outcome, int(KEPT_SECONDS * 1000))
        return _offset(written.feed), written.outcome

    async def _end_anothers(self, feed_id: str, outcome: bytes) -> None:
        """End a feed whose writer has died, as far as Redis has its text."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.set(_keys(feed_id)[1], outcome, nx=True, px=int(KEPT_SECONDS * 1000))
            await self._redis.publish(self._channel, orjson.dumps([feed_id]))

    def _forget_gone(self) -> None:
        """Bounds what waits for Redis: what is not kept here any more is not written any more."""
        for feed_id in [feed_id for feed_id in self._behind if self._own.find(feed_id) is None]:
            del self._behind[feed_id]

    async def _follow(self, feed_id: str, position: int) -> AsyncIterator[Piece]:
        changed = asyncio.Event()
        self._followed.setdefault(feed_id, set()).add(changed)
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
            self._reader = asyncio.create_task(self._keep_reading())
        loop = asyncio.get_running_loop()
        opening, silent_at = loop.time() + OPENING_SECONDS, loop.time() + self._silent_seconds
        try:
            while True:
                changed.clear()
                text, there, outcome = await self._look(feed_id, position)
                if text or outcome is not None:
                    position += len(text)
                    yield Piece(text, position, outcome)
                    silent_at = loop.time() + self._silent_seconds
                now = loop.time()
                if outcome is not None:
                    return
                if now > silent_at or (not there and now > opening):
                    raise FeedGone
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_SECONDS if there else OPENING_SECONDS / 40)
        finally:
            self._followed[feed_id].discard(changed)
            if not self._followed[feed_id]:
                del self._followed[feed_id]

    async def _look(self, feed_id: str, position: int) -> tuple[str, bool, Mapping[str, Any] | None]:
        """Raises FeedGone if Redis stays away."""
        look = _Look(feed_id, position)
        self._looks.append(look)
        self._wanted.set()
        return await look.answer

    async def _keep_reading(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            await asyncio.sleep(ASKED_SECONDS)
            self._wanted.clear()
            looks = [look for look in self._looks if not look.answer.done()]
            part, self._looks = looks[:MOST_AT_ONCE], looks[MOST_AT_ONCE:]
            if self._looks:
                self._wanted.set()
            try:
                await self._answer(part)
            except (RedisError, OSError, ValueError) as error:
                late = [look for look in part if loop.time() - look.asked_at > LOST_SECONDS]
                if late:
                    what = "Redis is away: what grows elsewhere cannot be followed"
                    log.warning(what, extra={"reason": type(error).__name__, "followers": len(late)})
                for look in late:
                    if not look.answer.done():
                        look.answer.set_exception(FeedGone())
                self._looks += [look for look in part if not look.answer.done()]
                self._wanted.set()
                await asyncio.sleep(RETRY_SECONDS / 5)

    async def _answer(self, looks: list[_Look]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for look in looks:
                text, ending = _keys(look.feed_id)
                # The outcome first: what is written after it is no part of the text any more.
                pipe.get(ending)
                pipe.strlen(text)
                pipe.getrange(text, (look.position + 1) * WIDTH, -1)
            answers = iter(await pipe.execute())
        for look, (outcome, length, data) in zip(looks, zip(answers, answers, answers, strict=True), strict=True):
            there = length > 0 or outcome is not None
            ended = None if outcome is None else orjson.loads(outcome)
            if not look.answer.done():
                look.answer.set_result((data.decode(ENCODING, "surrogatepass"), there, ended))

    async def _listen(self) -> None:
        """Wake who follows what has changed. Without it they still look once in a second."""
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    self._wake(list(self._followed))
                    async for message in subscription.listen():
                        if message["type"] == "message":
                            self._wake(orjson.loads(message["data"]))
            except (RedisError, OSError, ValueError) as error:
                log.warning("Redis is away: nobody tells what has grown", extra={"reason": type(error).__name__})
            await asyncio.sleep(RETRY_SECONDS)

    def _wake(self, feed_ids: list[str]) -> None:
        for feed_id in feed_ids:
            for changed in self._followed.get(feed_id, ()):
                changed.set()


def _keys(feed_id: str) -> list[str]:
    # The braces keep both on one node of a cluster.
    return [f"bedplate:feed:{{{feed_id}}}", f"bedplate:feed:{{{feed_id}}}:end"]


def _offset(feed: Feed) -> int:
    """Bytes of the whole text as it is stored."""
    return (feed.length + 1) * WIDTH
