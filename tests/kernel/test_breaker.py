"""Circuit breaker: the same rules in memory and in Redis, for one process and for two."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bedplate.kernel.breaker import Breaker, BreakerState, CircuitOpen, Circuits, MemoryCircuits
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Kind, Problem, Unavailable
from bedplate.kernel.redis import Shared
from tests.kernel.clocks import NOON, StillClock
from tests.kernel.wire import Wire

T = TypeVar("T")

SERVICE = "user_service"
MakeCircuits = Callable[[Clock], list[Circuits]]
Opening = Callable[[Clock], tuple[list[Circuits], list[Shared]]]


@pytest.fixture(params=["memory", "redis"])
async def make_circuits(request: pytest.FixtureRequest) -> AsyncIterator[MakeCircuits]:
    """What each of two callers has: in memory the same object, over Redis one of its own."""
    if request.param == "memory":
        yield lambda clock: [MemoryCircuits(clock)] * 2
        return
    async with AsyncExitStack() as stack:
        processes = [Shared(request.getfixturevalue("empty_redis")) for _ in range(2)]
        for each in processes:
            stack.push_async_callback(each.close)
        yield lambda clock: [each.circuits(clock) for each in processes]


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def breakers(make_circuits: MakeCircuits, clock: StillClock) -> list[Breaker]:
    return [Breaker(SERVICE, circuits) for circuits in make_circuits(clock)]


@pytest.fixture
def breaker(breakers: list[Breaker]) -> Breaker:
    return breakers[0]


async def succeed(breaker: Breaker) -> None:
    async with breaker.passage():
        pass


async def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Unavailable) as raised:
            async with breaker.passage():
                raise Unavailable()
        assert not isinstance(raised.value, CircuitOpen), "it was refused"


async def enter(passage: AbstractAsyncContextManager[None]) -> None:
    await passage.__aenter__()


async def leave(passage: AbstractAsyncContextManager[None], error: BaseException | None) -> None:
    swallowed = await passage.__aexit__(type(error) if error else None, error, None)
    assert not swallowed


async def wait_when_refused(breaker: Breaker) -> int:
    """The seconds that a refused call is told to wait."""
    with pytest.raises(CircuitOpen) as raised:
        await succeed(breaker)
    seconds = raised.value.details["retry_after"]
    assert isinstance(seconds, int)
    return seconds


async def test_one_that_never_failed_is_closed(breaker: Breaker) -> None:
    assert await breaker.snapshot() == BreakerState("closed", 0, None)
    await succeed(breaker)
    assert await breaker.snapshot() == BreakerState("closed", 0, None)


async def test_the_fifth_failure_in_a_row_opens_it_and_not_the_fourth(breaker: Breaker, clock: StillClock) -> None:
    await fail(breaker, 4)
    assert await breaker.snapshot() == BreakerState("closed", 4, NOON)
    clock.advance(7)
    await fail(breaker)
    assert await breaker.snapshot() == BreakerState("open", 5, clock.now())
    assert await wait_when_refused(breaker) == 60


async def test_a_success_begins_the_count_anew_and_keeps_the_time_of_the_last_failure(breaker: Breaker) -> None:
    for _ in range(3):
        await fail(breaker, 4)
        await succeed(breaker)
        assert await breaker.snapshot() == BreakerState("closed", 0, NOON)


async def test_it_stays_open_for_a_minute_and_refused_calls_do_not_prolong_it(
    breaker: Breaker, clock: StillClock
) -> None:
    await fail(breaker, 5)
    for second in range(60):
        assert await wait_when_refused(breaker) == 60 - second
        assert await breaker.snapshot() == BreakerState("open", 5, NOON)
        clock.advance(1)
    assert await breaker.snapshot() == BreakerState("half_open", 5, NOON)


async def test_a_probe_that_succeeds_closes_it_within_65_seconds(breaker: Breaker, clock: StillClock) -> None:
    await fail(breaker, 5)
    closed_after = 0
    while (await breaker.snapshot()).state != "closed" and closed_after < 65:
        clock.advance(1)
        closed_after += 1
        try:
            await succeed(breaker)
        except CircuitOpen:
            continue
    assert closed_after == 60
    assert await breaker.snapshot() == BreakerState("closed", 0, NOON)


async def test_a_probe_that_fails_opens_it_for_another_minute(breaker: Breaker, clock: StillClock) -> None:
    await fail(breaker, 5)
    for failures in (6, 7, 8):
        clock.advance(60)
        await fail(breaker)
        assert await breaker.snapshot() == BreakerState("open", failures, clock.now())
        assert await wait_when_refused(breaker) == 60
    clock.advance(60)
    await succeed(breaker)
    assert (await breaker.snapshot()).failure_count == 0


async def test_a_hundred_callers_at_once_make_exactly_one_probe(breakers: list[Breaker], clock: StillClock) -> None:
    await fail(breakers[0], 5)
    clock.advance(60)
    barrier, all_asked = asyncio.Barrier(100), asyncio.Event()
    waits: list[int] = []
    probes = 0

    async def call(number: int) -> None:
        nonlocal probes
        await barrier.wait()
        try:
            async with breakers[number % 2].passage():
                probes += 1
                await all_asked.wait()
        except CircuitOpen as refused:
            waits.append(int(str(refused.details["retry_after"])))
            if len(waits) == 99:
                all_asked.set()

    async with asyncio.timeout(30):
        await asyncio.gather(*map(call, range(100)))
    assert probes == 1
    assert waits == [3] * 99, "told to come back when the probe must have ended"
    assert [(await each.snapshot()).state for each in breakers] == ["closed", "closed"]


async def test_a_hundred_failures_at_once_open_it_and_the_late_ones_change_nothing(breakers: list[Breaker]) -> None:
    barrier = asyncio.Barrier(100)

    async def call(number: int) -> None:
        with pytest.raises(Unavailable):
            async with breakers[number % 2].passage():
                await barrier.wait()
                raise Unavailable()

    async with asyncio.timeout(30):
        await asyncio.gather(*map(call, range(100)))
    assert [await each.snapshot() for each in breakers] == [BreakerState("open", 5, NOON)] * 2


async def test_a_success_that_comes_after_it_opened_does_not_close_it(breaker: Breaker) -> None:
    async with breaker.passage():
        await fail(breaker, 5)
    assert await breaker.snapshot() == BreakerState("open", 5, NOON)


async def test_a_probe_that_hangs_frees_its_place_after_three_seconds(
    breakers: list[Breaker], clock: StillClock
) -> None:
    await fail(breakers[0], 5)
    clock.advance(60)
    hung, second = breakers[0].passage(), breakers[1].passage()
    await enter(hung)
    clock.advance(2.5)
    assert await wait_when_refused(breakers[1]) == 1
    assert (await breakers[1].snapshot()).state == "half_open"
    clock.advance(0.5)
    await enter(second)
    assert await wait_when_refused(breakers[0]) == 3, "again there is one, and no more"
    await leave(second, None)
    assert (await breakers[0].snapshot()).state == "closed"
    await leave(hung, asyncio.CancelledError())


@pytest.mark.parametrize("error", [None, Unavailable, asyncio.CancelledError])
async def test_how_a_probe_ends_after_its_place_was_given_away_counts_no_more(
    breakers: list[Breaker], clock: StillClock, error: type[BaseException] | None
) -> None:
    await fail(breakers[0], 5)
    clock.advance(60)
    hung, second = breakers[0].passage(), breakers[1].passage()
    await enter(hung)
    clock.advance(3)
    await enter(second)
    await leave(hung, error() if error else None)
    assert await breakers[0].snapshot() == BreakerState("half_open", 5, NOON)
    assert await wait_when_refused(breakers[0]) == 3
    await leave(second, None)
    assert (await breakers[0].snapshot()).state == "closed"


async def test_a_caller_who_gives_up_is_neither_a_failure_nor_a_success(breaker: Breaker) -> None:
    await fail(breaker, 4)
    for _ in range(5):
        await give_up(breaker)
    assert await breaker.snapshot() == BreakerState("closed", 4, NOON)


async def test_a_probe_whose_caller_gives_up_frees_its_place_at_once(breaker: Breaker, clock: StillClock) -> None:
    await fail(breaker, 5)
    clock.advance(60)
    for _ in range(3):
        await give_up(breaker)
        assert await breaker.snapshot() == BreakerState("half_open", 5, NOON)
    await succeed(breaker)
    assert (await breaker.snapshot()).state == "closed"


async def give_up(breaker: Breaker) -> None:
    """A call that is cancelled while the service thinks."""
    admitted = asyncio.Event()

    async def call() -> None:
        async with breaker.passage():
            admitted.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    async with asyncio.timeout(5):
        await admitted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_defect_of_the_caller_is_no_failure_of_the_service(breaker: Breaker, clock: StillClock) -> None:
    for _ in range(5):
        with pytest.raises(KeyError):
            async with breaker.passage():
                raise KeyError("a defect")
    assert await breaker.snapshot() == BreakerState("closed", 0, None)


async def test_the_log_says_once_that_it_opened_and_once_that_it_closed(
    breakers: list[Breaker], clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "bedplate.breaker")
    async with breakers[0].passage():
        await fail(breakers[1], 5)
        with pytest.raises(CircuitOpen):
            await succeed(breakers[0])
    assert [record.getMessage() for record in caplog.records] == ["a service failed too often and is left alone"]
    caplog.clear()
    clock.advance(60)
    for _ in range(3):
        await succeed(breakers[0])
    assert [record.getMessage() for record in caplog.records] == ["a service that had failed is well again"]


async def test_each_service_has_a_circuit_of_its_own(make_circuits: MakeCircuits, clock: StillClock) -> None:
    circuits, _ = make_circuits(clock)
    users, orders = Breaker("user_service", circuits), Breaker("order_service", circuits)
    await fail(users, 5)
    await succeed(orders)
    assert (await users.snapshot()).state == "open"
    assert await orders.snapshot() == BreakerState("closed", 0, None)


async def test_what_one_process_suffers_the_other_knows(breakers: list[Breaker], clock: StillClock) -> None:
    one, other = breakers
    await fail(one, 3)
    await fail(other, 2)
    assert await wait_when_refused(one) == await wait_when_refused(other) == 60
    clock.advance(60)
    await succeed(other)
    await succeed(one)


async def test_a_clock_that_is_put_back_keeps_it_open_for_a_minute_and_no_longer(
    breaker: Breaker, clock: StillClock
) -> None:
    await fail(breaker, 5)
    clock.advance(-86_400)
    assert await wait_when_refused(breaker) == 60
    clock.advance(60)
    async with AsyncExitStack() as lost:
        await lost.enter_async_context(breaker.passage())
        clock.advance(-86_400)
        assert await wait_when_refused(breaker) == 3
        clock.advance(3)
        await succeed(breaker)


async def test_refusing_takes_hardly_any_time(breaker: Breaker) -> None:
    await fail(breaker, 5)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(300):
        began = loop.time()
        await wait_when_refused(breaker)
        times.append(loop.time() - began)
    assert sorted(times)[296] < 0.05, "the 99th percentile"


def test_a_refused_call_is_unavailable_with_a_time_to_come_back() -> None:
    refused = CircuitOpen(retry_after=42)
    assert refused.kind is Kind.UNAVAILABLE
    assert isinstance(refused, Unavailable)
    assert str(refused) == str(Unavailable())
    assert Problem.known["CircuitOpen"] is CircuitOpen


async def test_redis_forgets_a_circuit_that_nobody_failed_at_for_a_day(empty_redis: str, clock: StillClock) -> None:
    shared = Shared(empty_redis)
    breaker = Breaker(SERVICE, shared.circuits(clock))
    await succeed(breaker)
    with redis.Redis.from_url(empty_redis) as client:
        assert list(client.scan_iter("bedplate:circuit:*")) == [], "a success that changes nothing leaves nothing"
        await fail(breaker)
        assert [client.ttl(key) for key in client.scan_iter("bedplate:circuit:*")] == [86_400]
    await shared.close()


async def test_while_redis_is_away_each_process_counts_for_itself(clock: StillClock) -> None:
    async with AsyncExitStack() as stack:
        processes = [Shared("redis://127.0.0.1:1/0") for _ in range(2)]
        for each in processes:
            stack.push_async_callback(each.close)
        one, other = (Breaker(SERVICE, each.circuits(clock)) for each in processes)
        await fail(one, 5)
        assert await wait_when_refused(one) == 60
        assert await one.snapshot() == BreakerState("open", 5, NOON)
        await fail(other, 4)
        assert await other.snapshot() == BreakerState("closed", 4, NOON)
        clock.advance(60)
        await succeed(one)
        assert (await one.snapshot()).state == "closed"


async def test_when_redis_is_back_what_it_knew_holds_again(
    empty_redis: str, clock: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedplate.kernel.redis.RETRY_SECONDS", 0.0)
    async with Wire(empty_redis, 6379) as wire:
        shared = Shared(wire.url)
        breaker = Breaker(SERVICE, shared.circuits(clock))
        await fail(breaker, 3)
        await wire.cut()
        await fail(breaker, 4)
        assert (await breaker.snapshot()).failure_count == 4, "from none on"
        await wire.mend()
        assert (await breaker.snapshot()).failure_count == 3
        await fail(breaker)
        await wire.cut()
        await fail(breaker)
        assert (await breaker.snapshot()).failure_count == 1, "not those of the last time"
        await wire.mend()
        await fail(breaker)
        assert await breaker.snapshot() == BreakerState("open", 5, NOON)
        await shared.close()


async def test_a_probe_that_redis_did_not_hear_the_end_of_frees_its_place_like_one_that_hangs(
    empty_redis: str, clock: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedplate.kernel.redis.RETRY_SECONDS", 0.0)
    async with Wire(empty_redis, 6379) as wire:
        shared = Shared(wire.url)
        breaker = Breaker(SERVICE, shared.circuits(clock))
        await fail(breaker, 5)
        clock.advance(60)
        async with breaker.passage():
            await wire.cut()
        await wire.mend()
        assert await wait_when_refused(breaker) == 3
        clock.advance(3)
        await succeed(breaker)
        assert (await breaker.snapshot()).state == "closed"
        await shared.close()


@dataclass
class Flight:
    """A call under way. `probe_since`: when it was let through as the probe, if it was."""

    passage: AbstractAsyncContextManager[None]
    probe_since: float | None

    def has_time_left(self, now: float) -> bool:
        return self.probe_since is not None and now < self.probe_since + 3


class Machine(RuleBasedStateMachine):
    """Calls that begin, hang and end in any order, against the rules as one would say them."""

    def __init__(self, opening: Opening) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = StillClock()
        circuits, self.shared = opening(self.clock)
        self.breakers = [Breaker(SERVICE, each) for each in circuits]
        self.flights: list[Flight] = []
        # The model.
        self.failures = 0
        self.last_failure: datetime | None = None
        self.opened_at: float | None = None
        self.probe: Flight | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 10))

    @property
    def now(self) -> float:
        return self.clock.timestamp()

    def probe_runs(self) -> bool:
        return self.probe is not None and self.probe.has_time_left(self.now)

    def expected_state(self) -> Literal["closed", "open", "half_open"]:
        if self.opened_at is None:
            return "closed"
        return "half_open" if self.probe is not None or self.now >= self.opened_at + 60 else "open"

    @rule(process=st.integers(0, 1))
    def begin(self, process: int) -> None:
        state = self.expected_state()
        flight = Flight(self.breakers[process].passage(), self.now if state == "half_open" else None)
        if state == "open" or self.probe_runs():
            with pytest.raises(CircuitOpen) as raised:
                self.run(enter(flight.passage))
            ends = (self.probe.probe_since or 0) + 3 if self.probe is not None else (self.opened_at or 0) + 60
            assert raised.value.details == {"retry_after": math.ceil(ends - self.now)}
            return
        self.run(enter(flight.passage))
        self.flights.append(flight)
        if state == "half_open":
            self.probe = flight

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        flight = self.end(data, None)
        if self.opened_at is None or self.probe is flight:
            self.failures, self.opened_at, self.probe = 0, None, None

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.failed(self.end(data, Unavailable()))

    @rule(process=st.integers(0, 1), times=st.integers(1, 6))
    def fail_in_a_row(self, process: int, times: int) -> None:
        for _ in range(times):
            if self.expected_state() == "open" or self.probe_runs():
                return
            before = len(self.flights)
            self.begin(process)
            assert len(self.flights) == before + 1
            flight = self.flights.pop()
            self.run(leave(flight.passage, Unavailable()))
            self.failed(flight)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), error=st.sampled_from([asyncio.CancelledError, KeyError]))
    def give_up(self, data: st.DataObject, error: type[BaseException]) -> None:
        flight = self.end(data, error())
        if self.probe is flight:
            self.probe = None

    # Eighths of a second, so that no rounding decides.
    @rule(seconds=st.sampled_from([2.875, 3.0, 59.875, 60.0]) | st.integers(1, 560).map(lambda n: n / 8))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def both_report_what_the_model_says(self) -> None:
        expected = BreakerState(self.expected_state(), self.failures, self.last_failure)
        assert [self.run(each.snapshot()) for each in self.breakers] == [expected, expected]

    @invariant()
    def no_more_than_one_probe_runs(self) -> None:
        if self.opened_at is not None:
            assert sum(each.has_time_left(self.now) for each in self.flights) <= 1

    def end(self, data: st.DataObject, error: BaseException | None) -> Flight:
        flight = self.flights.pop(data.draw(st.integers(0, len(self.flights) - 1)))
        self.run(leave(flight.passage, error))
        return flight

    def failed(self, flight: Flight) -> None:
        if self.opened_at is not None and self.probe is not flight:
            return
        self.failures, self.last_failure = self.failures + 1, self.clock.now()
        if self.failures >= 5:
            self.opened_at, self.probe = self.now, None

    def teardown(self) -> None:
        """Wherever it got to, with calls that never end: in 63 seconds it lets a call through, which closes it."""
        try:
            self.clock.advance(63)
            self.run(succeed(self.breakers[0]))
            assert self.run(self.breakers[1].snapshot()).state == "closed"
        finally:
            for each in self.shared:
                self.run(each.close())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


def machine(opening: Opening) -> type[Machine]:
    class Opened(Machine):
        def __init__(self) -> None:
            super().__init__(opening)

    return Opened


@pytest.mark.parametrize("sequences", [300, pytest.param(2000, marks=[pytest.mark.faults, pytest.mark.timeout(300)])])
def test_any_sequence_of_calls_keeps_the_rules_in_memory(sequences: int) -> None:
    run_state_machine_as_test(
        machine(lambda clock: ([MemoryCircuits(clock)] * 2, [])),
        settings=settings(max_examples=sequences, stateful_step_count=50, deadline=None),
    )


def test_any_sequence_of_calls_keeps_the_rules_over_redis(empty_redis: str) -> None:
    def opening(clock: Clock) -> tuple[list[Circuits], list[Shared]]:
        with redis.Redis.from_url(empty_redis) as client:
            client.delete(f"bedplate:circuit:{SERVICE}")
        shared = [Shared(empty_redis) for _ in range(2)]
        return [each.circuits(clock) for each in shared], shared

    run_state_machine_as_test(
        machine(opening),
        settings=settings(
            max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
