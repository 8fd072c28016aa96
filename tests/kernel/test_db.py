"""The database: one interface, the same behaviour on SQLite and on PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, text, update

from bedplate.kernel.db import Committed, Database, Effects, UniqueViolation
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.health import probe
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import InboxRow, OutboxRow
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.settings import OperatorError
from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.models import ServiceKeyRow, UserRow
from tests.kernel.clocks import NOON
from tests.kernel.conftest import Opener
from tests.kernel.wire import Wire

COUNT = select(func.count()).select_from(InboxRow)


def row(consumer: str = "test", at: datetime = NOON) -> dict[str, object]:
    return {"event_id": new_id(), "consumer": consumer, "at": at}


class Witness(Committed):
    """Notes what it is told of commits, and what the database held at that moment."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.told: list[tuple[set[str], bool, int]] = []

    async def committed(self, effects: Effects) -> None:
        self.told.append((set(effects.stale), bool(effects.emitted), await self._db.scalar(COUNT)))


class Broken(Committed):
    """A listener that fails."""

    async def committed(self, effects: Effects) -> None:
        raise ZeroDivisionError


async def test_what_a_transaction_wrote_is_there_afterwards(db: Database) -> None:
    async with db.transaction() as tx:
        assert await tx.execute(insert(InboxRow), row("first")) == 1
        assert await tx.scalar(COUNT) == 1, "it reads what it wrote"
    assert await db.scalar(select(InboxRow.consumer)) == "first"


async def test_an_exception_rolls_everything_back(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as tx:
            await tx.execute(insert(InboxRow), row())
            raise ZeroDivisionError
    assert await db.scalar(COUNT) == 0


async def test_a_cancelled_transaction_leaves_nothing_and_locks_nobody_out(db: Database) -> None:
    written = asyncio.Event()

    async def write_and_wait() -> None:
        async with db.transaction() as tx:
            await tx.execute(insert(InboxRow), row())
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await asyncio.wait_for(written.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), row())
    assert await db.scalar(COUNT) == 1


async def test_readers_do_not_see_what_is_not_committed(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), row())
        assert await db.scalar(COUNT) == 0


async def test_listeners_are_told_in_order_after_the_commit(db: Database) -> None:
    first, second = Witness(db), Witness(db)
    db.listeners += [first, second]
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), row())
        tx.invalidate("red", "blue")
        tx.invalidate("red")
        assert first.told == []
    assert first.told == second.told == [({"red", "blue"}, False, 1)]


async def test_listeners_hear_nothing_of_a_transaction_that_failed(db: Database) -> None:
    witness = Witness(db)
    db.listeners.append(witness)
    with pytest.raises(ZeroDivisionError):
        async with db.transaction():
            raise ZeroDivisionError
    assert witness.told == []


async def test_a_unique_violation_names_its_column(db: Database) -> None:
    key = {"name": "orders", "key_hash": "0" * 64, "created_at": NOON}
    async with db.transaction() as tx:
        await tx.execute(insert(ServiceKeyRow), {"id": new_id(), **key})
    with pytest.raises(UniqueViolation) as refused:
        async with db.transaction() as tx:
            await tx.execute(insert(ServiceKeyRow), {"id": new_id(), **key})
    assert refused.value.on("key_hash")
    assert not refused.value.on("name")


async def test_a_unique_violation_tells_a_username_from_an_address(db: Database) -> None:
    account = {"email": "a@x", "role": "user", "email_verified": False, "created_at": NOON, "updated_at": NOON}
    taken = {"email_key": "alice@x", "username_key": "alice"}
    async with db.transaction() as tx:
        await tx.execute(insert(UserRow), {"id": new_id(), **account, **taken})
    for column, other in (("email_key", "username_key"), ("username_key", "email_key")):
        with pytest.raises(UniqueViolation) as refused:
            async with db.transaction() as tx:
                await tx.execute(insert(UserRow), {"id": new_id(), **account, **taken, other: "free"})
        assert refused.value.on(column)
        assert not refused.value.on(other)


async def test_an_insert_of_many_is_one_statement_and_all_or_nothing(db: Database) -> None:
    twice = row()
    with pytest.raises(UniqueViolation):
        async with db.transaction() as tx:
            await tx.execute(insert(InboxRow), [row(), twice, twice])
    assert await db.scalar(COUNT) == 0


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
years = (datetime(1800, 1, 1), datetime(9000, 1, 1))  # noqa: DTZ001  # hypothesis adds the zone


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.datetimes(*years, timezones=zones))
async def test_a_time_comes_back_as_it_was_in_utc(db: Database, at: datetime) -> None:
    written = row(at=at)
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), written)
    found = await db.scalar(select(InboxRow.at).where(InboxRow.event_id == written["event_id"]))
    assert (found, found.tzinfo) == (at, UTC)


async def test_times_are_compared_in_the_database(db: Database) -> None:
    moments = [NOON - timedelta(microseconds=1), NOON, NOON + timedelta(microseconds=1)]
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), [row(at=at) for at in moments])
    found = await db.all(select(InboxRow.at).where(InboxRow.at >= NOON).order_by(InboxRow.at))
    assert [each.at for each in found] == moments[1:]


async def test_first_and_scalar_of_nothing_are_none(db: Database) -> None:
    assert await db.first(select(InboxRow.at)) is None
    assert await db.scalar(select(InboxRow.at)) is None
    assert await db.all(select(InboxRow.at)) == []


async def test_simultaneous_writers_of_two_processes_lose_no_update(open_database: Opener) -> None:
    databases = [open_database(), open_database()]
    event = {"id": new_id(), "consumer": "x", "type": "x", "key": "x", "payload": {}, "due_at": NOON, "attempts": 0}
    event["created_at"] = NOON
    async with databases[0].transaction() as tx:
        await tx.execute(insert(OutboxRow), event)

    async def add_one(db: Database) -> None:
        async with db.transaction() as tx:
            attempts = await tx.scalar(select(OutboxRow.attempts).with_for_update())
            await tx.execute(update(OutboxRow).values(attempts=attempts + 1))

    await asyncio.gather(*(add_one(databases[number % 2]) for number in range(40)))
    assert await databases[0].scalar(select(OutboxRow.attempts)) == 40


async def test_a_database_that_stays_locked_is_unavailable_and_the_process_goes_on(open_database: Opener) -> None:
    db, other = open_database(), open_database()
    event = {"id": new_id(), "consumer": "x", "type": "x", "key": "x", "payload": {}, "due_at": NOON, "attempts": 0}
    event["created_at"] = NOON
    async with db.transaction() as tx:
        await tx.execute(insert(OutboxRow), event)
    longest, ticking = 0.0, True

    async def tick() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while ticking:
            began = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - began)

    ticker = asyncio.create_task(tick())
    async with other.transaction() as holding:
        await holding.execute(update(OutboxRow).values(attempts=1))
        with pytest.raises(Unavailable):
            async with asyncio.timeout(20), db.transaction() as tx:
                await tx.execute(update(OutboxRow).values(attempts=2))
        assert await db.scalar(select(OutboxRow.attempts)) == 0, "readers are not kept waiting"
    ticking = False
    await ticker
    assert longest < 2, "the wait must not stop the event loop"
    async with db.transaction() as tx:
        await tx.execute(update(OutboxRow).values(attempts=3))
    assert await db.scalar(select(OutboxRow.attempts)) == 3


async def test_a_change_by_another_process_is_noticed_where_it_can_be(open_database: Opener) -> None:
    db, other = open_database(), open_database()
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), row())
    assert not db.changed_elsewhere(), "that was ourselves"
    async with other.transaction() as tx:
        await tx.execute(insert(InboxRow), row())
    assert db.changed_elsewhere() == (db.dialect.name == "sqlite")
    assert not db.changed_elsewhere(), "it is told once"


async def test_another_process_is_noticed_while_groups_of_writers_follow_each_other(tmp_path: Path) -> None:
    """As under load: whenever somebody asks, the next group is open already."""
    path = str(tmp_path / "groups.db")
    db, other = SqliteDatabase(path), SqliteDatabase(path)
    async with other.transaction() as tx:
        await tx.execute(text("CREATE TABLE words (word TEXT)"))
    for foreign in (True, False, True, True, False):
        if foreign:
            await _say(other)
        async with db.transaction() as tx:
            await tx.execute(text("INSERT INTO words VALUES ('word')"))
            assert db.changed_elsewhere() == foreign
            await asyncio.sleep(0)
            assert not db.changed_elsewhere(), "it is told once"
        assert not db.changed_elsewhere(), "that was ourselves"
    await db.close()
    await other.close()


async def test_a_listener_that_fails_hangs_nobody(db: Database) -> None:
    db.listeners.append(Broken())
    async with asyncio.timeout(10):
        await asyncio.gather(*(_write(db) for _ in range(5)), return_exceptions=True)
        assert await db.scalar(COUNT) == 5, "what is committed is committed"
        db.listeners.clear()
        await _write(db)
    assert await db.scalar(COUNT) == 6


async def test_of_a_cancelled_writer_that_was_committed_all_the_same_is_told(tmp_path: Path) -> None:
    db = SqliteDatabase(str(tmp_path / "cancelled.db"))
    told: list[Effects] = []

    class Ear(Committed):
        async def committed(self, effects: Effects) -> None:
            told.append(effects)

    db.listeners.append(Ear())
    in_group = asyncio.Event()

    async def write() -> None:
        async with db.transaction() as tx:
            await tx.execute(text("CREATE TABLE words (word TEXT)"))
            tx.invalidate("words")
            in_group.set()

    writer = asyncio.create_task(write())
    await in_group.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    await db.close()
    assert told == [Effects(frozenset({"words"}), [])]
    again = SqliteDatabase(str(tmp_path / "cancelled.db"))
    assert await again.all(text("SELECT word FROM words")) == []
    await again.close()


async def test_when_the_commit_fails_every_writer_of_the_group_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = SqliteDatabase(str(tmp_path / "full.db"))
    async with db.transaction() as tx:
        await tx.execute(text("CREATE TABLE words (word TEXT)"))

    async def full() -> Exception:
        db._bare.execute("ROLLBACK")
        return OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(db, "_sync", full)
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*(_say(db) for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in outcomes] == [Unavailable] * 5
    await _say(db)
    assert len(await db.all(text("SELECT word FROM words"))) == 1
    await db.close()


async def test_a_postgresql_that_is_not_there_is_unavailable() -> None:
    db = PostgresDatabase("postgresql://nobody@127.0.0.1:1/nothing")
    for attempt in (db.ping, lambda: db.first(COUNT), lambda: _write(db)):
        with pytest.raises(Unavailable):
            await attempt()
    await db.close()


@asynccontextmanager
async def wired(postgres: str) -> AsyncIterator[tuple[Wire, Database]]:
    async with Wire(postgres, 5432) as wire:
        db = PostgresDatabase(wire.url)
        try:
            yield wire, db
        finally:
            await db.close()


async def test_a_postgresql_that_goes_away_is_unavailable_until_it_is_back(empty_postgres: str) -> None:
    async with wired(empty_postgres) as (wire, db):
        await _write(db)
        await wire.cut()
        for attempt in (db.ping, lambda: db.first(COUNT), lambda: _write(db)):
            with pytest.raises(Unavailable):
                await attempt()
        await wire.mend()
        await _write(db)
        assert await db.scalar(COUNT) == 2


async def test_a_connection_lost_inside_a_transaction_is_unavailable_and_nothing_was_written(
    empty_postgres: str,
) -> None:
    async with wired(empty_postgres) as (wire, db):
        with pytest.raises(Unavailable):
            async with db.transaction() as tx:
                await tx.execute(insert(InboxRow), row())
                await wire.cut()
        await wire.mend()
        assert await db.scalar(COUNT) == 0


async def test_connections_that_the_server_ended_while_nobody_used_them_are_unavailable_or_replaced(
    empty_postgres: str,
) -> None:
    db, owner = PostgresDatabase(empty_postgres), PostgresDatabase(empty_postgres)
    pids = text("SELECT pg_backend_pid()")
    for _ in range(30):
        pid = await db.scalar(pids)
        await owner.first(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        for attempt in (lambda: _write(db), lambda: _write(db)):  # the first may meet the connection before its end
            with contextlib.suppress(Unavailable):
                await attempt()
        assert await db.scalar(pids) != pid
    assert 30 <= await db.scalar(COUNT) <= 60, "of two in a row, one finds a connection"
    await db.close()
    await owner.close()


async def test_a_connection_lost_inside_a_statement_is_unavailable(empty_postgres: str) -> None:
    async with wired(empty_postgres) as (wire, db):
        sleeping = asyncio.create_task(db.first(text("SELECT pg_sleep(4)")))
        async with asyncio.timeout(10):
            while not await _sleeps(empty_postgres):  # noqa: ASYNC110  # nobody would tell
                await asyncio.sleep(0.02)
        await wire.cut()
        with pytest.raises(Unavailable):
            await sleeping


async def test_a_postgresql_without_a_free_connection_is_unavailable_until_there_is_one(empty_postgres: str) -> None:
    role = f"crowded_{new_id().replace('-', '')}"
    parts = urlsplit(empty_postgres)
    name = parts.path.removeprefix("/")
    url = urlunsplit(parts._replace(netloc=f"{role}:{role}@{parts.hostname}:{parts.port or 5432}"))
    db, owner = PostgresDatabase(url), PostgresDatabase(empty_postgres)
    async with owner.transaction() as tx:
        await tx.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{role}' CONNECTION LIMIT 0"))
        await tx.execute(text(f'GRANT CONNECT ON DATABASE "{name}" TO {role}'))
        await tx.execute(text(f"GRANT SELECT, INSERT ON kernel_inbox TO {role}"))
    try:
        for attempt in (db.ping, lambda: db.first(COUNT), lambda: _write(db)):
            with pytest.raises(Unavailable):
                await attempt()
        assert await probe({"database": db.ping}) == {"database": False}
        async with owner.transaction() as tx:
            await tx.execute(text(f"ALTER ROLE {role} CONNECTION LIMIT 2"))
        await _write(db)
        assert await probe({"database": db.ping}) == {"database": True}
    finally:
        await db.close()
        async with owner.transaction() as tx:
            await tx.execute(text(f"DROP OWNED BY {role}"))
            await tx.execute(text(f"DROP ROLE {role}"))
        await owner.close()


@pytest.mark.parametrize(
    "variant",
    [
        ("postgresql:", "postgres:", ""),
        ("postgresql:", "postgresql+asyncpg:", ""),
        ("", "", "?sslmode=disable"),
        ("", "", "?ssl=prefer"),
        ("", "", "?application_name=bedplate"),
    ],
)
async def test_a_postgresql_url_may_be_written_as_other_tools_do(
    postgres_url: str, variant: tuple[str, str, str]
) -> None:
    old, new, query = variant
    db = PostgresDatabase(postgres_url.replace(old, new, 1) + query)
    await db.ping()
    await db.close()


@pytest.mark.parametrize("url", ["", "postgresql", "postgresql://host:port/x", "mysql://user@host/x"])
def test_a_wrong_postgresql_url_is_the_operators_mistake(url: str) -> None:
    with pytest.raises(OperatorError, match="DATABASE_URL"):
        PostgresDatabase(url)


def test_an_sqlite_file_that_cannot_be_opened_is_the_operators_mistake() -> None:
    with pytest.raises(OperatorError, match="cannot open the database /proc/bedplate/x.db"):
        SqliteDatabase("/proc/bedplate/x.db")


async def test_sqlite_survives_a_power_cut_after_each_commit(tmp_path: object) -> None:
    db = SqliteDatabase(f"{tmp_path}/durable.db")
    async with db.transaction() as tx:
        assert await tx.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await tx.scalar(text("PRAGMA synchronous")) == 2, "FULL"
        assert await tx.scalar(text("PRAGMA foreign_keys")) == 1
    await db.close()


async def _write(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), row())


async def _say(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(text("INSERT INTO words VALUES ('word')"))


async def _sleeps(postgres: str) -> bool:
    db = PostgresDatabase(postgres)
    try:
        count = await db.scalar(
            text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'")
        )
        return bool(count)
    finally:
        await db.close()
