"""Redis Streams as the broker: what other programs see, and what Redis itself can do to a stream."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from bedplate.kernel import streams
from bedplate.kernel.broker import Broker, BrokerAway
from bedplate.kernel.clock import iso
from bedplate.kernel.db import Database
from bedplate.kernel.ids import new_id
from bedplate.kernel.sqlite import SqliteDatabase
from tests.kernel.clocks import StillClock
from tests.kernel.conftest import Connect
from tests.kernel.lines import Receiver, Sender, until
from tests.kernel.servers import RedisServer

HOUR = 3_600_000


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
async def db(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """SQLite alone: what happens here happens in Redis."""
    shutil.copy(sqlite_template, tmp_path / "here.db")
    database = SqliteDatabase(str(tmp_path / "here.db"))
    yield database
    await database.close()


@pytest.fixture
async def far(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    shutil.copy(sqlite_template, tmp_path / "far.db")
    database = SqliteDatabase(str(tmp_path / "far.db"))
    yield database
    await database.close()


@pytest.fixture
def broker(server: RedisServer, connect: Connect) -> Broker:
    return connect(server.url)


@pytest.fixture
def sender(db: Database, broker: Broker, clock: StillClock) -> Sender:
    return Sender(db, broker, clock)


@pytest.fixture
def receiver(far: Database, broker: Broker, clock: StillClock) -> Receiver:
    return Receiver(far, broker, clock)


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Any]:
    """Redis as any other program uses it."""
    with server.client() as client:
        yield client


def box(number: int) -> dict[str, str]:
    top = {"event_id": new_id(), "event_type": "box_moved", "occurred_at": iso(StillClock().now()), "box": "red"}
    return {**top, "data": json.dumps({"number": number})}


async def test_other_programs_read_flat_fields_in_a_stream_named_by_its_topic(sender: Sender, raw: Any) -> None:
    await sender.say("red", 7)
    await sender.publisher.drain()
    [(_, fields)] = raw.xrange("boxes")
    event_id = fields.pop(b"event_id")
    assert len(event_id) == 36
    assert fields == {
        b"event_type": b"box_moved",
        b"occurred_at": b"2026-11-22T12:00:00Z",
        b"box": b"red",
        b"data": b'{"number":7}',
    }


async def test_what_other_programs_write_beside_it_does_no_harm(sender: Sender, receiver: Receiver, raw: Any) -> None:
    strange: tuple[dict[Any, Any], ...] = (
        {b"\xff": b"\xfe"},
        {"data": "{"},
        {"data": "[" * 100_000},
        {**box(1), "data": '{"number": 1, "number'},
        {**box(1), "box": b"\xff", "data": "{}"},
        {**box(1), "data": '{"number": "\\ud800"}'},
        *({**box(1), "data": f'{{"number": {"[" * deep}{"]" * deep}}}'} for deep in (300, 800, 900, 940, 980)),
        {**box(1), "event_type": "box_sold", "data": f'{{"number": {"[" * 900}{"]" * 900}}}'},
    )
    for fields in strange:
        raw.xadd("boxes", fields)
    raw.xadd("boxes", {**box(1), "data": json.dumps({"number": 1, "colour": "a field of a newer version"})})
    await sender.say("red", 2)
    await sender.publisher.drain()
    assert await receiver.take() == [("red", 1), ("red", 2)]
    assert receiver.intake.unreadable == len(strange)
    await sender.publisher.drain()
    assert await sender.held() == 0


async def test_a_stream_that_alone_was_deleted_is_noticed(sender: Sender, receiver: Receiver, raw: Any) -> None:
    await sender.say("red", 1)
    await sender.publisher.drain()
    raw.delete("boxes")
    await sender.say("blue", 2)
    await sender.publisher.drain()
    assert sorted(await receiver.take()) == [("blue", 2), ("red", 1)]
    await sender.publisher.drain()
    assert (await sender.held(), await sender.waiting()) == (0, 0)


async def test_a_group_that_was_deleted_begins_again_and_has_no_second_effect(
    sender: Sender, receiver: Receiver, raw: Any
) -> None:
    await sender.say("red", 1)
    await sender.publisher.drain()
    await receiver.take()
    raw.xgroup_destroy("boxes", "store")
    await sender.publisher.drain()
    assert await sender.held() == 1, "a group that is not there confirms nothing"
    await sender.say("red", 2)
    await sender.publisher.drain()
    assert await receiver.take() == [("red", 1), ("red", 2)]
    await sender.publisher.drain()
    assert await sender.held() == 0


async def test_what_a_stranger_has_read_in_the_name_of_the_group_is_taken_from_it(
    sender: Sender, receiver: Receiver, raw: Any
) -> None:
    await receiver.intake.drain()
    await sender.say("red", 1)
    await sender.publisher.drain()
    raw.xreadgroup("store", "somebody at a keyboard", {"boxes": ">"})
    await sender.publisher.drain()
    assert await sender.held() == 1
    assert await receiver.reader().drain() == 1
    await receiver.relay.drain()
    await sender.publisher.drain()
    assert (receiver.heard, await sender.held()) == ([("red", 1)], 0)


async def test_a_name_that_is_taken_by_something_else_is_an_outage_until_it_is_free(
    sender: Sender, receiver: Receiver, raw: Any
) -> None:
    raw.set("boxes", "somebody's")
    await sender.say("red", 1)
    with pytest.raises(BrokerAway):
        await sender.publisher.drain()
    with pytest.raises(BrokerAway):
        await receiver.take()
    assert await sender.waiting() == 1
    raw.delete("boxes")
    await sender.publisher.drain()
    assert await receiver.take() == [("red", 1)]


async def test_a_full_redis_is_an_outage_until_there_is_room(sender: Sender, receiver: Receiver, raw: Any) -> None:
    await sender.publisher.drain()
    try:
        raw.config_set("maxmemory", "1mb")
        await sender.say("red", 1)
        with pytest.raises(BrokerAway):
            await sender.publisher.drain()
        assert await sender.waiting() == 1
    finally:
        raw.config_set("maxmemory", "0")
    await sender.publisher.drain()
    assert await receiver.take() == [("red", 1)]


async def test_a_redis_that_keeps_nothing_loses_nothing_of_ours(
    db: Database, far: Database, tmp_path: Path, connect: Connect, clock: StillClock
) -> None:
    with RedisServer(tmp_path / "forgetful", durable=False) as server:
        broker = connect(server.url)
        sender, receiver = Sender(db, broker, clock), Receiver(far, broker, clock)
        await sender.say("red", 1)
        await sender.publisher.drain()
        server.kill()
        server.start()
        with server.client() as client:
            assert client.exists("boxes") == 0

        async def settled() -> bool:
            try:
                await sender.publisher.drain()
                await receiver.take()
            except BrokerAway:  # of the broken connections
                return False
            return await sender.held() == 0

        await until(settled)
    assert receiver.heard == [("red", 1)]


def fill(raw: redis.Redis, *hours: int) -> None:
    """400 entries at each hour: Redis lets go of a handful at a time, and keeps the rest of one."""
    for hour in hours:
        with raw.pipeline() as pipe:
            for number in range(400):
                pipe.xadd("boxes", box(number), id=f"{1_800_000_000_000 + hour * HOUR}-{number + 1}")
            pipe.execute()


async def take_up_to(broker: Broker, limit: int) -> None:
    entries = await broker.read("boxes", "store", limit, 0.0, again=False)
    assert len(entries) == limit
    await broker.acknowledge("boxes", "store", [entry.receipt for entry in entries])


async def test_what_is_confirmed_stays_for_a_while_and_then_goes(broker: Broker, raw: Any) -> None:
    fill(raw, 0, 5, 6)
    await broker.trim("boxes", await broker.standing("boxes", ["store"]))
    assert raw.xlen("boxes") == 1200, "nobody has taken it"
    await take_up_to(broker, 600)
    await broker.trim("boxes", await broker.standing("boxes", ["store"]))
    assert 600 <= raw.xlen("boxes") < 650, "the rest is not taken"
    await take_up_to(broker, 600)
    await broker.trim("boxes", await broker.standing("boxes", ["store"]))
    assert 400 <= raw.xlen("boxes") < 450, "the newest are there for others"


async def test_what_no_group_took_for_a_week_goes(broker: Broker, raw: Any) -> None:
    fill(raw, 0, 6 * 24, 7 * 24 + 1)
    await broker.trim("boxes", await broker.standing("boxes", ["store"]))
    assert 800 <= raw.xlen("boxes") < 850


async def test_a_stream_that_is_too_long_lets_go_of_all_that_is_confirmed(
    broker: Broker, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAXIMUM_LENGTH", 500)
    fill(raw, 0, 1)
    await take_up_to(broker, 400)
    await broker.trim("boxes", await broker.standing("boxes", ["store"]))
    assert raw.xlen("boxes") <= 500


async def test_positions_compare_as_text(broker: Broker, raw: Any) -> None:
    identifiers = ["9-1", "10-1", "10-10", "1800000000000-0", "18446744073709551615-18446744073709551615"]
    positions = []
    for identifier in identifiers:
        raw.xadd("boxes", box(1), id=identifier)
        standing = await broker.standing("boxes", [])
        positions.append(f"{standing.incarnation}:{standing.confirmed}")
    assert positions == sorted(positions)
    assert max(len(position) for position in positions) <= 64, "the column"
