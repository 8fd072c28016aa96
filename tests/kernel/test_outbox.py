"""The outbox: what was said in a transaction is heard at least once, in order, by every listener."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select

from bedplate.kernel import relay as relaying
from bedplate.kernel.breaker import CircuitOpen
from bedplate.kernel.db import Database
from bedplate.kernel.errors import InvalidField, Unavailable
from bedplate.kernel.events import Event
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import (
    Delivery,
    InboxRow,
    Listener,
    OutboxRow,
    dead_letters,
    emit,
    replay,
    revive,
    waiting,
)
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.relay import AWAY_FOR, AWAY_SECONDS, HANDLING_SECONDS, KEPT, LEASE, RETRIES, UNDER_WAY, Relay
from bedplate.kernel.sqlite import WAIT_SECONDS
from tests.kernel.clocks import StillClock
from tests.kernel.conftest import Opener
from tests.kernel.lines import until
from tests.kernel.wire import Wire

LONGER_THAN_ANY_PAUSE = 60


@dataclass(frozen=True, slots=True)
class ParcelPosted(Event):
    topic = "parcels"
    key_field = "address"

    address: str
    number: int


@dataclass
class Ear:
    """A consumer that notes what it hears, and fails as long as it is told to."""

    name: str = "ear"
    heard: list[tuple[str, int]] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    error: Exception = field(default_factory=lambda: ZeroDivisionError("with a secret inside"))
    attempts: int = 0

    async def __call__(self, delivery: Delivery) -> None:
        self.attempts += 1
        if delivery.event.address in self.failing:
            raise self.error
        self.heard.append((delivery.event.address, delivery.event.number))

    @property
    def listener(self) -> Listener:
        return Listener(self.name, ParcelPosted, self)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def relay(db: Database, ear: Ear, clock: StillClock) -> Relay:
    return Relay(db, [ear.listener], clock)


async def post(db: Database, clock: StillClock, address: str, *numbers: int) -> None:
    for number in numbers:
        async with db.transaction() as tx:
            await emit(tx, ParcelPosted(address, number), clock.now())


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[None]:
    await relay.start()
    try:
        yield
    finally:
        await relay.stop()


async def test_events_of_one_key_come_in_the_order_they_were_said(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    for number in range(20):
        await post(db, clock, "north", number)
        await post(db, clock, "south", number)
    assert await relay.drain() == 40
    for address in ("north", "south"):
        assert [number for place, number in ear.heard if place == address] == list(range(20))
    assert await waiting(db) == 0


async def test_events_of_one_transaction_come_in_order_too(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    async with db.transaction() as tx:
        for number in range(50):
            await emit(tx, ParcelPosted("north", number), clock.now())
    await relay.drain()
    assert [number for _, number in ear.heard] == list(range(50))


async def test_an_event_of_a_transaction_that_failed_was_never_said(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as tx:
            await emit(tx, ParcelPosted("north", 1), clock.now())
            raise ZeroDivisionError
    assert await relay.drain() == 0
    assert ear.heard == []


async def test_a_failed_delivery_is_tried_again_after_growing_pauses(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing = {"north"}
    await post(db, clock, "north", 1)
    await relay.drain()
    for attempt, pause in enumerate(RETRIES, start=1):
        clock.advance(pause * 0.79)
        await relay.drain()
        assert ear.attempts == attempt, "not yet"
        clock.advance(pause * 0.42)
        await relay.drain()
        assert ear.attempts == attempt + 1


async def test_a_delivery_that_works_after_a_failure_is_the_last(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing = {"north"}
    await post(db, clock, "north", 1)
    await relay.drain()
    ear.failing.clear()
    for _ in range(3):
        clock.advance(LONGER_THAN_ANY_PAUSE)
        await relay.drain()
    assert ear.heard == [("north", 1)]


async def test_a_failing_event_holds_back_its_own_key_and_no_other(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing = {"north"}
    await post(db, clock, "north", 1, 2)
    await post(db, clock, "south", 1, 2)
    await relay.drain()
    assert ear.heard == [("south", 1), ("south", 2)]
    ear.failing.clear()
    clock.advance(LONGER_THAN_ANY_PAUSE)
    await relay.drain()
    assert ear.heard[2:] == [("north", 1), ("north", 2)]


async def fail_for_good(db: Database, relay: Relay, ear: Ear, clock: StillClock) -> None:
    ear.failing = {"north"}
    await post(db, clock, "north", 1, 2)
    for _ in range(2 * (len(RETRIES) + 1)):
        await relay.drain()
        clock.advance(LONGER_THAN_ANY_PAUSE)


async def test_after_three_retries_an_event_is_a_dead_letter(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    await fail_for_good(db, relay, ear, clock)
    assert ear.attempts == 2 * 4
    assert await waiting(db) == 0
    second, first = await dead_letters(db)
    assert (first.type, first.key, first.payload) == ("ParcelPosted", "north", {"address": "north", "number": 1})
    assert first.error == "ZeroDivisionError", "the text of an unexpected error may hold anything"
    assert second.payload["number"] == 2


async def test_a_dead_letter_says_which_problem_it_was(db: Database, relay: Relay, ear: Ear, clock: StillClock) -> None:
    ear.error = InvalidField(field="address", reason="There is no such street")
    await fail_for_good(db, relay, ear, clock)
    assert {letter.error for letter in await dead_letters(db)} == {"There is no such street"}


async def test_an_outage_is_waited_out_and_uses_up_no_patience(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing, ear.error = {"north"}, Unavailable()
    await post(db, clock, "north", 1)
    began = clock.now()
    while clock.now() - began < AWAY_FOR - 2 * timedelta(seconds=AWAY_SECONDS[1]):
        await relay.drain()
        clock.advance(AWAY_SECONDS[1] * 1.21)
    assert len(RETRIES) + 1 < ear.attempts < 60
    assert (await dead_letters(db), await waiting(db)) == ([], 1)
    ear.error = ZeroDivisionError()
    for _ in range(len(RETRIES)):
        clock.advance(LONGER_THAN_ANY_PAUSE)
        await relay.drain()
    assert await dead_letters(db) == [], "a defect has all its attempts still"
    ear.failing.clear()
    clock.advance(LONGER_THAN_ANY_PAUSE)
    await relay.drain()
    assert (ear.heard, await waiting(db)) == ([("north", 1)], 0)


async def test_in_an_outage_the_pauses_grow_with_it(db: Database, relay: Relay, ear: Ear, clock: StillClock) -> None:
    ear.failing, ear.error = {"north"}, Unavailable()
    await post(db, clock, "north", 1)
    tried = []
    for second in range(400):
        before = ear.attempts
        await relay.drain()
        if ear.attempts > before:
            tried.append(second)
        clock.advance(1)
    least, longest = AWAY_SECONDS
    for before, after in itertools.pairwise(tried):
        pause = min(max(before, least), longest)
        assert pause <= after - before <= pause * 1.2 + 1, (before, after)
    assert tried[-1] > 300


async def test_what_an_open_circuit_has_refused_is_due_when_it_lets_somebody_through(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing, ear.error = {"north"}, CircuitOpen(retry_after=42)
    await post(db, clock, "north", 1)
    await relay.drain()
    clock.advance(41.9)
    await relay.drain()
    assert ear.attempts == 1
    ear.failing.clear()
    clock.advance(42 * 0.21)
    await relay.drain()
    assert ear.heard == [("north", 1)]


async def test_an_outage_that_does_not_end_makes_a_dead_letter_in_the_end(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing, ear.error = {"north"}, Unavailable()
    await post(db, clock, "north", 1)
    began = clock.now()
    while await waiting(db):
        await relay.drain()
        clock.advance(AWAY_SECONDS[1] * 1.21)
    assert AWAY_FOR < clock.now() - began < AWAY_FOR + timedelta(minutes=7)
    assert [letter.error for letter in await dead_letters(db)] == ["Service unavailable"]


async def test_a_replayed_letter_is_delivered_once(db: Database, relay: Relay, ear: Ear, clock: StillClock) -> None:
    await fail_for_good(db, relay, ear, clock)
    ear.failing.clear()
    letters = await dead_letters(db)
    assert [await replay(db, clock, letter.id) for letter in reversed(letters)] == [True, True]
    assert not await replay(db, clock, letters[0].id), "it is no dead letter any more"
    assert not await replay(db, clock, new_id())
    await relay.drain()
    assert ear.heard == [("north", 1), ("north", 2)]
    assert (await dead_letters(db), await waiting(db)) == ([], 0)


async def test_of_many_replays_at_once_one_counts(db: Database, relay: Relay, ear: Ear, clock: StillClock) -> None:
    await fail_for_good(db, relay, ear, clock)
    letter = (await dead_letters(db))[0]
    answers = await asyncio.gather(*(replay(db, clock, letter.id) for _ in range(8)))
    assert sorted(answers) == [False] * 7 + [True]


async def test_what_stays_undeliverable_is_revived_ever_more_seldom_and_once_an_hour_at_least(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    ear.failing = {"north"}
    await post(db, clock, "north", 1)
    tries = []
    for _ in range(4 * 60):
        before = ear.attempts
        await revive(db, clock, ("ear",))
        await relay.drain()
        clock.advance(LONGER_THAN_ANY_PAUSE)
        tries.append(ear.attempts - before)
    rounds = [minute for minute in range(4, len(tries)) if tries[minute] and not tries[minute - 1]]
    pauses = [later - earlier for earlier, later in zip(rounds, rounds[1:], strict=False)]
    assert 5 <= rounds[0] <= 12
    assert pauses == sorted(pauses)
    assert 60 <= pauses[-1] <= 65
    assert 4 <= len(rounds) <= 8
    ear.failing.clear()
    clock.advance(3700)
    await revive(db, clock, ("ear",))
    await relay.drain()
    assert ear.heard == [("north", 1)]


async def test_what_this_code_does_not_know_is_left_to_a_newer_one(
    db: Database, relay: Relay, ear: Ear, clock: StillClock
) -> None:
    now = clock.now()
    row = {"id": new_id(), "consumer": "ear", "type": "Unheard", "key": "x", "payload": {}, "due_at": now}
    async with db.transaction() as tx:
        await tx.execute(insert(OutboxRow), {**row, "created_at": now, "attempts": 0})
    await post(db, clock, "north", 1)
    for _ in range(len(RETRIES) + 1):
        await relay.drain()
        clock.advance(LONGER_THAN_ANY_PAUSE)
    assert ear.heard == [("north", 1)], "others are not held up"
    left = await db.first(select(OutboxRow.type, OutboxRow.attempts, OutboxRow.claimed_until))
    assert left == ("Unheard", 0, None)
    assert await dead_letters(db) == []


async def test_a_consumer_that_hangs_is_given_up_and_tried_again(
    db: Database, clock: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "HANDLING_SECONDS", 0.1)
    ear, hanging = Ear(), True

    async def hear(delivery: Delivery) -> None:
        if hanging:
            await asyncio.Event().wait()
        await ear(delivery)

    relay = Relay(db, [Listener("ear", ParcelPosted, hear)], clock)
    await post(db, clock, "north", 1)
    async with asyncio.timeout(5):
        await relay.drain()
    assert (ear.heard, await waiting(db)) == ([], 1)
    hanging = False
    clock.advance(LONGER_THAN_ANY_PAUSE)
    await relay.drain()
    assert (ear.heard, await waiting(db)) == ([("north", 1)], 0)


def test_a_delivery_ends_before_its_lease() -> None:
    assert LEASE.total_seconds() > HANDLING_SECONDS + WAIT_SECONDS, "else two processes would deliver one event"


@dataclass
class Ledger:
    """An idempotent consumer: writes into the database, in the transaction that claims the event."""

    db: Database
    name: str = "ledger"

    async def __call__(self, delivery: Delivery) -> None:
        async with self.db.transaction() as tx:
            if await delivery.first_time(tx):
                booked = InboxRow(event_id=new_id(), consumer="booked", at=delivery.created_at)
                row = {"event_id": booked.event_id, "consumer": booked.consumer, "at": booked.at}
                await tx.execute(insert(InboxRow), row)

    @property
    def listener(self) -> Listener:
        return Listener(self.name, ParcelPosted, self)

    async def booked(self) -> int:
        count = select(func.count()).select_from(InboxRow).where(InboxRow.consumer == "booked")
        return int(await self.db.scalar(count))


async def test_when_one_of_two_consumers_fails_the_other_does_its_work_once(
    db: Database, ear: Ear, clock: StillClock
) -> None:
    ledger = Ledger(db)
    relay = Relay(db, [ledger.listener, ear.listener], clock)
    await fail_for_good(db, relay, ear, clock)
    ear.failing.clear()
    for letter in reversed(await dead_letters(db)):
        await replay(db, clock, letter.id)
    await relay.drain()
    assert await ledger.booked() == 2
    assert ear.heard == [("north", 1), ("north", 2)]


async def test_after_a_crash_between_delivery_and_delete_it_is_delivered_again_and_counts_once(
    open_database: Opener, clock: StillClock
) -> None:
    db, delivered = open_database(), asyncio.Event()
    ledger = Ledger(db, "desk.ledger")

    async def hang(_: Delivery) -> None:
        delivered.set()
        await asyncio.Event().wait()

    doomed = Relay(db, [ledger.listener, Listener("desk.hanging", ParcelPosted, hang)], clock)
    await post(db, clock, "north", 1)
    dying = asyncio.create_task(doomed.drain())
    await asyncio.wait_for(delivered.wait(), 10)
    dying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dying
    assert (await ledger.booked(), await waiting(db)) == (1, 1)

    ear, other = Ear("desk.hanging"), open_database()
    survivor = Relay(other, [Ledger(other, "desk.ledger").listener, ear.listener], clock)
    assert await survivor.drain() == 0, "it may still be at work over there"
    clock.advance(LEASE.total_seconds() + 1)
    assert await survivor.drain() == 1
    assert (await ledger.booked(), ear.heard, await waiting(db)) == (1, [("north", 1)], 0)


async def test_a_letter_that_is_replayed_after_weeks_still_counts_once(
    db: Database, ear: Ear, clock: StillClock
) -> None:
    ledger = Ledger(db)
    relay = Relay(db, [ledger.listener, ear.listener], clock)
    await fail_for_good(db, relay, ear, clock)
    assert await ledger.booked() == 2
    ear.failing.clear()
    clock.advance(3 * KEPT.total_seconds())
    await relay.forget_old()
    remembered = select(func.count()).select_from(InboxRow).where(InboxRow.consumer == "ledger")
    assert await db.scalar(remembered) == 2, "what may come again is remembered"
    for letter in reversed(await dead_letters(db)):
        assert await replay(db, clock, letter.id)
    await relay.drain()
    assert ear.heard == [("north", 1), ("north", 2)]
    rows = (await db.scalar(remembered), await waiting(db), await dead_letters(db))
    assert rows == (2, 0, []), "the ledger was not written a second time"
    await relay.forget_old()
    assert await db.scalar(remembered) == 0, "now it may be forgotten"


async def test_one_event_delivered_twice_at_the_same_moment_counts_once(
    open_database: Opener, clock: StillClock
) -> None:
    databases = [open_database() for _ in range(4)]
    delivery = Delivery(ParcelPosted("north", 1), new_id(), "ledger", clock.now())
    outcomes = await asyncio.gather(*(Ledger(db)(delivery) for db in databases), return_exceptions=True)
    assert None in outcomes
    assert await Ledger(databases[0]).booked() == 1


async def test_two_relays_on_one_database_share_the_work_and_never_deliver_one_event_at_the_same_time(
    open_database: Opener, clock: StillClock
) -> None:
    under_way: Counter[str] = Counter()
    heard: list[tuple[int, str, int]] = []
    overlaps: list[str] = []

    def listener(relay: int) -> Listener:
        async def handle(delivery: Delivery) -> None:
            event = delivery.event
            under_way[event.address] += 1
            if under_way[event.address] > 1:
                overlaps.append(event.address)
            await asyncio.sleep(0.001)
            heard.append((relay, event.address, event.number))
            under_way[event.address] -= 1

        return Listener("ear", ParcelPosted, handle)

    databases = [open_database(), open_database()]
    relays = [Relay(db, [listener(number)], clock) for number, db in enumerate(databases)]
    addresses = [f"place-{number}" for number in range(40)]
    for number in range(5):
        async with databases[0].transaction() as tx:
            for address in addresses:
                await emit(tx, ParcelPosted(address, number), clock.now())
    while await waiting(databases[0]):
        await asyncio.gather(*(relay.drain() for relay in relays))
    assert overlaps == []
    for address in addresses:
        assert [number for _, place, number in heard if place == address] == list(range(5))


async def test_a_running_relay_delivers_as_soon_as_the_transaction_is_committed(
    db: Database, clock: StillClock
) -> None:
    heard = asyncio.Event()

    async def hear(_: Delivery) -> None:
        heard.set()

    relay = Relay(db, [Listener("ear", ParcelPosted, hear)], clock)
    db.listeners.append(relay)
    async with running(relay):
        await post(db, clock, "north", 1)
        await asyncio.wait_for(heard.wait(), 10)


async def test_what_another_process_says_is_found_without_a_word(open_database: Opener, clock: StillClock) -> None:
    db, other = open_database(), open_database()
    heard = asyncio.Event()

    async def hear(_: Delivery) -> None:
        heard.set()

    async with running(Relay(db, [Listener("ear", ParcelPosted, hear)], clock)):
        other.routes = db.routes
        await post(other, clock, "north", 1)
        await asyncio.wait_for(heard.wait(), 10)


async def test_a_stopping_relay_finishes_what_it_has_begun_and_leaves_the_rest(db: Database, clock: StillClock) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    ear = Ear()

    async def hear(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        await ear(delivery)

    relay = Relay(db, [Listener("ear", ParcelPosted, hear)], clock)
    await post(db, clock, "north", 1, 2)
    await relay.start()
    await asyncio.wait_for(begun.wait(), 10)
    stopping = asyncio.create_task(relay.stop())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(stopping, 10)
    assert (ear.heard, await waiting(db)) == ([("north", 1)], 1)


async def test_a_stopping_relay_leaves_what_it_has_not_begun(db: Database, clock: StillClock) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    ear = Ear()

    async def hear(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        await ear(delivery)

    relay = Relay(db, [Listener("ear", ParcelPosted, hear)], clock)
    for number in range(3 * UNDER_WAY):
        await post(db, clock, f"place-{number}", 1)
    await relay.start()
    await asyncio.wait_for(begun.wait(), 10)
    stopping = asyncio.create_task(relay.stop())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(stopping, 10)
    assert (len(ear.heard), await waiting(db)) == (UNDER_WAY, 2 * UNDER_WAY)
    assert await db.scalar(select(func.max(OutboxRow.attempts))) == 0, "another process may begin them at once"


async def test_a_relay_whose_database_is_away_says_so_once_and_stops_as_ever(
    empty_postgres: str, clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hear(_: Delivery) -> None:
        begun.set()
        await go_on.wait()

    def said(logger: str) -> int:
        return sum(record.name == logger for record in caplog.records)

    async with Wire(empty_postgres, 5432) as wire:
        db = PostgresDatabase(wire.url)
        relay = Relay(db, [Listener("ear", ParcelPosted, hear)], clock)
        await post(db, clock, "north", 1)
        with caplog.at_level(logging.WARNING, "bedplate"):
            await relay.start()
            await asyncio.wait_for(begun.wait(), 10)
            await wire.cut()
            await until(lambda: said("bedplate.postgres") >= 3)
            go_on.set()  # and now it cannot note that this is delivered
            await asyncio.wait_for(relay.stop(), 10)
        await db.close()
        assert said("bedplate.relay") == 1


async def test_the_inbox_remembers_a_week(db: Database, relay: Relay, clock: StillClock) -> None:
    async with db.transaction() as tx:
        for age in (0, KEPT.total_seconds() + 1):
            clock.advance(-age)
            await tx.execute(insert(InboxRow), {"event_id": new_id(), "consumer": "ear", "at": clock.now()})
            clock.advance(age)
    await relay.forget_old()
    assert await db.scalar(select(func.count()).select_from(InboxRow)) == 1
