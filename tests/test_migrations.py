"""The schema's history ends where the table classes are, on both engines, however many processes apply it."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, insert, inspect, text

from bedplate import migrations
from bedplate.kernel import postgres, sqlite
from bedplate.kernel.ids import new_id
from bedplate.kernel.settings import OperatorError
from bedplate.models import Base, RefreshTokenRow, SessionRow, UserRow
from tests.kernel.clocks import NOON
from tests.processes import COMMAND, environment


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=5)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def blank_postgres(postgres_url: str) -> Iterator[str]:
    """A database without a table."""
    name = f"bedplate_blank_{new_id().replace('-', '')}"
    with ThreadPoolExecutor(1) as apart:
        apart.submit(asyncio.run, execute(postgres_url, f"CREATE DATABASE {name}")).result()
        yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
        apart.submit(asyncio.run, execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")).result()


@pytest.fixture(params=["sqlite", "postgresql"])
def blank(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without a table, on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'blank.db'}"
    return str(request.getfixturevalue("blank_postgres"))


def upgrade(url: str) -> bool:
    with ThreadPoolExecutor(1) as apart:  # it has a loop of its own
        return apart.submit(migrations.upgrade, url).result()


def is_ours(name: str | None, kind: str, parents: Any) -> bool:
    """The full-text index is a table of each engine's own, with others behind it, and no class."""
    return kind != "table" or not (name or "").startswith("files_words")


def differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True, "include_name": is_ours}
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, Base.metadata))


async def looked_at(url: str) -> list[object]:
    if url.startswith("sqlite"):
        engine = sqlite.engine_for(sqlite.path_of(url))
        with engine.connect() as connection:
            found = differences(connection)
        engine.dispose()
        return found
    remote = postgres.engine_for(url)
    try:
        async with remote.connect() as connection_:
            return await connection_.run_sync(differences)
    finally:
        await remote.dispose()


async def test_the_migrated_schema_is_that_of_the_table_classes(blank: str) -> None:
    upgrade(blank)
    assert await looked_at(blank) == []


def test_migrating_again_changes_nothing(blank: str) -> None:
    assert upgrade(blank)
    assert not upgrade(blank)


def test_the_history_is_one_line_that_ends_at_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrations.HEAD]
    assert len(script.get_bases()) == 1


def test_no_foreign_key_crosses_modules() -> None:
    for table in Base.metadata.sorted_tables:
        for key in table.foreign_keys:
            assert key.column.table.name.split("_")[0] == table.name.split("_")[0]


def test_every_constraint_and_index_has_a_name_that_both_engines_keep(tmp_path: Path) -> None:
    path = tmp_path / "names.db"
    migrations.upgrade(f"sqlite:///{path}")
    engine = sqlite.engine_for(str(path))
    with engine.connect() as connection:
        found = inspect(connection)
        for table in Base.metadata.sorted_tables:
            names = {each["name"] for each in found.get_unique_constraints(table.name)}
            assert all(name and name.startswith(f"uq_{table.name}_") for name in names)
            assert all(len(str(index.name)) <= 63 for index in table.indexes), "PostgreSQL cuts longer names"
    engine.dispose()


def test_processes_that_start_together_all_find_the_schema(blank: str, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [COMMAND, "migrate", "--data", str(tmp_path / "data")],
            cwd=tmp_path,
            env=environment(DATABASE_URL=blank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes
    said = sorted(words.strip() for words, _ in outcomes)
    assert said == [f"database is at {migrations.HEAD}"] * 2 + [f"database migrated to {migrations.HEAD}"]


BATCH = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "next", "{HEAD}"


def upgrade() -> None:
    with op.batch_alter_table("identity_users") as users:
        users.alter_column("name", type_=sa.String(length=300))
        users.add_column(sa.Column("nickname", sa.String(length=50)))
"""
ORPHANS = """
from alembic import op

revision, down_revision = "next", "{HEAD}"


def upgrade() -> None:
    op.execute("DELETE FROM identity_users")
"""


def with_next_version(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """As if this code had one more migration."""
    there = folder / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, there)
    (there / "versions" / "next.py").write_text(source.replace("{HEAD}", migrations.HEAD))
    monkeypatch.setattr(migrations, "__file__", str(there / "__init__.py"))
    monkeypatch.setattr(migrations, "HEAD", "next")


def filled(folder: Path) -> Engine:
    """A database of the present version in which a user has a session with a token."""
    path = folder / "filled.db"
    migrations.upgrade(f"sqlite:///{path}")
    engine = sqlite.engine_for(str(path))
    user, session = new_id(), new_id()
    account = {"email": "a@example.com", "email_key": "a@example.com", "role": "user", "email_verified": False}
    times = {"created_at": NOON, "updated_at": NOON}
    token = {"token_hash": "0" * 64, "issued_at": NOON, "expires_at": NOON}
    with engine.connect() as connection:
        connection.execute(insert(UserRow), {"id": user, **account, **times})
        connection.execute(
            insert(SessionRow),
            {"id": session, "user_id": user, "audience": "cobalt", "created_at": NOON, "expires_at": NOON},
        )
        connection.execute(insert(RefreshTokenRow), {"id": new_id(), "session_id": session, **token})
    return engine


def counts(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        tables = ("identity_users", "identity_sessions", "identity_refresh_tokens")
        return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables]


def test_a_table_that_is_rebuilt_keeps_the_rows_that_belong_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = filled(tmp_path)
    with_next_version(tmp_path, monkeypatch, BATCH)
    assert migrations.upgrade(str(engine.url))
    assert counts(engine) == [1, 1, 1]
    with engine.connect() as connection:
        columns = {each["name"] for each in inspect(connection).get_columns("identity_users")}
        assert "nickname" in columns
        connection.execute(text("DELETE FROM identity_users"))
    assert counts(engine) == [0, 0, 0], "what belongs to a row still goes with it"
    engine.dispose()


def test_a_migration_that_leaves_rows_without_their_parents_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, present = filled(tmp_path), migrations.HEAD
    with_next_version(tmp_path, monkeypatch, ORPHANS)
    with pytest.raises(OperatorError, match="nothing was changed"):
        migrations.upgrade(str(engine.url))
    assert counts(engine) == [1, 1, 1]
    assert migrations.version(str(engine.url)) == present
    engine.dispose()


def test_what_waited_before_there_were_consumers_waits_for_the_right_one_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, there)
    for version in (there / "versions").glob("000[2-9]*.py"):
        version.unlink()
    url = f"sqlite:///{tmp_path / 'old.db'}"
    with monkeypatch.context() as before:
        before.setattr(migrations, "__file__", str(there / "__init__.py"))
        before.setattr(migrations, "HEAD", "0001")
        migrations.upgrade(url)
    engine = sqlite.engine_for(sqlite.path_of(url))
    values = "(id, type, key, payload, created_at, due_at, attempts) VALUES (?, ?, 'key', '{}', 1, 1, 0)"
    with engine.connect() as connection:
        for event_id, kind in (("a", "UserRegistered"), ("b", "UserDisabled")):
            connection.exec_driver_sql(f"INSERT INTO kernel_outbox {values}", (event_id, kind))
    assert migrations.upgrade(url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT id, consumer, type FROM kernel_outbox ORDER BY id").all()
    assert rows == [("a", "mail", "UserCreated"), ("b", "ops", "UserDisabled")]
    engine.dispose()


def test_a_database_that_is_ahead_of_the_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ahead.db"
    migrations.upgrade(f"sqlite:///{path}")
    engine = sqlite.engine_for(str(path))
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(OperatorError, match="the database is at version 9999, which this Bedplate does not know"):
        migrations.upgrade(f"sqlite:///{path}")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is not a database, it is a text that is long enough to be looked at" * 20)
    with pytest.raises(OperatorError, match="cannot use the database"):
        migrations.upgrade(f"sqlite:///{path}")
