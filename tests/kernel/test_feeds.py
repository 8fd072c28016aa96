"""Feeds: whoever follows gets the text once, whatever happens in between, in one process and in several."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.kernel import feeds as kernel_feeds
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.feeds import KEPT_SECONDS, MAXIMUM_OPEN, MAXIMUM_TEXT, FeedGone, Feeds, MemoryFeeds
from bedplate.kernel.redis import Shared
from tests.kernel.clocks import StillClock
from tests.kernel.servers import RedisServer

DONE = {"status": "completed", "usage": {"total_tokens": 3}}
Open = Callable[[], Feeds]


@pytest.fixture
async def processes(empty_redis: str) -> AsyncIterator[tuple[Feeds, Feeds]]:
    """The feeds of two processes on one Redis."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            shared = Shared(empty_redis)
            stack.push_async_callback(shared.close)
            opened = shared.feeds(Clock())
            await opened.start()
            stack.push_async_callback(opened.stop)
            made.append(opened)
        yield made[0], made[1]


@pytest.fixture(params=["memory", "redis, same process", "redis, another process"])
def ends(request: pytest.FixtureRequest) -> tuple[Feeds, Feeds]:
    """Who writes, and who follows."""
    if request.param == "memory":
        feeds = MemoryFeeds(Clock())
        return feeds, feeds
    here, there = request.getfixturevalue("processes")
    return here, there if "another" in request.param else here


async def all_of(feeds: Feeds, feed_id: str, position: int = 0) -> tuple[str, Any]:
    """The text from there on, and the outcome."""
    text = ""
    async with asyncio.timeout(20), aclosing(feeds.follow(feed_id, position)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            text += piece.text
            assert piece.position == position + len(text)
            outcome = piece.outcome
    return text, outcome


async def test_what_was_added_is_followed_from_any_position(ends: tuple[Feeds, Feeds]) -> None:
    writer, reader = ends
    await writer.open("one")
    for part in ("Grüße, ", "𝄞 und ", "", "Ende"):
        await writer.add("one", part)
    await writer.end("one", DONE)
    whole = "Grüße, 𝄞 und Ende"
    for position in range(len(whole) + 1):
        assert await all_of(reader, "one", position) == (whole[position:], DONE)


async def test_only_the_first_end_counts_and_nothing_is_added_after_it(ends: tuple[Feeds, Feeds]) -> None:
    writer, reader = ends
    await writer.open("one")
    await writer.add("one", "text")
    await writer.end("one", DONE)
    await writer.end("one", {"status": "failed"})
    await writer.add("one", " and more")
    assert await all_of(reader, "one") == ("text", DONE)


async def test_an_unknown_feed_is_gone(ends: tuple[Feeds, Feeds]) -> None:
    with pytest.raises(FeedGone):
        await all_of(ends[1], "nobody's")


async def test_beyond_the_limit_of_characters_nothing_is_added(ends: tuple[Feeds, Feeds]) -> None:
    writer, reader = ends
    await writer.open("one")
    await writer.add("one", "x" * (MAXIMUM_TEXT - 1))
    await writer.add("one", "yz")
    await writer.add("one", "z")
    await writer.end("one", DONE)
    text, outcome = await all_of(reader, "one")
    assert len(text) == MAXIMUM_TEXT and text.endswith("xy") and outcome == DONE


async def test_a_position_beyond_the_text_gets_the_outcome_only(ends: tuple[Feeds, Feeds]) -> None:
    writer, reader = ends
    await writer.open("one")
    await writer.add("one", "short")
    await writer.end("one", DONE)
    assert await all_of(reader, "one", 2**40) == ("", DONE)


async def test_a_follower_who_goes_away_leaves_nothing_behind() -> None:
    feeds = MemoryFeeds(Clock())
    await feeds.open("one")
    followers = [asyncio.create_task(all_of(feeds, "one")) for _ in range(50)]
    await asyncio.sleep(0)
    for follower in followers[:49]:
        follower.cancel()
    await asyncio.gather(*followers[:49], return_exceptions=True)
    feed = feeds.find("one")
    assert feed is not None and len(feed._waiting) == 1
    await feeds.add("one", "still there")
    await feeds.end("one", DONE)
    assert await followers[49] == ("still there", DONE)


async def test_silence_has_a_limit() -> None:
    feeds = MemoryFeeds(Clock(), silent_seconds=0.05)
    await feeds.open("one")
    await feeds.add("one", "a word")
    with pytest.raises(FeedGone):
        await all_of(feeds, "one")


async def test_silence_of_another_process_has_a_limit(empty_redis: str) -> None:
    shared = Shared(empty_redis)
    writer, reader = shared.feeds(Clock()), shared.feeds(Clock())
    reader._silent_seconds = 0.2
    await writer.start()
    await writer.open("one")
    await writer.add("one", "a word")
    with pytest.raises(FeedGone):
        await all_of(reader, "one")
    await writer.stop()
    await reader.stop()
    await shared.close()


async def test_there_are_not_more_open_feeds_than_the_limit() -> None:
    clock = StillClock()
    feeds = MemoryFeeds(clock)
    for number in range(MAXIMUM_OPEN):
        await feeds.open(str(number))
    with pytest.raises(Unavailable):
        await feeds.open("one too many")
    await feeds.end("0", DONE)
    await feeds.open("one for the one that ended")
    clock.advance(KEPT_SECONDS + 1)
    await feeds.open("those that nobody has ended are forgotten")


async def test_a_feed_is_kept_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StillClock()
    feeds = MemoryFeeds(clock)
    await feeds.open("one")
    await feeds.end("one", DONE)
    clock.advance(KEPT_SECONDS - 1)
    assert await all_of(feeds, "one") == ("", DONE)
    clock.advance(2)
    with pytest.raises(FeedGone):
        await all_of(feeds, "one")


async def test_room_for_new_ones_is_made_by_the_oldest_that_have_ended() -> None:
    feeds = MemoryFeeds(Clock())
    await feeds.open("growing")
    for number in range(kernel_feeds.MAXIMUM_KEPT + 1):
        await feeds.open(str(number))
        await feeds.end(str(number), DONE)
    assert feeds.find("0") is None
    assert feeds.find("1") is not None and feeds.find("growing") is not None
    await feeds.open("long")
    for number in range(kernel_feeds.MAXIMUM_KEPT_TEXT // MAXIMUM_TEXT + 1):
        await feeds.open(f"long {number}")
        await feeds.add(f"long {number}", "x" * MAXIMUM_TEXT)
        await feeds.end(f"long {number}", DONE)
    assert feeds._kept_text <= kernel_feeds.MAXIMUM_KEPT_TEXT
    assert feeds.find("1") is None


@dataclass
class Reader:
    """Follows until it is cut, and then goes on where it was, as a browser does."""

    feeds: Feeds
    heard: str = ""
    outcome: Any = None
    position: int = 0
    positions: list[int] = field(default_factory=list)

    async def read(self, pieces: int) -> None:
        """So many pieces, then the connection is lost; with 0 all there are."""
        async with asyncio.timeout(20), aclosing(self.feeds.follow("one", self.position)) as stream:  # type: ignore[type-var]
            async for piece in stream:
                self.heard += piece.text
                self.position, self.outcome = piece.position, piece.outcome
                pieces -= 1
                if not pieces:
                    return

    async def run(self, cuts: list[int]) -> None:
        for cut in cuts:
            if self.outcome is None:
                await self.read(cut)
        if self.outcome is None:
            await self.read(0)


PARTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=30)
CUTS = st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=5)
PAUSES = st.lists(st.integers(0, 3), min_size=1, max_size=10)


async def write(feeds: Feeds, parts: list[str], pauses: list[int], seconds: float) -> None:
    for number, part in enumerate(parts):
        await feeds.add("one", part)
        for _ in range(pauses[number % len(pauses)]):
            await asyncio.sleep(seconds)
    await feeds.end("one", DONE)


@given(parts=PARTS, cuts=CUTS, pauses=PAUSES)
@settings(max_examples=200, deadline=None)
async def test_each_follower_sees_the_text_exactly_once(
    parts: list[str], cuts: list[list[int]], pauses: list[int]
) -> None:
    feeds = MemoryFeeds(Clock())
    await feeds.open("one")
    readers = [Reader(feeds) for _ in cuts]
    reading = [reader.run(each) for reader, each in zip(readers, cuts, strict=True)]
    await asyncio.gather(*reading, write(feeds, parts, pauses, 0))
    assert {(reader.heard, str(reader.outcome)) for reader in readers} == {("".join(parts), str(DONE))}


@given(parts=PARTS, cuts=CUTS, pauses=PAUSES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_so_does_one_of_another_process(
    processes: tuple[Feeds, Feeds], parts: list[str], cuts: list[list[int]], pauses: list[int]
) -> None:
    here, there = processes
    await here._redis.flushdb()  # type: ignore[attr-defined]
    here._own = MemoryFeeds(Clock())  # type: ignore[attr-defined]
    await here.open("one")
    readers = [Reader(there if number % 2 else here) for number, _ in enumerate(cuts, 1)]
    reading = [reader.run(each) for reader, each in zip(readers, cuts, strict=True)]
    await asyncio.gather(*reading, write(here, parts, pauses, 0.002))
    assert {(reader.heard, str(reader.outcome)) for reader in readers} == {("".join(parts), str(DONE))}


async def test_what_grows_fast_costs_redis_little(processes: tuple[Feeds, Feeds]) -> None:
    here, there = processes
    redis = here._redis  # type: ignore[attr-defined]
    await here.open("one")
    before = (await redis.info("commandstats")).get("cmdstat_eval", {"calls": 0})["calls"]
    for number in range(2000):
        await here.add("one", f"{number} ")
        if number % 100 == 0:
            await asyncio.sleep(0.001)
    await here.end("one", DONE)
    assert (await all_of(there, "one"))[0] == "".join(f"{number} " for number in range(2000))
    calls = (await redis.info("commandstats"))["cmdstat_eval"]["calls"] - before
    assert calls <= 40


async def test_a_feed_whose_writer_died_is_ended_by_another(processes: tuple[Feeds, Feeds]) -> None:
    here, there = processes
    await here.open("one")
    await here.add("one", "half a ")
    async with asyncio.timeout(20), aclosing(there.follow("one")) as pieces:  # type: ignore[type-var]
        assert (await anext(pieces)).text == "half a "
        await there.end("one", {"status": "failed"})
        assert (await anext(pieces)).outcome == {"status": "failed"}


async def test_a_lost_redis_hangs_nobody(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", durable=False) as server:
        shared = Shared(server.url)
        here, there = shared.feeds(Clock()), shared.feeds(Clock())
        await here.start()
        await here.open("one")
        await here.add("one", "before, ")
        far = asyncio.create_task(all_of(there, "one"))
        near = asyncio.create_task(all_of(here, "one"))
        await asyncio.sleep(0.1)
        server.kill()
        with pytest.raises(FeedGone):
            await far
        await here.add("one", "meanwhile, ")
        with pytest.raises(FeedGone):
            await all_of(there, "one")
        server.start()
        await here.add("one", "after")
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await anext(there.follow("one")) is not None
                    break
                except FeedGone:
                    await asyncio.sleep(0.05)
        await here.end("one", DONE)
        # Redis is empty since it was started again, and has got the whole text.
        assert await near == ("before, meanwhile, after", DONE)
        assert await all_of(there, "one") == ("before, meanwhile, after", DONE)
        server.kill()
        await here.open("two")
        await here.end("two", DONE)
        assert await all_of(here, "two") == ("", DONE)
        async with asyncio.timeout(5):
            await here.stop()
            await there.stop()
        await shared.close()


@pytest.mark.parametrize("spread", [False, True])
async def test_streams_that_are_cut_at_random_are_resumed_without_a_gap_or_a_repeat(
    processes: tuple[Feeds, Feeds], spread: bool
) -> None:
    here, there = processes
    chance = random.Random(20)

    async def one(number: int) -> None:
        feed_id = f"feed {number}"
        words = [f"{number}.{word} " for word in range(chance.randint(1, 60))]

        async def grow() -> None:
            for word in words:
                await here.add(feed_id, word)
                await asyncio.sleep(chance.random() / 200)
            await here.end(feed_id, DONE)

        await here.open(feed_id)
        growing = asyncio.create_task(grow())
        heard, outcome = "", None
        while outcome is None:
            feeds, left = (there if spread and chance.random() < 0.5 else here), chance.randint(1, 5)
            async with aclosing(feeds.follow(feed_id, len(heard))) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    heard, outcome, left = heard + piece.text, piece.outcome, left - 1
                    assert piece.position == len(heard)
                    if not left:
                        break
        await growing
        assert heard == "".join(words)

    async with asyncio.timeout(30):
        await asyncio.gather(*(one(number) for number in range(200)))
