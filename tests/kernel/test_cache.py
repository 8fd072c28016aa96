"""The cache: what it remembers is true."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bedplate.kernel.cache import CAPACITY, LIFETIME_SECONDS, Cache
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.redis import Shared
from bedplate.kernel.sqlite import SqliteDatabase
from tests.kernel.clocks import StillClock
from tests.kernel.wire import Wire


@dataclass
class Source:
    """Where values come from; counts how often it was asked."""

    value: str = "first"
    asked: int = 0

    async def load(self) -> str:
        self.asked += 1
        return self.value


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = SqliteDatabase(str(tmp_path / "cache.db"))
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def cache(clock: StillClock, database: Database) -> Cache:
    made = Cache(clock, database)
    database.listeners.append(made)
    return made


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  # nobody would tell
            await asyncio.sleep(0.01)


async def invalidate(database: Database, *tags: str) -> None:
    async with database.transaction() as tx:
        tx.invalidate(*tags)


def tags(*names: str) -> Callable[[object], tuple[str, ...]]:
    return lambda _: names


async def test_a_value_is_loaded_once(cache: Cache) -> None:
    source = Source()
    answers = [await cache.get("key", source.load, tags("tag")) for _ in range(3)]
    assert (answers, source.asked) == (["first"] * 3, 1)
    assert cache.hit_rate == pytest.approx(2 / 3)


async def test_a_commit_that_makes_a_tag_stale_forgets_its_values_and_no_others(
    cache: Cache, database: Database
) -> None:
    for key, names in {"a": ("red", "round"), "b": ("red",), "c": ("blue",)}.items():
        await cache.get(key, Source(key).load, tags(*names))
    await invalidate(database, "red")
    assert [cache.peek(key) for key in "abc"] == [None, None, "c"]


async def test_a_transaction_that_is_rolled_back_makes_nothing_stale(cache: Cache, database: Database) -> None:
    await cache.get("key", Source().load, tags("tag"))
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as tx:
            tx.invalidate("tag")
            raise ZeroDivisionError
    assert cache.peek("key") == "first"


async def test_a_value_dies_of_age(cache: Cache, clock: StillClock) -> None:
    await cache.get("key", Source().load, tags("tag"), seconds=30)
    clock.advance(29)
    assert cache.peek("key") == "first"
    clock.advance(1)
    assert cache.peek("key") is None


async def test_a_value_that_changes_while_it_is_loaded_is_not_kept(cache: Cache, database: Database) -> None:
    source = Source()

    async def slow() -> str:
        value = await source.load()
        source.value = "second"
        await invalidate(database, "tag")
        return value

    assert await cache.get("key", slow, tags("tag")) == "first"
    assert await cache.get("key", source.load, tags("tag")) == "second"


async def test_a_failed_load_is_not_remembered(cache: Cache) -> None:
    async def fail() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await cache.get("key", fail, tags("tag"))
    assert await cache.get("key", Source().load, tags("tag")) == "first"


async def test_it_holds_a_bounded_number_of_values_and_drops_the_oldest(cache: Cache) -> None:
    for number in range(CAPACITY + 10):
        await cache.load(str(number), Source(str(number)).load, tags("tag"))
    known = [number for number in range(CAPACITY + 10) if cache.peek(str(number)) is not None]
    assert known == list(range(10, CAPACITY + 10))


async def test_what_is_forgotten_leaves_nothing_behind(cache: Cache) -> None:
    """Each sign-in makes the user stale and begins a session with a tag of its own."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(5_000):
            await cache.load(f"token-{number}", Source().load, tags("user", f"session-{number}"))
            cache.forget(["user"])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000


async def test_a_change_by_another_process_on_sqlite_is_seen_at_once(cache: Cache, tmp_path: Path) -> None:
    await cache.get("key", Source().load, tags("tag"))
    assert cache.peek("key") == "first"
    other = SqliteDatabase(str(tmp_path / "cache.db"))
    async with other.transaction() as tx:
        from sqlalchemy import text

        await tx.execute(text("CREATE TABLE something (id INTEGER)"))
    await other.close()
    assert cache.peek("key") is None


async def test_several_processes_on_postgresql_without_redis_remember_nothing(postgres_url: str) -> None:
    database = PostgresDatabase(postgres_url)
    cache, source = Cache(Clock(), database), Source()
    assert [await cache.get("key", source.load, tags("tag")) for _ in range(2)] == ["first", "first"]
    assert source.asked == 2
    await database.close()


@dataclass
class Member:
    """One of several processes: its cache, its database, its Redis."""

    cache: Cache
    database: Database
    shared: Shared
    source: Source = field(default_factory=Source)

    async def get(self) -> str:
        return await self.cache.get("key", self.source.load, tags("tag"))


Join = Callable[[str], Awaitable[Member]]


@pytest.fixture
async def join(postgres_url: str, clock: StillClock) -> AsyncIterator[Join]:
    """Starts another process on the given Redis."""
    async with AsyncExitStack() as stack:

        async def start(redis_url: str) -> Member:
            database, shared = PostgresDatabase(postgres_url), Shared(redis_url)
            member = Member(Cache(clock, database, shared.signals), database, shared)
            database.listeners.append(member.cache)
            stack.push_async_callback(database.close)
            stack.push_async_callback(shared.close)
            await shared.signals.start()
            stack.push_async_callback(shared.signals.stop)
            return member

        yield start


async def test_every_process_has_forgotten_before_the_change_returns(join: Join, empty_redis: str) -> None:
    members = [await join(empty_redis) for _ in range(3)]
    for round_ in range(20):
        assert [await each.get() for each in members] == ["first"] * 3
        await invalidate(members[round_ % 3].database, "tag")
        assert [each.cache.peek("key") for each in members] == [None] * 3


async def test_values_live_for_seconds_only_where_a_signal_could_be_lost(
    join: Join, empty_redis: str, clock: StillClock
) -> None:
    member = await join(empty_redis)
    await member.get()
    clock.advance(LIFETIME_SECONDS)
    assert member.cache.peek("key") is None


async def test_while_redis_is_away_nothing_is_remembered_and_changes_go_through(join: Join, empty_redis: str) -> None:
    async with Wire(empty_redis, 6379) as wire:
        member = await join(wire.url)
        await member.get()
        await wire.cut()
        await until(lambda: not member.shared.signals.live)
        assert [await member.get() for _ in range(2)] == ["first", "first"]
        assert member.source.asked == 3
        async with asyncio.timeout(3):
            await invalidate(member.database, "tag")


async def test_a_process_that_finds_redis_again_has_forgotten_what_it_may_have_missed(
    join: Join, empty_redis: str
) -> None:
    async with Wire(empty_redis, 6379) as wire:
        member, other = await join(wire.url), await join(empty_redis)
        await member.get()
        await wire.cut()
        await until(lambda: not member.shared.signals.live)
        member.source.value = "second"
        await invalidate(other.database, "tag")
        await wire.mend()
        await until(lambda: member.shared.signals.live)
        assert await member.get() == "second"
        assert member.cache.peek("key") == "second", "it remembers again"


async def test_after_a_word_that_is_not_understood_nothing_is_remembered_until_it_listens_again(
    join: Join, empty_redis: str
) -> None:
    member, other = await join(empty_redis), await join(empty_redis)
    outside = Redis.from_url(empty_redis)
    for word in ("no json", '"no object"', "{}", '{"tags": 5, "ack": "x"}'):
        await until(lambda: member.shared.signals.live and other.shared.signals.live)
        await member.get()
        assert member.cache.peek("key") == "first"
        await outside.publish(f"bedplate:stale:{empty_redis.rpartition('/')[2]}", word)
        await until(lambda: not member.shared.signals.live)
        assert member.cache.peek("key") is None
    await until(lambda: member.shared.signals.live and other.shared.signals.live)
    await member.get()
    await invalidate(other.database, "tag")
    assert member.cache.peek("key") is None, "it hears again"
    await outside.aclose()


async def test_another_installation_on_the_same_server_is_not_waited_for(join: Join, empty_redis: str) -> None:
    server, _, number = empty_redis.rpartition("/")
    member, stranger = await join(empty_redis), await join(f"{server}/{int(number) - 1}")
    await stranger.get()
    async with asyncio.timeout(0.9):
        await invalidate(member.database, "tag")
    assert stranger.cache.peek("key") == "first"


async def test_a_process_that_ended_is_not_waited_for(join: Join, empty_redis: str) -> None:
    member, leaving = await join(empty_redis), await join(empty_redis)
    await leaving.shared.signals.stop()
    async with asyncio.timeout(0.9):  # an acknowledgement that does not come is waited for a second
        await invalidate(member.database, "tag")
