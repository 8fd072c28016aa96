"""Stores of documents: what is written together stays together, whoever dies or comes late, and what was said with it
arrives once."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import select

from bedplate.kernel.db import Committed, Database, Effects, UniqueViolation
from bedplate.kernel.documents import LEASE_SECONDS, Answer, Body, Documents, DocumentTransaction
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.events import Event
from bedplate.kernel.failpoints import FailpointReached, arm
from bedplate.kernel.idempotency import IN_WORK, Idempotency, IdempotencyKeyInWork, Keep, Once
from bedplate.kernel.ids import new_id
from bedplate.kernel.mongo import MongoDocuments
from bedplate.kernel.outbox import Delivery, Listener, OutboxRow, emit, routes_of
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.redis_documents import RedisDocuments, Shelf
from tests.failpoints import of_module
from tests.kernel.clocks import StillClock
from tests.kernel.conftest import opening
from tests.kernel.servers import RedisServer

MOVES = [point for point in of_module("documents") if ".move." in point]
WRITES = [point for point in of_module("documents") if ".write." in point]
NOBODY = "postgresql://nobody@127.0.0.1:9/nothing"
ASKED = Once.of("a-secret-of-this-test", "alice", "key", None)
Open = Callable[..., Documents]


@dataclass(frozen=True, slots=True)
class Weighed(Event):
    topic = "weights"
    key_field = "thing"

    thing: str
    grams: int


async def heard(_: Delivery) -> None:
    """Whoever listens to what is weighed."""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
async def queues(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path
) -> AsyncIterator[Callable[[], Database]]:
    """Opens the database of events, each time as another process would."""
    async with opening("sqlite", request, tmp_path, sqlite_template) as open_database:
        yield open_database


@pytest.fixture
async def queue(queues: Callable[[], Database]) -> Database:
    return queues()


@pytest.fixture(params=["mongodb", "redis"])
async def open_documents(
    request: pytest.FixtureRequest, clock: StillClock, queues: Callable[[], Database]
) -> AsyncIterator[Open]:
    """Opens one store, of each kind, each time as another process would."""
    url = request.getfixturevalue("empty_mongo" if request.param == "mongodb" else "empty_store")
    async with AsyncExitStack() as stack:

        def opener(database: Database | None = None) -> Documents:
            events = database or queues()
            events.routes = routes_of([Listener("scales.note", Weighed, heard), Listener("shelf.note", Weighed, heard)])
            made: Documents
            if request.param == "mongodb":
                made = MongoDocuments(url, "things", [], events, clock)
            else:
                made = RedisDocuments(url, "things", lambda body: Shelf((), {"all": 1}), events, clock)
            stack.push_async_callback(made.close)
            return made

        yield opener


@pytest.fixture
def documents(open_documents: Open) -> Documents:
    return open_documents()


async def weigh(documents: Documents, clock: StillClock, thing: str, grams: int) -> None:
    async with documents.transaction() as tx:
        await put(tx, thing, grams)
        await emit(tx, Weighed(thing, grams), clock.now())


async def put(tx: DocumentTransaction, thing: str, grams: int) -> None:
    body = await tx.take(thing)
    tx.put(thing, {"thing": thing, "grams": grams, "times": 1 if body is None else body["times"] + 1})


async def read(documents: Documents, thing: str) -> Body | None:
    assert isinstance(documents, MongoDocuments | RedisDocuments)
    return await documents.find(thing)


async def said(queue: Database) -> list[tuple[str, int]]:
    """What each of the two consumers is to hear, in that order."""
    ways = [
        [(row.key, row.payload["grams"]) for row in await queue.all(_TO.where(OutboxRow.consumer == consumer))]
        for consumer in ("scales", "shelf")
    ]
    assert ways[0] == ways[1]
    return ways[0]


_TO = select(OutboxRow.__table__).order_by(OutboxRow.id)


def test_every_failpoint_is_tried_here() -> None:
    assert sorted([*MOVES, *WRITES]) == sorted(of_module("documents"))
    assert MOVES
    assert WRITES


async def test_what_is_said_arrives_with_the_change_and_in_its_order(
    documents: Documents, queue: Database, clock: StillClock
) -> None:
    for grams in range(5):
        await weigh(documents, clock, "thing", grams)
    assert await read(documents, "thing") == {"thing": "thing", "grams": 4, "times": 5}
    assert await said(queue) == [("thing", grams) for grams in range(5)]
    assert await documents.waiting(10) == []


class Ear(Committed):
    """Notes what it is told of."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    async def committed(self, effects: Effects) -> None:
        self.heard += effects.emitted


async def test_whoever_wants_to_know_of_commits_is_told_also_of_what_nobody_listens_to(
    documents: Documents, clock: StillClock
) -> None:
    ear = Ear()
    documents.queue.listeners.append(ear)
    await weigh(documents, clock, "thing", 1)
    documents.queue.routes = {}
    await weigh(documents, clock, "thing", 2)
    with pytest.raises(ZeroDivisionError):
        async with documents.transaction() as tx:
            await put(tx, "thing", 3)
            await emit(tx, Weighed("thing", 3), clock.now())
            raise ZeroDivisionError
    assert ear.heard == [Weighed("thing", 1), Weighed("thing", 2)]


async def test_a_transaction_that_fails_leaves_nothing_and_holds_nothing(
    documents: Documents, queue: Database, clock: StillClock
) -> None:
    await weigh(documents, clock, "thing", 1)
    for thing in ("thing", "another"):
        with pytest.raises(ZeroDivisionError):
            async with documents.transaction() as tx:
                await put(tx, thing, 2)
                await emit(tx, Weighed(thing, 2), clock.now())
                raise ZeroDivisionError
    assert await read(documents, "another") is None
    async with asyncio.timeout(LEASE_SECONDS / 2):
        await weigh(documents, clock, "thing", 3)
        await weigh(documents, clock, "another", 4)
    assert await said(queue) == [("thing", 1), ("thing", 3), ("another", 4)]


async def test_changes_at_once_come_one_after_the_other(open_documents: Open, clock: StillClock) -> None:
    both = [open_documents() for _ in range(2)]
    await weigh(both[0], clock, "thing", 0)
    await asyncio.gather(*(weigh(both[number % 2], clock, "thing", number) for number in range(1, 20)))
    body = await read(both[0], "thing")
    assert body is not None
    assert body["times"] == 20
    told = await said(both[0].queue)
    assert sorted(told) == [("thing", number) for number in range(20)]
    assert told[-1] == ("thing", body["grams"])


@pytest.mark.parametrize("point", MOVES)
async def test_whoever_dies_before_an_event_is_moved_does_not_take_it_along(
    open_documents: Open, queue: Database, clock: StillClock, point: str
) -> None:
    here, elsewhere = open_documents(), open_documents()
    arm(f"{point}:raise")
    with pytest.raises(FailpointReached):
        await weigh(here, clock, "thing", 1)
    assert await read(here, "thing") == {"thing": "thing", "grams": 1, "times": 1}
    assert await elsewhere.waiting(10) == ["thing"]
    assert await elsewhere.drain() is False
    assert await said(queue) == [("thing", 1)]
    assert await here.waiting(10) == []


async def test_what_is_left_is_moved_by_whoever_runs(open_documents: Open, queue: Database, clock: StillClock) -> None:
    arm("documents.move.before_queue:raise")
    with pytest.raises(FailpointReached):
        await weigh(open_documents(), clock, "thing", 1)
    other = open_documents()
    await other.start()
    try:
        async with asyncio.timeout(10):
            while await other.waiting(1):  # noqa: ASYNC110  # as another process, which is told nothing
                await asyncio.sleep(0.01)
    finally:
        await other.stop()
    assert await said(queue) == [("thing", 1)]


async def test_an_outbox_that_is_away_holds_up_no_change_and_gets_everything_later(
    open_documents: Open, queue: Database, clock: StillClock
) -> None:
    away = PostgresDatabase(NOBODY)
    cut_off = open_documents(away)
    for grams in range(3):
        await weigh(cut_off, clock, "thing", grams)
    with pytest.raises(Unavailable):
        await cut_off.drain()
    await away.close()
    await open_documents().drain()
    assert await said(queue) == [("thing", grams) for grams in range(3)]


async def test_many_that_move_the_same_at_once_move_it_once(
    open_documents: Open, queue: Database, clock: StillClock
) -> None:
    away = PostgresDatabase(NOBODY)
    cut_off = open_documents(away)
    expected = [(f"thing-{number}", grams) for number in range(5) for grams in range(3)]
    for thing, grams in expected:
        await weigh(cut_off, clock, thing, grams)
    await away.close()
    others = [open_documents() for _ in range(2)]
    await asyncio.gather(*(others[number % 2].drain() for number in range(8)))
    assert sorted(await said(queue)) == sorted(expected)
    for thing in {thing for thing, _ in expected}:
        assert [grams for name, grams in await said(queue) if name == thing] == [0, 1, 2]
    assert await others[0].waiting(10) == []


async def lose_lease(documents: Documents, clock: StillClock, thing: str) -> None:
    """Its time is over."""
    clock.advance(LEASE_SECONDS + 1)
    if isinstance(documents, RedisDocuments):
        await documents._redis.delete(documents._key("lease", thing))


async def test_whoever_is_too_slow_changes_nothing_any_more(
    open_documents: Open, queue: Database, clock: StillClock
) -> None:
    slow, quick = open_documents(), open_documents()
    await weigh(slow, clock, "thing", 1)
    with pytest.raises(Unavailable):
        async with slow.transaction() as tx:
            await put(tx, "thing", 2)
            await emit(tx, Weighed("thing", 2), clock.now())
            await lose_lease(slow, clock, "thing")
            await weigh(quick, clock, "thing", 3)
    assert await read(slow, "thing") == {"thing": "thing", "grams": 3, "times": 2}
    assert await said(queue) == [("thing", 1), ("thing", 3)]


async def test_who_waits_for_a_document_gets_it_or_is_told(documents: Documents, clock: StillClock) -> None:
    await weigh(documents, clock, "thing", 1)
    await documents.hold("thing", "somebody")
    waiting = asyncio.create_task(weigh(documents, clock, "thing", 2))
    await asyncio.wait([waiting], timeout=0.2)
    assert not waiting.done()
    await documents.let_go("thing", "nobody")
    await documents.let_go("thing", "somebody")
    async with asyncio.timeout(2):
        await waiting


@pytest.fixture
async def mongo(empty_mongo: str, queue: Database, clock: StillClock) -> AsyncIterator[MongoDocuments]:
    documents = MongoDocuments(empty_mongo, "things", [], queue, clock)
    yield documents
    await documents.close()


async def test_a_new_document_does_not_replace_one(mongo: MongoDocuments, clock: StillClock) -> None:
    await weigh(mongo, clock, "thing", 1)
    with pytest.raises(UniqueViolation):
        async with mongo.transaction() as tx:
            tx.put("thing", {"thing": "thing", "grams": 2, "times": 1})
    assert await mongo.find("thing") == {"thing": "thing", "grams": 1, "times": 1}


@pytest.mark.parametrize("point", WRITES)
async def test_whoever_dies_before_he_writes_what_he_meant_to_frees_the_key_in_time(
    mongo: MongoDocuments, clock: StillClock, point: str
) -> None:
    keys = Idempotency(mongo, clock)

    async def work(keep: Keep[str]) -> str:
        async with mongo.transaction() as tx:
            thing = new_id()
            await put(tx, thing, 1)
            await keep(tx, thing)
        return thing

    arm(f"{point}:raise")
    with pytest.raises(FailpointReached):
        await keys.run(ASKED, TypeAdapter(str), work)
    with pytest.raises(IdempotencyKeyInWork):
        await keys.run(ASKED, TypeAdapter(str), work)
    clock.advance(IN_WORK.total_seconds() + 1)
    thing = await keys.run(ASKED, TypeAdapter(str), work)
    assert await keys.run(ASKED, TypeAdapter(str), work) == thing
    assert await mongo.count({"thing": {"$exists": True}}) == 1


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_late_write_of_whoever_was_overtaken_fails(
    mongo: MongoDocuments, clock: StillClock, is_new: bool
) -> None:
    """He stood still between his intent and his write, for longer than a claim lasts."""
    if not is_new:
        await weigh(mongo, clock, "thing", 1)
    until = clock.now() + IN_WORK
    assert await mongo.claim(ASKED, clock.now(), until) is None
    slow = DocumentTransaction(mongo)
    await put(slow, "thing", 2)
    await mongo.finish(slow, ASKED, until, {"value": "slow"})
    assert isinstance(slow.answer, Answer)
    await mongo._intend(slow)
    clock.advance(IN_WORK.total_seconds() + 1)
    later = clock.now() + IN_WORK
    assert await mongo.claim(ASKED, clock.now(), later) is None
    with pytest.raises(IdempotencyKeyInWork if is_new else Unavailable):
        await mongo._put(slow)
    await mongo.release(ASKED, later, {"problem": "NotAllowed", "details": {}})
    again = await mongo.claim(ASKED, clock.now(), later + timedelta(seconds=1))
    assert again == {"problem": "NotAllowed", "details": {}}
    assert (await mongo.find("thing") or {}).get("grams") == (None if is_new else 1)


async def test_a_write_that_came_before_the_claim_ran_out_is_the_answer(
    mongo: MongoDocuments, clock: StillClock
) -> None:
    until = clock.now() + IN_WORK
    assert await mongo.claim(ASKED, clock.now(), until) is None
    async with mongo.transaction() as tx:
        await put(tx, "thing", 1)
        await mongo.finish(tx, ASKED, until, {"value": "thing"})
    await mongo.release(ASKED, until, None)  # as whoever got no answer does
    clock.advance(IN_WORK.total_seconds() + 1)
    assert await mongo.claim(ASKED, clock.now(), clock.now() + IN_WORK) == {"value": "thing"}


async def test_a_redis_that_forgets_is_noticed(tmp_path: Path, queue: Database, clock: StillClock) -> None:
    with RedisServer(tmp_path / "redis", durable=False) as server:
        documents = RedisDocuments(server.url, "things", lambda _: Shelf((), {}), queue, clock)
        assert "append-only file" in await documents.weakness()
        with server.client() as client:
            client.config_set("appendonly", "yes")
            assert await documents.weakness() == ""
            client.config_set("maxmemory-policy", "allkeys-lru")
            assert await documents.weakness() == "", "as long as its memory has no limit"
            client.config_set("maxmemory", "100mb")
        assert "evicts" in await documents.weakness()
        await documents.close()


async def test_a_store_that_does_not_answer_is_unavailable(queue: Database, clock: StillClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        stores: list[Any] = [
            MongoDocuments(f"mongodb://127.0.0.1:{port}/things", "things", [], queue, clock),
            RedisDocuments(f"redis://127.0.0.1:{port}/0", "things", lambda _: Shelf((), {}), queue, clock),
        ]
        asked = [ask for each in stores for ask in (each.ping(), each.find("thing"), weigh(each, clock, "thing", 1))]
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unavailable}
        for each in stores:
            await each.close()
