"""A shop on each engine."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bedplate.kernel import failpoints
from bedplate.kernel.db import Database
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.sqlite import SqliteDatabase
from tests.conftest import WITH_DOCUMENTS, deployed
from tests.factories import TurnableClock
from tests.modules.payments.shop import Shop, open_shop, payments_at
from tests.world import World


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
async def db(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """One migrated, empty database, on each engine; and with payments in Redis, from where it takes what they say."""
    opened: Database
    if request.param != "postgresql":
        shutil.copy(sqlite_template, tmp_path / "shop.db")
        opened = SqliteDatabase(str(tmp_path / "shop.db"))
    else:
        opened = PostgresDatabase(request.getfixturevalue("empty_postgres"))
    payments = request.getfixturevalue("empty_store") if request.param == "redis" else None
    async with payments_at(opened, payments):
        yield opened
    await opened.close()


@pytest.fixture(params=WITH_DOCUMENTS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    async with deployed(request, tmp_path, sqlite_template) as opened:
        yield opened


@pytest.fixture
def clock() -> TurnableClock:
    return TurnableClock()


@pytest.fixture
async def shop(db: Database, clock: TurnableClock) -> Shop:
    return await open_shop(db, clock)


@pytest.fixture
async def sqlite_shop(tmp_path: Path, sqlite_template: Path, clock: TurnableClock) -> AsyncIterator[Shop]:
    """For what has nothing to do with the engine, or too many cases."""
    shutil.copy(sqlite_template, tmp_path / "shop.db")
    opened = SqliteDatabase(str(tmp_path / "shop.db"))
    opened._bare.execute("PRAGMA synchronous=OFF")  # nothing here is about the disk, which is most of the time
    yield await open_shop(opened, clock)
    await opened.close()


@pytest.fixture(autouse=True)
def nothing_is_armed() -> Iterator[None]:
    """A failpoint that a test has armed does not outlive it."""
    yield
    failpoints.arm("")
