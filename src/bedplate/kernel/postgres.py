"""PostgreSQL through asyncpg."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Executable, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect as Dialect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bedplate.kernel.db import Database, Parameters, Record, Transaction, UniqueViolation, together
from bedplate.kernel.errors import StorageFailed, Unavailable
from bedplate.kernel.settings import OperatorError
from bedplate.kernel.statements import Plans

T = TypeVar("T")

log = logging.getLogger("bedplate.postgres")

COMMAND_SECONDS = 5.0
CONNECT_SECONDS = 3.0
POOL_SECONDS = 5.0
POOL_SIZE = 10
CLOSE_SECONDS = 1.0
# More than the product has; what was prepared once is run without being parsed again.
PREPARED = 1000
GONE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server has ended the connection while nobody used it
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
)

_PING = text("SELECT 1")


def engine_for(url: str) -> AsyncEngine:
    """An asynchronous engine for the migrations, whose statements take as long as they take."""
    dsn = dsn_of(url)
    return create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: connect(dsn, command_timeout=None), hide_parameters=True
    )


async def connect(dsn: str, **options: Any) -> asyncpg.Connection:
    """Raises OperatorError for a mistake in the URL's parameters."""
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_SECONDS, **options)
    except (ValueError, ssl.SSLError) as error:
        raise OperatorError(f"DATABASE_URL cannot be used: {error}") from None


def dsn_of(url: str) -> str:
    """The URL as the driver reads it, with libpq's parameters (`?sslmode=require`), or an OperatorError that does not
    print its password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = URL.create("")
    if parsed.drivername.partition("+")[0] not in ("postgresql", "postgres"):
        raise OperatorError("DATABASE_URL is not a URL like postgresql://user:password@host:5432/name")
    if "ssl" in parsed.query:  # how SQLAlchemy's users write it
        parsed = parsed.set(query={"sslmode": parsed.query["ssl"]} | parsed.query).difference_update_query(["ssl"])
    return parsed.set(drivername="postgresql").render_as_string(hide_password=False)


class Pool:
    """Connections, the one that was used last first."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._turns = asyncio.Semaphore(POOL_SIZE)
        self._free: list[asyncpg.Connection] = []
        self.taken = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """One that nobody else has. Where work on it was cut short, nobody knows what it is at: it is not used again.

        Raises:
            Unavailable: none can be had.
        """
        connection = await answered(self._take())
        sound = False
        try:
            yield connection
            sound = True
        except Exception as error:
            sound = not isinstance(error, Unavailable)
            raise
        finally:
            if sound and not connection.is_closed():
                self._free.append(connection)
            else:
                connection.terminate()
            self.taken -= 1
            self._turns.release()

    async def close(self) -> None:
        """Close those that nobody uses."""
        free, self._free = self._free, []
        await asyncio.gather(*(each.close(timeout=CLOSE_SECONDS) for each in free), return_exceptions=True)

    async def _take(self) -> asyncpg.Connection:
        async with asyncio.timeout(POOL_SECONDS) if self._turns.locked() else nullcontext():
            await self._turns.acquire()
        try:
            while self._free:
                connection = self._free.pop()
                if not connection.is_closed():
                    break
            else:
                connection = await self._open()
        except BaseException:
            self._turns.release()
            raise
        self.taken += 1
        return connection

    async def _open(self) -> asyncpg.Connection:
        connection = await connect(self._dsn, command_timeout=COMMAND_SECONDS, statement_cache_size=PREPARED)
        try:
            await connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=json.loads)
        except BaseException:
            connection.terminate()
            raise
        return connection


class PostgresTransaction(Transaction):
    def __init__(self, database: "PostgresDatabase", connection: asyncpg.Connection) -> None:
        super().__init__(database.routes)
        self._database = database
        self._connection = connection

    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        return await self._database.rows(self._connection, statement, parameters)

    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        return await self._database.row(self._connection, statement, parameters)

    async def execute(self, statement: Executable, parameters: Any = None) -> int:
        return await self._database.execute(self._connection, statement, parameters)


class PostgresDatabase(Database):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._pool = Pool(dsn_of(url))
        self.dialect = Dialect()  # type: ignore[no-untyped-call]
        self._plans = Plans(self.dialect)

    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        async with self._pool.connection() as connection:
            return await self.rows(connection, statement, parameters)

    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        async with self._pool.connection() as connection:
            return await self.row(connection, statement, parameters)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        finished: Transaction | None = None
        try:
            async with self._pool.connection() as connection:
                await answered(connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED"))
                try:
                    yield (transaction := PostgresTransaction(self, connection))
                except Unavailable:  # its connection is thrown away
                    raise
                except Exception:
                    await answered(connection.execute("ROLLBACK"))
                    raise
                finished = transaction
                if await answered(connection.execute("COMMIT")) != "COMMIT":
                    log.error("a transaction went on after one of its statements had failed")
                    raise StorageFailed()
        finally:
            # Also if the answer to the commit was lost or nobody waits for it: forgetting too much does no harm.
            if finished is not None:
                await asyncio.shield(self.tell(together([finished])))

    def changed_elsewhere(self) -> bool:
        return False

    def connections(self) -> int:
        return self._pool.taken

    async def rows(
        self, connection: asyncpg.Connection, statement: Executable, parameters: Parameters | None
    ) -> Sequence[Record]:
        plan = self._plans.of(statement, parameters or {})
        found = await self._timed(connection.fetch(plan.sql, *plan.values(parameters or {})))
        if not found:
            return []
        make = plan.make or plan.learn(list(found[0].keys()))
        return [make(tuple(record)) for record in found]

    async def row(
        self, connection: asyncpg.Connection, statement: Executable, parameters: Parameters | None
    ) -> Record | None:
        plan = self._plans.of(statement, parameters or {})
        found = await self._timed(connection.fetchrow(plan.sql, *plan.values(parameters or {})))
        if found is None:
            return None
        return (plan.make or plan.learn(list(found.keys())))(tuple(found))

    async def execute(self, connection: asyncpg.Connection, statement: Executable, parameters: Any) -> int:
        """The number of rows changed; of several executions it is not known."""
        if isinstance(parameters, list):
            plan = self._plans.of(statement, parameters[0])
            await self._timed(connection.executemany(plan.sql, [plan.values(each) for each in parameters]))
            return -1
        plan = self._plans.of(statement, parameters or {})
        status: str = await self._timed(connection.execute(plan.sql, *plan.values(parameters or {})))
        count = status.rpartition(" ")[2]  # "UPDATE 3"
        return int(count) if count.isdecimal() else -1

    async def _timed(self, asked: Awaitable[T]) -> T:
        if not self.observers:
            return await answered(asked)
        began = time.perf_counter()
        try:
            return await answered(asked)
        finally:
            seconds = time.perf_counter() - began
            for observe in self.observers:
                observe(seconds)

    async def ping(self) -> None:
        await self.first(_PING)

    async def close(self) -> None:
        await self._pool.close()


def cause_of(error: Exception) -> str:
    """What went wrong, in one line and without the statement."""
    cause = getattr(error, "orig", None) or error
    return str(cause.__cause__ or cause).splitlines()[0]


async def answered(asked: Awaitable[T]) -> T:
    """What the server says. A lost or full database becomes Unavailable: a 503 that tells clients to come back."""
    try:
        return await asked
    except asyncpg.UniqueViolationError as violation:
        raise UniqueViolation(violation.constraint_name) from violation
    except GONE as error:
        log.warning("PostgreSQL does not answer", extra={"reason": type(error).__name__})
        raise Unavailable() from error
    except asyncpg.PostgresError as error:
        log.error("unexpected database error", exc_info=error)
        raise StorageFailed() from error
