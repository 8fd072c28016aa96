"""Tails: following live what is said in a database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import func, insert, select

from bedplate.kernel import tails
from bedplate.kernel.broker import Wire
from bedplate.kernel.db import Database
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import OutboxRow, emit
from bedplate.kernel.tails import FOLLOWED, GRACE, TailRoutes, TailRow, follow
from tests.kernel.clocks import StillClock
from tests.kernel.conftest import Opener
from tests.kernel.lines import BoxMoved, BoxOpened, BoxWeighed, kill, until

ROUTES = {"BoxMoved": ["store"]}


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def routes(db: Database, clock: StillClock) -> TailRoutes:
    """A server's."""
    db.routes = ROUTES
    return TailRoutes(db, clock)


@asynccontextmanager
async def following(*databases: Database, clock: StillClock) -> AsyncIterator[list[Wire]]:
    """The command: another process on the same databases, that has said that it follows."""
    shown: list[Wire] = []

    async def show() -> None:
        async for wire in follow(databases, clock):
            shown.append(wire)

    task = asyncio.create_task(show())
    try:
        for database in databases:
            await until(lambda database=database: registered(database))
        yield shown
    finally:
        await kill([task])


async def registered(database: Database) -> bool:
    return await database.scalar(select(func.count()).select_from(TailRow)) > 0


async def consumers(database: Database) -> Sequence[str]:
    return [row.consumer for row in await database.all(select(OutboxRow.consumer).order_by(OutboxRow.id))]


async def say(database: Database, clock: StillClock, *numbers: int) -> None:
    async with database.transaction() as tx:
        for number in numbers:
            await emit(tx, BoxMoved("red", number), clock.now())


async def test_everything_that_is_published_is_shown_to_whoever_follows(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock
) -> None:
    await say(db, clock, 1)
    async with following(open_database(), clock=clock) as shown:
        await routes.look()
        async with db.transaction() as tx:
            for event in (BoxMoved("red", 2), BoxOpened("red"), BoxWeighed("red")):
                await emit(tx, event, clock.now())
        await say(db, clock, 3)
        await until(lambda: len(shown) == 3)
    assert [wire["event_type"] for wire in shown] == ["box_moved", "box_opened", "box_moved"], "no box_weighed"
    assert shown[0] | {"event_id": ""} == {
        "event_id": "",
        "event_type": "box_moved",
        "occurred_at": "2026-11-22T12:00:00Z",
        "box": "red",
        "data": {"number": 2},
    }
    assert await consumers(db) == ["store"] * 3, "the others get theirs"


async def test_it_is_told_once_when_every_server_has_had_time_to_notice(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock
) -> None:
    await routes.start()
    told, shown = list[bool](), list[Wire]()

    async def show() -> None:
        async for wire in follow([other], clock, lambda: told.append(db.routes is not ROUTES)):
            shown.append(wire)

    other = open_database()
    task = asyncio.create_task(show())
    try:
        await until(lambda: bool(told), 10)
        await say(db, clock, 1)
        await until(lambda: len(shown) == 1, 10)
    finally:
        await kill([task])
        await routes.stop()
    assert told == [True]


async def test_a_running_server_notices_within_a_second_who_follows_and_who_has_ended(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock
) -> None:
    await routes.start()
    try:
        async with following(open_database(), clock=clock) as shown:
            await until(lambda: db.routes is not ROUTES, 5)
            await say(db, clock, 1)
            await until(lambda: len(shown) == 1)
        await until(lambda: db.routes is ROUTES, 5)
    finally:
        await routes.stop()


async def test_of_several_databases_everything_is_shown(
    db: Database, far: Database, routes: TailRoutes, clock: StillClock
) -> None:
    others = TailRoutes(far, clock)
    async with following(db, far, clock=clock) as shown:
        await routes.look()
        await others.look()
        await say(db, clock, 1, 2)
        await say(far, clock, 3, 4)
        await until(lambda: len(shown) == 4)
    found = [wire["data"]["number"] for wire in shown]
    assert sorted(found) == [1, 2, 3, 4]
    assert (found.index(1) < found.index(2), found.index(3) < found.index(4)) == (True, True)


async def test_two_may_follow_at_once(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock
) -> None:
    async with following(open_database(), clock=clock) as one, following(open_database(), clock=clock) as other:

        async def both() -> bool:
            await routes.look()
            return len(db.routes["BoxMoved"]) == 3

        await until(both)
        await say(db, clock, 1)
        await until(lambda: len(one) == len(other) == 1)


async def test_nothing_is_left_of_one_that_ended(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock
) -> None:
    async with following(open_database(), clock=clock):
        await routes.look()
    await say(db, clock, 1)  # by a server that has yet to notice
    await routes.look()
    assert db.routes is ROUTES
    clock.advance(GRACE.total_seconds() + 1)
    await routes.look()
    assert (await consumers(db), await registered(db)) == (["store"], False)


async def test_of_one_that_was_killed_the_servers_delete_what_is_left(
    db: Database, routes: TailRoutes, clock: StillClock
) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(TailRow), {"name": "tail-dead", "until": clock.now() + FOLLOWED})
    await routes.look()
    await say(db, clock, *range(1200))
    clock.advance(FOLLOWED.total_seconds() + 1)
    await routes.look()
    assert (db.routes is ROUTES, len(await consumers(db))) == (True, 2400)
    clock.advance(GRACE.total_seconds())
    await routes.look()
    assert (set(await consumers(db)), await registered(db)) == ({"store"}, False)


async def test_a_starting_server_deletes_what_servers_before_it_have_left(
    db: Database, routes: TailRoutes, clock: StillClock
) -> None:
    row = {"type": "BoxMoved", "key": "red", "payload": {}, "created_at": clock.now(), "due_at": clock.now()}
    names = ("attic", "tail-forgotten", "tail-live", "taverne", "zoo")
    async with db.transaction() as tx:
        await tx.execute(insert(TailRow), {"name": "tail-live", "until": clock.now() + FOLLOWED})
        await tx.execute(
            insert(OutboxRow), [{**row, "id": new_id(), "consumer": name, "attempts": 0} for name in names]
        )
    await routes.look()
    assert await consumers(db) == ["attic", "tail-live", "taverne", "zoo"]


async def test_one_that_was_held_up_for_long_follows_again(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "RENEW_SECONDS", 0.05)
    async with following(open_database(), clock=clock) as shown:
        clock.advance(FOLLOWED.total_seconds() + GRACE.total_seconds() + 1)
        await routes.look()  # may find it over, and delete its row

        async def heard_again() -> bool:
            await routes.look()
            await say(db, clock, 1)
            return bool(shown)

        await until(heard_again)


async def test_more_than_twenty_are_too_many(db: Database, routes: TailRoutes, clock: StillClock) -> None:
    end = clock.now() + FOLLOWED
    async with db.transaction() as tx:
        await tx.execute(insert(TailRow), [{"name": f"tail-{number}", "until": end} for number in range(30)])
    await routes.look()
    assert len(db.routes["BoxMoved"]) == 21


async def test_what_a_newer_version_says_is_shown_as_it_is(
    db: Database, open_database: Opener, clock: StillClock
) -> None:
    async with following(open_database(), clock=clock) as shown:
        name = await db.scalar(select(TailRow.name))
        row = {"type": "BoxSold", "key": "red", "payload": {"price": 1}, "created_at": clock.now()}
        async with db.transaction() as tx:
            whole = {**row, "id": new_id(), "consumer": name, "due_at": clock.now(), "attempts": 0}
            await tx.execute(insert(OutboxRow), whole)
        await until(lambda: len(shown) == 1)
    assert (shown[0]["event_type"], shown[0]["data"]) == ("BoxSold", {"price": 1})


async def test_many_are_shown_in_the_order_they_were_said(
    db: Database, routes: TailRoutes, open_database: Opener, clock: StillClock
) -> None:
    async with following(open_database(), clock=clock) as shown:
        await routes.look()
        for numbers in (range(500), range(500, 1000), range(1000, 1500)):
            await say(db, clock, *numbers)
        await until(lambda: len(shown) == 1500)
    assert [wire["data"]["number"] for wire in shown] == [*range(1500)]
