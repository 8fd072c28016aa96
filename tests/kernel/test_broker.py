"""The broker: what is said in one database is heard in another, once and in order, whatever happens in between."""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from bedplate import models
from bedplate.compose.chosen import broker_at
from bedplate.kernel import intake as intakes
from bedplate.kernel import publisher as publishers
from bedplate.kernel import streams
from bedplate.kernel.broker import Broker, BrokerAway, Wire, with_broker
from bedplate.kernel.clock import iso
from bedplate.kernel.db import Database
from bedplate.kernel.events import Event
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import Delivery, OutboxRow, emit, waiting
from bedplate.kernel.relay import LEASE
from bedplate.kernel.settings import OperatorError
from bedplate.kernel.streams import Streams
from tests.factories import TurnableClock
from tests.kernel.clocks import StillClock
from tests.kernel.conftest import Connect, Opener
from tests.kernel.lines import (
    BoxMoved,
    BoxOpened,
    BoxWeighed,
    CrateMoved,
    Receiver,
    Sender,
    kill,
    killable,
    numbers,
    until,
)
from tests.kernel.servers import RedisServer

DAY = 86_400


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def broker(server: RedisServer, connect: Connect) -> Broker:
    return connect(server.url)


@pytest.fixture
def sender(db: Database, broker: Broker, clock: StillClock) -> Sender:
    return Sender(db, broker, clock)


@pytest.fixture
def receiver(far: Database, broker: Broker, clock: StillClock) -> Receiver:
    return Receiver(far, broker, clock)


async def test_what_is_said_is_heard_elsewhere_once_and_in_order_per_key(sender: Sender, receiver: Receiver) -> None:
    for number in range(20):
        await sender.say("red", number)
        await sender.say("blue", number)
    assert await sender.publisher.drain() == 40
    heard = await receiver.take()
    assert (numbers(heard, "red"), numbers(heard, "blue"), len(heard)) == ([*range(20)], [*range(20)], 40)
    assert (await sender.waiting(), await sender.held()) == (0, 40), "until the sender has looked again"
    await sender.publisher.drain()
    assert await sender.held() == 0
    assert len(await receiver.take()) == 40


async def test_running_they_deliver_as_soon_as_it_is_committed_and_then_let_go(
    sender: Sender, receiver: Receiver
) -> None:
    await receiver.start()
    await sender.publisher.start()
    try:
        await sender.say("red", 1)
        await until(lambda: receiver.heard == [("red", 1)], 10)

        async def let_go() -> bool:
            return await sender.held() == 0

        await until(let_go, 10)
        began = time.monotonic()
    finally:
        await sender.publisher.stop()
        await receiver.stop()
    assert time.monotonic() - began < 2, "each within a second"


async def test_only_what_may_leave_the_process_leaves_it(sender: Sender, receiver: Receiver) -> None:
    async with sender.database.transaction() as tx:
        await emit(tx, BoxWeighed("red"), sender.clock.now())
        await emit(tx, BoxOpened("red"), sender.clock.now())
    assert await sender.publisher.drain() == 1
    assert await receiver.intake.drain() == 1
    assert await receiver.database.scalar(select(func.count()).where(OutboxRow.consumer == "store")) == 0
    await sender.publisher.drain()
    assert await sender.held() == 0, "what nobody wants is taken all the same"


def test_local_consumers_hear_what_the_broker_carries_too() -> None:
    routes = with_broker({"BoxMoved": ["attic"], "BoxWeighed": ["attic"]})
    assert (routes["BoxMoved"], routes["BoxWeighed"]) == (("attic", "broker"), ["attic"])
    assert routes["BoxOpened"] == ("broker",)


def test_the_ids_of_every_published_event_are_text_as_streams_have_nothing_else() -> None:
    assert models.OutboxRow is OutboxRow, "all modules are loaded"
    kinds = [kind for kind in Event.known.values() if kind.published and kind.__module__.startswith("bedplate.")]
    assert len(kinds) > 10
    for kind in kinds:
        types = {field: kind.__dataclass_fields__[field].type for field in kind.top_fields()}  # type: ignore[attr-defined]
        assert set(types.values()) == {str}, kind


async def test_rows_stay_until_every_expected_group_has_them(
    db: Database, far: Database, broker: Broker, clock: StillClock
) -> None:
    sender = Sender(db, broker, clock, groups=("store", "audit"))
    store, audit = Receiver(far, broker, clock), Receiver(far, broker, clock, group="audit")
    await sender.say("red", 1, 2)
    await sender.publisher.drain()
    await store.take()
    await sender.publisher.drain()
    assert await sender.held() == 2, "the other group has never been there"
    [first] = await broker.read("boxes", "audit", 1, 0.0, again=False)
    await sender.publisher.drain()
    assert await sender.held() == 2, "read is not taken"
    await broker.acknowledge("boxes", "audit", [first.receipt])
    await sender.publisher.drain()
    assert await sender.held() == 1
    assert numbers(await audit.take(), "red") == [2]
    await sender.publisher.drain()
    assert await sender.held() == 0


async def test_what_nobody_is_expected_to_take_is_let_go_at_once(
    db: Database, broker: Broker, clock: StillClock
) -> None:
    sender = Sender(db, broker, clock, groups=())
    await sender.say("red", 1)
    assert await sender.publisher.drain() == 1
    assert (await sender.waiting(), await sender.held()) == (0, 0)


async def test_what_no_group_took_for_a_week_is_given_up(
    sender: Sender, clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    await sender.say("red", 1)
    await sender.publisher.drain()
    clock.advance(7 * DAY - 60)
    await sender.publisher.drain()
    assert await sender.held() == 1
    clock.advance(120)
    with caplog.at_level(logging.WARNING, "bedplate"):
        await sender.publisher.drain()
    assert await sender.held() == 0
    assert "given up" in caplog.text


async def test_what_could_not_be_published_for_a_week_is_not_given_up(sender: Sender, clock: StillClock) -> None:
    await sender.say("red", 1)
    clock.advance(8 * DAY)
    await sender.publisher.drain()
    assert await sender.held() == 1, "published this moment"


async def test_two_publishers_of_one_database_keep_the_order(
    open_database: Opener, receiver: Receiver, broker: Broker, clock: StillClock
) -> None:
    senders = [Sender(open_database(), broker, clock) for _ in range(2)]
    for number in range(5):
        async with senders[0].database.transaction() as tx:
            for box in range(100):
                await emit(tx, BoxMoved(f"box-{box}", number), clock.now())
    while await senders[0].waiting():
        await asyncio.gather(*(sender.publisher.drain() for sender in senders))
    heard = await receiver.take()
    assert len(heard) == 500
    for box in range(100):
        assert numbers(heard, f"box-{box}") == [*range(5)]


class Unanswering(Streams):
    """Publishes, and never says so."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.published = asyncio.Event()

    async def publish(self, topic: str, messages: Sequence[Wire]) -> tuple[str, str]:
        await super().publish(topic, messages)
        self.published.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_publisher_killed_before_it_could_note_what_it_published_does_no_harm(
    open_database: Opener, receiver: Receiver, broker: Broker, server: RedisServer, clock: StillClock
) -> None:
    hanging = Unanswering(server.url)
    doomed = Sender(open_database(), hanging, clock)
    await doomed.say("red", 1, 2)
    dying = asyncio.create_task(doomed.publisher.drain())
    await asyncio.wait_for(hanging.published.wait(), 10)
    await kill([dying])
    await hanging.close()
    assert numbers(await receiver.take(), "red") == [1]
    survivor = Sender(open_database(), broker, clock)
    clock.advance(publishers.LEASE.total_seconds() + 1)
    assert await survivor.publisher.drain() == 2
    assert numbers(await receiver.take(), "red") == [1, 2]
    await survivor.publisher.drain()
    assert (await survivor.waiting(), await survivor.held()) == (0, 0)


async def test_rows_that_this_version_cannot_publish_hold_up_nobody(
    sender: Sender, receiver: Receiver, clock: StillClock
) -> None:
    odd = {"consumer": "broker", "key": "red", "created_at": clock.now(), "due_at": clock.now(), "attempts": 0}
    async with sender.database.transaction() as tx:
        rows = [("BoxSold", {"box": "red"}), ("BoxMoved", {"box": "red", "weight": 5})]
        await tx.execute(insert(OutboxRow), [{**odd, "id": new_id(), "type": t, "payload": p} for t, p in rows])
    await sender.say("blue", 1)
    await sender.publisher.drain()
    assert (await receiver.take(), await sender.waiting()) == ([("blue", 1)], 2)


async def test_what_comes_while_the_stream_is_full_waits_in_the_outbox(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (publishers, streams):
        monkeypatch.setattr(module, "MAXIMUM_LENGTH", 300)
    await sender.say("red", 0)
    for box in range(399):
        await sender.say(f"box-{box}", 0)
    await sender.publisher.drain()
    assert (await sender.held(), await sender.waiting()) == (400, 0)
    await sender.say("red", 1)
    assert await sender.publisher.drain() == 0
    assert (await sender.held(), await sender.waiting()) == (400, 1)
    async with sender.database.transaction() as tx:
        await emit(tx, CrateMoved("green"), sender.clock.now())
    assert await sender.publisher.drain() == 1, "one stream that is full holds up no other"
    assert (await sender.held(), await sender.waiting()) == (400, 1)
    await receiver.take()
    await sender.publisher.drain()
    await sender.publisher.drain()
    assert numbers(await receiver.take(), "red") == [0, 1]


# Readers


async def test_two_readers_of_a_group_take_each_event_once_and_in_order(
    sender: Sender, far: Database, server: RedisServer, connect: Connect, clock: StillClock
) -> None:
    first, second = (Receiver(far, connect(server.url), clock) for _ in range(2))
    second.heard = first.heard
    for each in (first, second):
        await each.start()
    try:
        for number in range(30):
            await sender.say("red", number)
            await sender.say("blue", number)
            await sender.publisher.drain()
        await until(lambda: len(first.heard) >= 60)
    finally:
        for each in (first, second):
            await each.stop()
    assert (numbers(first.heard, "red"), numbers(first.heard, "blue")) == ([*range(30)], [*range(30)])
    assert len(first.heard) == 60


async def test_a_reader_that_stops_hands_over_at_once(
    sender: Sender, far: Database, server: RedisServer, connect: Connect, clock: StillClock
) -> None:
    first, second = (Receiver(far, connect(server.url), clock) for _ in range(2))
    await first.start()
    await sender.say("red", 1)
    await sender.publisher.drain()
    await until(lambda: first.heard == [("red", 1)])
    await second.start()
    await first.stop()
    try:
        await sender.say("red", 2)
        await sender.publisher.drain()
        await until(lambda: second.heard == [("red", 2)], intakes.LEASE_SECONDS / 2)
    finally:
        await second.stop()


class Deaf(Streams):
    """Nothing that is acknowledged arrives."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.acknowledging = asyncio.Event()

    async def acknowledge(self, topic: str, group: str, receipts: Sequence[str]) -> None:
        self.acknowledging.set()
        await asyncio.Event().wait()


async def insist(reader: intakes.Intake) -> int:
    """Drain it, as its rounds do: that the broker does not answer for a moment is no end."""
    while True:
        with contextlib.suppress(BrokerAway):
            return await reader.drain()
        await asyncio.sleep(0.05)


async def test_a_reader_killed_between_commit_and_acknowledgement_has_no_second_effect(
    sender: Sender, receiver: Receiver, server: RedisServer
) -> None:
    await sender.say("red", 1, 2)
    await sender.publisher.drain()
    deaf = Deaf(server.url)
    dying = asyncio.create_task(insist(receiver.reader(deaf)))
    await asyncio.wait_for(deaf.acknowledging.wait(), 10)
    await kill([dying])
    await deaf.close()
    await receiver.relay.drain()
    assert numbers(receiver.heard, "red") == [1, 2], "it was committed"
    await sender.publisher.drain()
    assert await sender.held() == 2
    assert await receiver.reader().drain() == 2, "read again by another"
    await receiver.relay.drain()
    assert numbers(receiver.heard, "red") == [1, 2]
    await sender.publisher.drain()
    assert await sender.held() == 0


async def test_what_a_dead_reader_had_in_its_hands_is_taken_over_when_its_lease_has_run_out(
    sender: Sender,
    far: Database,
    server: RedisServer,
    connect: Connect,
    clock: StillClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intakes, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(intakes, "RENEW_SECONDS", 0.5)
    deaf = Deaf(server.url)
    receiver = Receiver(far, connect(server.url), clock)
    with killable() as tasks:
        await receiver.reader(deaf).start()
    await sender.say("red", 1)
    await sender.publisher.drain()
    await asyncio.wait_for(deaf.acknowledging.wait(), 10)
    await kill(tasks)
    await deaf.close()
    began = time.monotonic()
    await receiver.start()
    try:
        await sender.say("red", 2)
        await sender.publisher.drain()
        await until(lambda: len(receiver.heard) >= 2)
    finally:
        await receiver.stop()
    assert receiver.heard == [("red", 1), ("red", 2)]
    assert time.monotonic() - began > 1.0, "nobody else reads before"
    await sender.publisher.drain()
    assert await sender.held() == 0


async def test_two_readers_at_the_same_moment_write_each_event_once(
    sender: Sender, open_database: Opener, broker: Broker, clock: StillClock
) -> None:
    """As when the lease of one ran out while it was busy."""
    receivers = [Receiver(open_database(), broker, clock) for _ in range(2)]
    for box in range(300):
        await sender.say(f"box-{box}", box)
    await sender.publisher.drain()
    entries = await broker.read("boxes", "store", 300, 0.0, again=False)
    assert len(entries) == 300
    await asyncio.gather(*(receiver.intake.drain() for receiver in receivers))
    assert await receivers[0].database.scalar(select(func.count()).where(OutboxRow.consumer == "store")) == 300


UNREADABLE: tuple[dict[str, Any], ...] = (
    {"event_id": "not an id"},
    {"event_type": ""},
    {"event_type": "box moved"},
    {"event_type": "box_" * 100},
    {"event_type": "BOX_MOVED"},
    {"occurred_at": "yesterday"},
    {"occurred_at": "2026-11-25T12:00:00"},
    {"occurred_at": "0001-01-01T00:00:00+14:00"},
    {"box": "x" * 255},
    {"box": "nul\0"},
    {"data": []},
    {"data": None},
    {"data": {}},
    {"data": {"number": float("nan")}},
    {"event_type": "box_sold", "data": "text"},
    {"event_type": "box_sold", "data": {"prices": [float("-inf")]}},
    {"event_type": "box_sold", "occurred_at": "2026-11-25T12:00:00"},
)


async def test_an_entry_that_cannot_be_read_is_noted_and_passed_over(
    sender: Sender, receiver: Receiver, broker: Broker, clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    sound = {"event_type": "box_moved", "occurred_at": iso(clock.now()), "box": "red", "data": {"number": 1}}
    with caplog.at_level(logging.WARNING, "bedplate"):
        for number, wire in enumerate(UNREADABLE, start=1):
            await broker.publish("boxes", [{"event_id": new_id()} | sound | wire])
            await receiver.intake.drain()
            assert receiver.intake.unreadable == number, wire
    assert caplog.text.count("an entry cannot be read") == len(UNREADABLE)
    await sender.say("red", 2)
    await sender.publisher.drain()
    assert await receiver.take() == [("red", 2)]
    await sender.publisher.drain()
    assert await sender.held() == 0


async def test_what_a_newer_version_says_waits_for_the_version_that_knows_it(
    receiver: Receiver, broker: Broker, clock: StillClock
) -> None:
    top = {"event_id": new_id(), "event_type": "box_sold", "occurred_at": iso(clock.now()), "box": "red", "buyer": "b"}
    await broker.publish("boxes", [{**top, "data": {"price": 12.5}}])
    await broker.publish("boxes", [{**top, "data": {"price": 12.5}}])
    assert await receiver.take() == []
    [row] = await receiver.database.all(select(OutboxRow.__table__).where(OutboxRow.consumer == "store"))
    assert (row.type, row.key, row.payload) == ("BoxSold", "red", {"price": 12.5, "box": "red", "buyer": "b"})
    assert (row.created_at, receiver.intake.unreadable) == (clock.now(), 0)


async def test_what_a_newer_version_says_is_not_kept_for_ever(
    sender: Sender, receiver: Receiver, broker: Broker, clock: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def strange(kind: str) -> None:
        top = {"event_id": new_id(), "event_type": kind, "occurred_at": iso(clock.now()), "box": "red"}
        await broker.publish("boxes", [{**top, "data": {}}])

    async def kept() -> list[str]:
        rows = await receiver.database.all(select(OutboxRow.type).where(OutboxRow.consumer == "store"))
        return [row.type for row in rows]

    monkeypatch.setattr(intakes, "MAXIMUM_UNKNOWN", 2)
    for _ in range(3):
        await strange("box_sold")
        await receiver.intake.drain()
    assert await kept() == ["BoxSold", "BoxSold"]
    clock.advance(7 * DAY + 1)
    await strange("box_lost")
    await receiver.reader().drain()
    assert await kept() == ["BoxLost"]
    monkeypatch.setitem(Event.known, "BoxLost", BoxOpened)  # this version knows it, but nobody here listens
    await sender.say("blue", 1)
    await sender.publisher.drain()
    await receiver.reader().drain()
    assert await kept() == ["BoxMoved"]


async def test_the_relay_tries_again_and_keeps_dead_letters_of_what_came_from_elsewhere(
    sender: Sender, far: Database, broker: Broker, clock: StillClock
) -> None:
    async def fail(_: Delivery) -> None:
        raise ZeroDivisionError

    receiver = Receiver(far, broker, clock, handle=fail)
    await sender.say("red", 1)
    await sender.publisher.drain()
    await receiver.take()
    await sender.publisher.drain()
    assert await sender.held() == 0, "taken, though not handled"
    for _ in range(5):
        clock.advance(60)
        await receiver.take()
    assert await far.scalar(select(func.count()).select_from(models.DeadLetterRow)) == 1


# The broker goes away


async def away(server: RedisServer) -> None:
    server.kill()
    server.start()


async def emptied(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


async def wiped(server: RedisServer) -> None:
    server.kill()
    server.wipe()
    server.start()


@pytest.mark.parametrize("accident", [away, emptied, wiped])
async def test_after_an_accident_of_the_broker_everything_comes_and_nothing_twice(
    db: Database,
    far: Database,
    own_server: RedisServer,
    connect: Connect,
    clock: StillClock,
    accident: Callable[[RedisServer], Any],
) -> None:
    broker = connect(own_server.url)
    sender, receiver = Sender(db, broker, clock), Receiver(far, broker, clock)
    await sender.say("red", 1)
    await sender.publisher.drain()
    await receiver.take()
    await sender.publisher.drain()
    assert await sender.held() == 0, "confirmed"
    await sender.say("red", 2)
    await sender.publisher.drain()
    await receiver.take()  # taken, but the sender does not know
    await sender.say("red", 3)
    await sender.publisher.drain()  # not even read
    await sender.say("red", 4)
    await accident(own_server)

    async def settled() -> bool:
        try:
            await sender.publisher.drain()
            await receiver.take()
        except BrokerAway:  # of the broken connections
            return False
        return await sender.held() == await sender.waiting() == 0

    await until(settled)
    assert receiver.heard == [("red", 1), ("red", 2), ("red", 3), ("red", 4)]


@pytest.mark.parametrize("accident", [away, emptied, wiped])
async def test_they_mend_themselves_while_they_run(
    db: Database,
    far: Database,
    own_server: RedisServer,
    connect: Connect,
    accident: Callable[[RedisServer], Any],
) -> None:
    clock = TurnableClock()
    sender, receiver = Sender(db, connect(own_server.url), clock), Receiver(far, connect(own_server.url), clock)
    await receiver.start()
    await sender.publisher.start()

    async def settled() -> bool:
        return await sender.held() == await sender.waiting() == 0

    try:
        for number in range(60):
            await sender.say(f"box-{number % 7}", number)
            if number == 30:
                await accident(own_server)
        await until(lambda: len(receiver.heard) >= 60)
        await until(settled)
    finally:
        await sender.publisher.stop()
        await receiver.stop()
    assert sorted(number for _, number in receiver.heard) == [*range(60)]


async def test_while_the_broker_is_away_writes_go_on_and_one_line_says_so(
    db: Database,
    far: Database,
    own_server: RedisServer,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = TurnableClock()
    sender, receiver = Sender(db, connect(own_server.url), clock), Receiver(far, connect(own_server.url), clock)
    own_server.kill()
    with caplog.at_level(logging.WARNING, "bedplate"):
        await receiver.start()
        await sender.publisher.start()
        try:
            slowest = 0.0
            for number in range(100):
                began = time.perf_counter()
                await sender.say("red", number)
                slowest = max(slowest, time.perf_counter() - began)
                await asyncio.sleep(0.02)
            assert await sender.waiting() == 100
            own_server.start()
            await until(lambda: len(receiver.heard) >= 100)
        finally:
            await sender.publisher.stop()
            await receiver.stop()
    assert slowest < 1.0
    assert numbers(receiver.heard, "red") == [*range(100)]
    said = Counter(record.name for record in caplog.records)
    assert said == {"bedplate.rounds": 2}, "the publisher once, the reader once"


async def test_a_broker_that_hangs_delays_neither_writes_nor_the_stop(
    db: Database, far: Database, own_server: RedisServer, connect: Connect
) -> None:
    clock = TurnableClock()
    sender, receiver = Sender(db, connect(own_server.url), clock), Receiver(far, connect(own_server.url), clock)
    await receiver.start()
    await sender.publisher.start()
    await sender.say("red", 1)
    await until(lambda: receiver.heard == [("red", 1)])
    own_server.freeze()
    try:
        began = time.monotonic()
        for number in range(2, 12):
            await sender.say("red", number)
        said = time.monotonic()
        await asyncio.sleep(0.3)  # let them run into it
        stopping = time.monotonic()
        await asyncio.gather(sender.publisher.stop(), receiver.stop())
        stopped = time.monotonic()
    finally:
        own_server.thaw()
    assert (said - began < 1, stopped - stopping < 1.5) == (True, True), (said - began, stopped - stopping)
    clock.advance(LEASE.total_seconds() + 1)
    await Sender(db, connect(own_server.url), clock).publisher.drain()
    next_start = Receiver(far, connect(own_server.url), clock)
    assert numbers(await next_start.take(), "red") == [*range(2, 12)]


async def test_a_wiped_broker_is_not_taken_for_one_that_has_confirmed(
    db: Database, own_server: RedisServer, connect: Connect, clock: StillClock
) -> None:
    """A new stream's positions must not be compared with an old one's."""
    broker = connect(own_server.url)
    sender = Sender(db, broker, clock)
    await sender.say("red", 1)
    await sender.publisher.drain()
    await emptied(own_server)
    for _ in range(3):  # a group that is far beyond what was published before
        later = {"event_id": new_id(), "event_type": "box_moved", "occurred_at": iso(clock.now()), "box": "blue"}
        await broker.publish("boxes", [{**later, "data": {"number": 1}}])
    entries = await broker.read("boxes", "store", 10, 0.0, again=False)
    assert len(entries) == 3
    await broker.acknowledge("boxes", "store", [entry.receipt for entry in entries])
    assert await sender.publisher.drain() == 1, "published again"
    assert await sender.held() == 1


async def test_a_tail_shows_what_is_published_from_now_on_through_outages(
    db: Database, own_server: RedisServer, connect: Connect, clock: StillClock
) -> None:
    broker = connect(own_server.url)
    sender = Sender(db, broker, clock)
    await sender.say("red", 1)
    await sender.publisher.drain()
    shown: list[Wire] = []
    listening = asyncio.Event()

    async def follow() -> None:
        async for wire in broker.tail(["boxes", "nothing"], listening.set):
            shown.append(wire)

    following = asyncio.create_task(follow())
    try:
        await until(listening.is_set)
        await sender.say("red", 2)
        await sender.publisher.drain()
        await until(lambda: bool(shown))
        assert {wire["data"]["number"] for wire in shown} == {2}
        await away(own_server)
        shown.clear()

        async def follows_again() -> bool:
            await sender.say("red", 3)
            try:
                await sender.publisher.drain()
            except BrokerAway:
                return False
            return any(wire["data"]["number"] == 3 for wire in shown)

        await until(follows_again)
    finally:
        await kill([following])


async def test_asked_while_it_is_away_it_says_so_soon(own_server: RedisServer, connect: Connect) -> None:
    broker = connect(own_server.url)
    await broker.ping()
    own_server.kill()
    with pytest.raises(BrokerAway):
        await broker.ping()
    with pytest.raises(BrokerAway):
        await anext(broker.tail(["boxes"]))


@pytest.mark.parametrize("emptyings", [0, 3])
@pytest.mark.parametrize(
    ("events", "kills"), [(500, 5), pytest.param(10_000, 20, marks=[pytest.mark.faults, pytest.mark.timeout(900)])]
)
async def test_shuffled_and_repeated_with_readers_killed_every_event_is_handled_once(
    db: Database,
    far: Database,
    server: RedisServer,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    events: int,
    kills: int,
    emptyings: int,
) -> None:
    monkeypatch.setattr(intakes, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(intakes, "RENEW_SECONDS", 0.1)
    dice = random.Random(4)
    clock = TurnableClock()
    sender, receiver = Sender(db, connect(server.url), clock), Receiver(far, connect(server.url), clock)
    said = [(f"box-{number % (events // 20)}", number) for number in range(events)]
    each = -(-events // 10)

    async def say() -> None:
        # Ten at a time, each with boxes of its own, so that what is said of one box has an order.
        shares = [[pair for pair in said if int(pair[0][4:]) % 10 == share] for share in range(10)]
        await asyncio.gather(*(sender.say_all(share) for share in shares))

    async def shuffle(raw: Any) -> None:
        """Everything comes again, up to five times, in any order and at any time."""
        for round_ in range(each):
            await asyncio.sleep(0.05)
            entries = raw.xrevrange("boxes", count=200)
            for _, fields in dice.sample(entries, len(entries) // 3):
                raw.xadd("boxes", fields)
            if round_ in emptied_at:
                raw.flushall()

    async def read_and_die() -> None:
        for _ in range(kills):
            with killable() as tasks:
                await receiver.reader().start()
            await asyncio.sleep(dice.uniform(0.05, 0.5))
            await kill(tasks)

    emptied_at = {2 + 8 * number for number in range(emptyings)}
    await receiver.relay.start()
    await sender.publisher.start()
    with server.client() as raw:
        disturbing = asyncio.create_task(shuffle(raw))
        await asyncio.gather(say(), read_and_die())
        await receiver.intake.start()

        async def let_go() -> bool:
            return await sender.held() == await sender.waiting() == 0

        async def nothing_waits() -> bool:
            return await waiting(far) == 0

        try:
            while (before := len(receiver.heard)) < events:  # as long as it goes on
                await until(lambda before=before: len(receiver.heard) > before)
            await kill([disturbing])
            await until(let_go)
            await receiver.intake.drain()
            await until(nothing_waits)  # nor is handled: what should not come would have been heard
        finally:
            await kill([disturbing])
            await sender.publisher.stop()
            await receiver.stop()
    assert Counter(receiver.heard) == Counter(said)
    if not emptyings:
        for box in {box for box, _ in said}:
            assert numbers(receiver.heard, box) == [number for place, number in said if place == box]


@pytest.mark.bench
async def test_how_many_events_a_second_go_through(
    db: Database, far: Database, server: RedisServer, connect: Connect
) -> None:
    clock = TurnableClock()
    sender, receiver = Sender(db, connect(server.url), clock), Receiver(far, connect(server.url), clock)
    await receiver.start()
    await sender.publisher.start()
    try:
        pauses = []
        for number in range(100):
            began = time.perf_counter()
            await sender.say("red", number)
            await until(lambda number=number: len(receiver.heard) > number)
            pauses.append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(100):
            await asyncio.gather(*(sender.say(f"box-{box}", 0) for box in range(50)))
        await until(lambda: len(receiver.heard) == 5100)
        rate = 5000 / (time.perf_counter() - began)
    finally:
        await sender.publisher.stop()
        await receiver.stop()
    print(f"\n{db.dialect.name}: {rate:,.0f} events/s from emit to handled, one alone {median(pauses) * 1000:.1f} ms")


@pytest.mark.parametrize("url", ["", "amqp://localhost", "redis//localhost", "redis://localhost:port"])
def test_an_address_that_is_no_brokers_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(OperatorError, match="BROKER_URL"):
        broker_at(url)
