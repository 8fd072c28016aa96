"""A chat on each engine, in front of a model server that does what a test wants."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bedplate.kernel import failpoints
from bedplate.kernel.db import Database
from bedplate.kernel.postgres import PostgresDatabase
from bedplate.kernel.sqlite import SqliteDatabase
from tests.factories import TurnableClock
from tests.fakes.model_server import ModelServer
from tests.modules.chat.room import Room, open_room


@pytest.fixture(params=["sqlite", "postgresql"])
async def db(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """One migrated, empty database, on each engine."""
    opened: Database
    if request.param == "sqlite":
        shutil.copy(sqlite_template, tmp_path / "chat.db")
        opened = SqliteDatabase(str(tmp_path / "chat.db"))
    else:
        opened = PostgresDatabase(request.getfixturevalue("empty_postgres"))
    yield opened
    await opened.close()


@pytest.fixture
async def room(db: Database, upstream: ModelServer) -> AsyncIterator[Room]:
    async with open_room(db, upstream, TurnableClock()) as opened:
        yield opened


@pytest.fixture
async def sqlite_db(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """For what has nothing to do with the engine."""
    shutil.copy(sqlite_template, tmp_path / "chat.db")
    opened = SqliteDatabase(str(tmp_path / "chat.db"))
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite_room(sqlite_db: Database, upstream: ModelServer) -> AsyncIterator[Room]:
    async with open_room(sqlite_db, upstream, TurnableClock()) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_is_armed() -> Iterator[None]:
    """A failpoint that a test has armed does not outlive it."""
    yield
    failpoints.arm("")
