"""Rate limits: the same tests in memory and in Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.kernel.clock import Clock
from bedplate.kernel.ids import new_id
from bedplate.kernel.limits import MAXIMUM_KEYS, Limit, Limiter, MemoryLimiter, address_key
from bedplate.kernel.redis import Shared
from tests.kernel.clocks import StillClock

THREE_A_MINUTE = Limit.parse("3/minute")
MakeLimiter = Callable[[Clock], Limiter]


@pytest.fixture(params=["memory", "redis"])
async def make_limiter(request: pytest.FixtureRequest) -> AsyncIterator[MakeLimiter]:
    if request.param == "memory":
        yield MemoryLimiter
        return
    shared = Shared(request.getfixturevalue("empty_redis"))
    yield shared.limiter
    await shared.close()


@pytest.fixture
async def sharing(empty_redis: str) -> AsyncIterator[list[Shared]]:
    """Two processes on one Redis."""
    async with AsyncExitStack() as stack:
        processes = [Shared(empty_redis) for _ in range(2)]
        for each in processes:
            stack.push_async_callback(each.close)
        yield processes


async def test_so_many_are_admitted_and_the_next_is_not(make_limiter: MakeLimiter) -> None:
    limiter = make_limiter(StillClock())
    windows = [await limiter.hit("alice", THREE_A_MINUTE) for _ in range(5)]
    assert [window.allowed for window in windows] == [True, True, True, False, False]
    assert [window.remaining for window in windows] == [2, 1, 0, 0, 0]


async def test_the_window_starts_with_the_first_request(make_limiter: MakeLimiter) -> None:
    clock = StillClock()
    limiter = make_limiter(clock)
    assert (await limiter.hit("alice", THREE_A_MINUTE)).reset_after == pytest.approx(60)
    clock.advance(45)
    assert (await limiter.hit("alice", THREE_A_MINUTE)).reset_after == pytest.approx(15)
    clock.advance(15)
    fresh = await limiter.hit("alice", THREE_A_MINUTE)
    assert (fresh.remaining, fresh.reset_after) == (2, pytest.approx(60))


async def test_refused_requests_do_not_prolong_the_window(make_limiter: MakeLimiter) -> None:
    clock = StillClock()
    limiter = make_limiter(clock)
    for _ in range(30):
        await limiter.hit("alice", THREE_A_MINUTE)
        clock.advance(2)
    assert (await limiter.hit("alice", THREE_A_MINUTE)).allowed


async def test_each_key_has_a_count_of_its_own(make_limiter: MakeLimiter) -> None:
    limiter = make_limiter(StillClock())
    for _ in range(4):
        await limiter.hit("alice", THREE_A_MINUTE)
    assert (await limiter.hit("bob", THREE_A_MINUTE)).remaining == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    amount=st.integers(1, 5),
    seconds=st.integers(1, 10),
    pauses=st.lists(st.integers(0, 4000), min_size=1, max_size=30),
)
async def test_in_any_window_no_more_than_the_limit_is_admitted(
    make_limiter: MakeLimiter, amount: int, seconds: int, pauses: list[int]
) -> None:
    clock = StillClock()
    limiter, limit, key = make_limiter(clock), Limit(amount, seconds, ""), new_id()
    opened, count = float("-inf"), 0
    for pause in pauses:
        clock.advance(pause / 1000)
        now = clock.timestamp()
        window = await limiter.hit(key, limit)
        if now >= opened + seconds:
            opened, count = now, 0
        assert window.allowed == (count < amount)
        assert window.remaining == max(0, amount - count - 1)
        assert window.reset_after == pytest.approx(opened + seconds - now, abs=1e-3)
        count += 1


async def test_two_processes_on_one_redis_admit_exactly_the_limit(sharing: list[Shared]) -> None:
    limiters = [each.limiter(StillClock()) for each in sharing]
    limit = Limit.parse("10/minute")
    windows = await asyncio.gather(*(limiters[n % 2].hit("alice", limit) for n in range(60)))
    assert sum(window.allowed for window in windows) == 10


async def test_redis_forgets_a_key_soon_after_its_window(make_limiter: MakeLimiter, empty_redis: str) -> None:
    await make_limiter(StillClock()).hit("alice", THREE_A_MINUTE)
    import redis

    with redis.Redis.from_url(empty_redis) as client:
        assert all(0 < client.pttl(key) <= 120_000 for key in client.scan_iter("bedplate:limit:*"))


async def test_while_redis_is_away_each_process_counts_for_itself() -> None:
    nowhere = Shared("redis://127.0.0.1:1/0")
    limiter = nowhere.limiter(StillClock())
    assert [(await limiter.hit("alice", THREE_A_MINUTE)).allowed for _ in range(4)] == [True, True, True, False]
    await nowhere.close()


async def test_memory_holds_a_bounded_number_of_keys_and_stays_quick_when_it_is_full() -> None:
    limiter = MemoryLimiter(StillClock())
    hour = Limit.parse("1/hour")
    # Making room for each newcomer by a look at all others would take minutes.
    for number in range(MAXIMUM_KEYS + 20_000):
        await limiter.hit(str(number), hour)
    assert (await limiter.hit("0", hour)).allowed, "the oldest is forgotten"
    assert not (await limiter.hit(str(MAXIMUM_KEYS + 19_999), hour)).allowed, "the newest is not"


async def test_memory_makes_room_by_dropping_windows_that_have_ended() -> None:
    clock = StillClock()
    limiter = MemoryLimiter(clock)
    await limiter.hit("long", Limit.parse("1/day"))
    for number in range(MAXIMUM_KEYS - 1):
        await limiter.hit(str(number), THREE_A_MINUTE)
    clock.advance(61)
    await limiter.hit("another", THREE_A_MINUTE)
    assert not (await limiter.hit("long", Limit.parse("1/day"))).allowed


@pytest.mark.parametrize(
    ("text", "amount", "seconds", "words"),
    [
        ("5/15 minutes", 5, 900, "5 per 15 minutes"),
        ("3/hour", 3, 3600, "3 per 1 hour"),
        ("100/minute", 100, 60, "100 per 1 minute"),
        ("1/2days", 1, 172_800, "1 per 2 days"),
        ("10/1 second", 10, 1, "10 per 1 second"),
    ],
)
def test_a_limit_is_read_as_people_write_it(text: str, amount: int, seconds: int, words: str) -> None:
    assert Limit.parse(text) == Limit(amount, seconds, words)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(address: str, key: str) -> None:
    assert address_key(address) == key
