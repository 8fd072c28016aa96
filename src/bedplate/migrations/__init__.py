"""The schema's history: Alembic, one line, applied under a lock so that any number of processes may start at once."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from bedplate.kernel import sqlite
from bedplate.kernel.settings import OperatorError

T = TypeVar("T")

HEAD = "0004"
LOCK = 0x62656470  # any number that is ours: processes that migrate one PostgreSQL database wait for each other


def upgrade(url: str) -> bool:
    """Bring the database at this URL to the schema of this code. Whether there was anything to do.

    Raises:
        OperatorError: the database is ahead of the code, or cannot be used.
    """
    if url.startswith("sqlite"):
        with _sqlite(url) as connection:
            return _upgrade_sqlite(connection)
    return asyncio.run(_on_postgres(url, _upgrade_postgres))


def version(url: str) -> str | None:
    """The version of the database at this URL; None if it has no tables. Raises OperatorError as upgrade() does."""
    if url.startswith("sqlite"):
        with _sqlite(url) as connection:
            return _version(connection)
    return asyncio.run(_on_postgres(url, _version))


def is_new(url: str) -> bool:
    """Whether the URL names a SQLite file that does not exist."""
    # By os.path, which finds nothing where it may not look; pathlib raises.
    return url.startswith("sqlite") and not os.path.exists(sqlite.path_of(url))


@contextmanager
def _sqlite(url: str) -> Iterator[Connection]:
    path = sqlite.path_of(url)
    try:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = sqlite.engine_for(path)
    except OSError as error:
        raise OperatorError(f"cannot use the database {path}: {error.strerror}") from None
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise OperatorError(f"cannot use the database {path}: {error.orig}") from None
    finally:
        engine.dispose()


async def _on_postgres(url: str, work: Callable[[Connection], T]) -> T:
    from bedplate.kernel import postgres  # noqa: PLC0415  # a large driver that SQLite does without

    engine = postgres.engine_for(url)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    except (*postgres.GONE, DBAPIError) as error:
        raise OperatorError(f"cannot use the database of DATABASE_URL: {postgres.cause_of(error)}") from None
    finally:
        await engine.dispose()


def _upgrade_sqlite(connection: Connection) -> bool:
    if _version(connection) == HEAD:
        return False
    # A batch migration rebuilds a table and drops the old one; with foreign keys on, the drop would cascade.
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    # This takes the only writer: a second process waits here and then finds the work done.
    sqlite.begin(connection)
    changed = _run(connection)
    if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise OperatorError("the migration would leave rows without their parents; nothing was changed")
    connection.exec_driver_sql("COMMIT")
    return changed


def _upgrade_postgres(connection: Connection) -> bool:
    if _version(connection) == HEAD:
        return False
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    return _run(connection)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _run(connection: Connection) -> bool:
    # Slow to import and needed only when the schema changes.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    before = _version(connection)
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent))
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise OperatorError(
            f"the database is at version {before}, which this Bedplate does not know (it knows {HEAD}): "
            "the database was used by a newer one; update Bedplate"
        ) from None
    return before != HEAD
