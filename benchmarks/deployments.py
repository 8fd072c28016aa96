"""What the product is measured on: SQLite and PostgreSQL, one worker and two, each with accounts of its own."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis
from sqlalchemy import insert

from bedplate import compose
from bedplate.kernel.clock import Clock
from bedplate.kernel.ids import new_id
from bedplate.kernel.security import Passwords
from bedplate.kernel.settings import OperatorError, Settings
from bedplate.models import UserRow

POSTGRES = os.environ.get("BEDPLATE_BENCH_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("BEDPLATE_BENCH_REDIS_URL", "redis://127.0.0.1:6379/14")
PASSWORD = "SecurePass123!"
ADMIN = "admin@example.com"
NAMES = ("sqlite-1", "sqlite-2", "postgres-1", "postgres-2")


class Absent(Exception):
    """A server that a deployment needs does not answer."""


@dataclass(frozen=True)
class Deployment:
    """`ids` are those of the accounts, oldest first: the administrator, then account(1) and so on."""

    name: str
    workers: int
    folder: Path
    environment: Mapping[str, str]
    ids: list[str]


def account(number: int) -> str:
    """The e-mail address of an account. All have the same password."""
    return f"user{number:05}@example.com"


@contextmanager
def prepared(name: str, folder: Path, users: int) -> Iterator[Deployment]:
    """A deployment with so many accounts; its database is dropped in the end.

    Raises:
        Absent: it needs a server that does not answer.
    """
    engine, workers = name.split("-")
    folder.mkdir()
    environment = {"BEDPLATE_RATE_LIMIT_ENABLED": "false", "API_SECRET_KEY": "a-secret-of-the-benchmarks-alone"}
    if name != "sqlite-1":
        environment["REDIS_URL"] = redis_url()
    if engine == "sqlite":
        environment["DATABASE_URL"] = f"sqlite:///{folder / 'bedplate.db'}"
        yield Deployment(name, int(workers), folder, environment, _filled(environment, int(workers), users))
        return
    database = f"bedplate_bench_{os.getpid()}_{workers}"
    execute(f'CREATE DATABASE "{database}"')
    try:
        environment["DATABASE_URL"] = urlunsplit(urlsplit(POSTGRES)._replace(path=f"/{database}"))
        yield Deployment(name, int(workers), folder, environment, _filled(environment, int(workers), users))
    finally:
        execute(f'DROP DATABASE "{database}" WITH (FORCE)')


def _filled(environment: Mapping[str, str], workers: int, users: int) -> list[str]:
    settings = Settings.model_validate(environment)
    if workers > 1:
        try:
            compose.may_have_several_workers(settings, None)
        except OperatorError as refused:
            raise Absent(str(refused)) from None
    compose.prepare(settings)
    return asyncio.run(_fill(settings, users))


async def _fill(settings: Settings, users: int) -> list[str]:
    # Straight into the table, with one hash for all: registering would take minutes.
    passwords = Passwords(1)
    password_hash = await passwords.hash(PASSWORD)
    passwords.close()
    # Always with microseconds, so that answers have one length.
    first = datetime.now(UTC).replace(microsecond=500_000) - timedelta(days=2)
    rows = [
        {
            "id": new_id(),
            "email": account(number) if number else ADMIN,
            "email_key": account(number) if number else ADMIN,
            "username": f"user{number:05}",
            "username_key": f"user{number:05}",
            "name": f"Name {number:05}",
            "password_hash": password_hash,
            "role": "user" if number else "admin",
            "email_verified": True,
            "created_at": first + timedelta(seconds=number),
            "updated_at": first + timedelta(seconds=number),
        }
        for number in range(users)
    ]
    async with compose.running(settings, Clock(), deliver=False) as runtime:
        assert runtime.database is not None
        async with runtime.database.transaction() as tx:
            await tx.execute(insert(UserRow), rows)
    return [str(row["id"]) for row in rows]


def redis_url() -> str:
    """The Redis that processes share. Raises Absent."""
    try:
        with redis.Redis.from_url(REDIS, socket_timeout=3) as client:
            client.ping()
    except redis.RedisError as error:
        raise Absent(f"no Redis answers ({type(error).__name__}); set BEDPLATE_BENCH_REDIS_URL") from None
    return REDIS


def execute(statement: str) -> None:
    """Run it as the administrator of PostgreSQL. Raises Absent."""

    async def run() -> None:
        connection = await asyncpg.connect(POSTGRES, timeout=3)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    try:
        asyncio.run(run())
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise Absent(f"no PostgreSQL answers ({type(error).__name__}); set BEDPLATE_BENCH_POSTGRES_URL") from None
