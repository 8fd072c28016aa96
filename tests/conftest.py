"""Fixtures: servers where they can be had, and the worlds that tests run in."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import redis

from bedplate import migrations
from bedplate.kernel.db import Base
from bedplate.kernel.settings import Settings
from bedplate.kernel.telemetry import configure_logging
from tests import world as worlds
from tests.world import World

if TYPE_CHECKING:
    from tests.fakes.model_server import ModelServer
    from tests.fakes.s3_server import S3Server
    from tests.kernel.servers import RedisServer
    from tests.stores import MongoServer

POSTGRES = os.environ.get("BEDPLATE_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("BEDPLATE_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
DEPLOYMENTS = ("sqlite", "postgres+redis", "remote")
# For what is kept by orders and payments: orders in MongoDB, payments in Redis.
WITH_DOCUMENTS = (*DEPLOYMENTS, "documents")
NUMBERS = itertools.count()
# What measures time, keeps all cores busy or needs a documented port runs with nothing else beside it.
ALONE = (
    "faults/commerce/",
    "faults/pynode/",
    "faults/test_durability.py",
    "faults/test_several_processes.py",
    "faults/test_stop.py",
    "examples/",
    "commerce/test_walk.py",
    "security/test_enumeration.py",
    "security/test_limits.py",
    "kernel/test_db.py",
)
# Of two processes that run tests each has a Redis database of its own, 13 and 9, and the ones beside it.
REDIS_DATABASE = 13 - 4 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def pytest_configure(config: pytest.Config) -> None:
    for name in [name for name in os.environ if name.startswith("BEDPLATE_") and "_TEST_" not in name]:
        del os.environ[name]
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell does for what it runs in the background; the processes that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    configure_logging("ERROR")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(ALONE):
            item.add_marker("alone")


def missing(server: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where nothing may be missing."""
    if os.environ.get("BEDPLATE_TEST_REQUIRE_SERVERS") == "1":
        pytest.fail(f"{server} is required here: {reason}")
    pytest.skip(f"needs {server}: {reason}")


def _apart(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end in a loop of its own: fixtures that choose servers by name cannot await."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=3)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A migrated database of this test run's own."""
    name = f"bedplate_test_{os.getpid()}"
    try:
        # Of a run that was killed, and whose number has come up again.
        _apart(_execute(POSTGRES, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
        _apart(_execute(POSTGRES, f'CREATE DATABASE "{name}"'))
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        missing("PostgreSQL", f"it does not answer ({type(error).__name__}: {error})")
    url = urlunsplit(urlsplit(POSTGRES)._replace(path=f"/{name}"))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(migrations.upgrade, url).result()
    yield url
    _apart(_execute(POSTGRES, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def empty_postgres(postgres_url: str) -> str:
    """That database without a row."""
    # Not TRUNCATE, which makes new files: a tenth of a second, where this takes a fifteenth of that.
    children_first = reversed(Base.metadata.sorted_tables)
    _apart(_execute(postgres_url, "; ".join(f"DELETE FROM {table.name}" for table in children_first)))
    return postgres_url


@pytest.fixture
def empty_redis() -> Iterator[str]:
    """A Redis database that nothing else uses, empty."""
    url = urlunsplit(urlsplit(REDIS)._replace(path=f"/{REDIS_DATABASE}"))
    client = redis.Redis.from_url(url, socket_timeout=3)
    try:
        client.flushdb()
    except redis.RedisError as error:
        missing("Redis", f"it does not answer ({type(error).__name__}: {error})")
    yield url
    client.close()


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[MongoServer]":
    from tests.stores import MongoServer  # which imports this file

    with MongoServer(tmp_path_factory.mktemp("mongo")) as server:
        yield server


@pytest.fixture(scope="session")
def shared_s3() -> "Iterator[S3Server]":
    from tests.fakes.s3_server import S3Server  # which imports this file

    with S3Server() as server:
        yield server


@pytest.fixture
def empty_mongo(mongo_server: "MongoServer") -> str:
    """A database that nothing else uses, in a server that speaks MongoDB's protocol."""
    return mongo_server.url(f"test_{next(NUMBERS)}")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RedisServer]":
    from tests.kernel.servers import RedisServer  # which imports this file

    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def empty_store(redis_server: "RedisServer") -> str:
    """A Redis of this test run's own that keeps what it confirms, empty."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def s3(shared_s3: "S3Server") -> "S3Server":
    """A server of the S3 protocol with an empty bucket."""
    shared_s3.empty()
    return shared_s3


@pytest.fixture
async def upstream() -> "AsyncIterator[ModelServer]":
    """A server with a model, which answers as a test has it."""
    from tests.fakes.model_server import ModelServer  # which few tests need

    async with ModelServer() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite database to copy."""
    path = tmp_path_factory.mktemp("template") / "bedplate.db"
    migrations.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=DEPLOYMENTS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    """The product in each deployment. Rate limits are off but for tests marked `limits`, and passwords are hashed
    quickly but for tests marked `hashing`."""
    async with deployed(request, tmp_path, sqlite_template) as opened:
        yield opened


@asynccontextmanager
async def deployed(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    """The deployment that a fixture's parameter names."""
    limited = request.node.get_closest_marker("limits") is not None
    overrides: dict[str, Any] = {"rate_limit_enabled": limited}
    if request.node.get_closest_marker("hashing") is not None:
        overrides |= {name: Settings.model_fields[name].default for name in worlds.QUICK_HASHES}
    opening: AbstractAsyncContextManager[World]
    if request.param == "postgres+redis":
        postgres, redis_url = (request.getfixturevalue(name) for name in ("empty_postgres", "empty_redis"))
        opening = worlds.on_servers(tmp_path, postgres, redis_url, **overrides)
    elif request.param == "remote":
        opening = worlds.remote(tmp_path, sqlite_template, **overrides)
    elif request.param == "documents":
        orders, payments = (request.getfixturevalue(name) for name in ("empty_mongo", "empty_store"))
        own = {"orders_database_url": orders, "payments_database_url": payments}
        opening = worlds.embedded(tmp_path, sqlite_template, **own, **overrides)
    else:
        opening = worlds.embedded(tmp_path, sqlite_template, **overrides)
    async with opening as opened:
        yield opened
