"""Databases and brokers without the product around them."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from bedplate.compose.chosen import broker_at
from bedplate.kernel.broker import Broker
from bedplate.kernel.db import Database
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.sqlite import SqliteDatabase
from tests.kernel.servers import RedisServer

Opener = Callable[[], Database]
Connect = Callable[[str], Broker]


@pytest.fixture(params=["sqlite", "postgresql"])
async def open_database(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Opener]:
    """Opens one migrated, empty database, as often as it is called: each time as another process would."""
    async with opening(request.param, request, tmp_path, sqlite_template) as opener:
        yield opener


@asynccontextmanager
async def opening(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path
) -> AsyncIterator[Opener]:
    """The same, of an engine that is not a fixture's parameter."""
    opened: list[Database] = []
    if engine == "sqlite":
        path = tmp_path / "kernel.db"
        shutil.copy(sqlite_template, path)
        make: Opener = lambda: SqliteDatabase(str(path))  # noqa: E731
    else:
        url = request.getfixturevalue("empty_postgres")
        make = lambda: PostgresDatabase(url)  # noqa: E731

    def opener() -> Database:
        opened.append(make())
        return opened[-1]

    yield opener
    for database in opened:
        await database.close()


@pytest.fixture
def db(open_database: Opener) -> Database:
    """One migrated, empty database, on each engine."""
    return open_database()


@pytest.fixture
async def far(open_database: Opener, db: Database, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """Where a receiver is: a file of its own; on PostgreSQL the same database as another process would see it."""
    if db.dialect.name != "sqlite":
        yield open_database()
        return
    shutil.copy(sqlite_template, tmp_path / "far.db")
    database = SqliteDatabase(str(tmp_path / "far.db"))
    yield database
    await database.close()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_redis: RedisServer) -> RedisServer:
    """A broker's server, empty, to be left running."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A broker's server to be killed, wiped and frozen."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens a broker as often as it is called, each time as another process would."""
    async with AsyncExitStack() as stack:

        def opener(url: str) -> Broker:
            broker = broker_at(url)
            stack.push_async_callback(broker.close)
            return broker

        yield opener
