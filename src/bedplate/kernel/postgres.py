"""PostgreSQL through asyncpg."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import CursorResult, Executable, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from bedplate.kernel.db import Database, Parameters, Record, Transaction, UniqueViolation, together
from bedplate.kernel.errors import StorageFailed, Unavailable
from bedplate.kernel.settings import OperatorError

log = logging.getLogger("bedplate.postgres")

COMMAND_SECONDS = 5.0
CONNECT_SECONDS = 3.0
POOL_SECONDS = 2.0
POOL_SIZE = 10
GONE = (
    OSError,
    TimeoutError,
    PoolTimeout,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
)


def engine_for(url: str, command_seconds: float | None = COMMAND_SECONDS) -> AsyncEngine:
    """An asynchronous engine. Also used by the migrations."""
    dsn = dsn_of(url)

    async def connect() -> asyncpg.Connection:
        try:
            return await asyncpg.connect(dsn, timeout=CONNECT_SECONDS, command_timeout=command_seconds)
        except (ValueError, ssl.SSLError) as error:  # of the URL's parameters
            raise OperatorError(f"DATABASE_URL cannot be used: {error}") from None

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,
        pool_use_lifo=True,
        query_cache_size=2000,
        hide_parameters=True,
    )


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


class PostgresTransaction(Transaction):
    def __init__(self, database: "PostgresDatabase", connection: AsyncConnection) -> None:
        super().__init__(database.routes)
        self._database = database
        self._connection = connection

    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        return (await self._run(statement, parameters)).all()

    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        return (await self._run(statement, parameters)).first()

    async def execute(self, statement: Executable, parameters: Any = None) -> int:
        return (await self._run(statement, parameters)).rowcount

    async def _run(self, statement: Executable, parameters: Any) -> CursorResult[*tuple[Any, ...]]:
        try:
            return await self._database.run(self._connection, statement, parameters)
        except IntegrityError as violation:
            name = getattr(violation.orig.__cause__, "constraint_name", None) if violation.orig else None
            if getattr(violation.orig, "sqlstate", "") == "23505" and name:
                raise UniqueViolation(name) from violation
            raise


class PostgresDatabase(Database):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._engine = engine_for(url)
        # Single statements commit by themselves: no BEGIN and COMMIT around a read.
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self.dialect = self._engine.dialect

    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        async with _reachable(), self._autocommit.connect() as connection:
            return (await self.run(connection, statement, parameters)).all()

    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        async with _reachable(), self._autocommit.connect() as connection:
            return (await self.run(connection, statement, parameters)).first()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        finished: Transaction | None = None
        try:
            async with _reachable(), self._engine.begin() as connection:
                transaction = PostgresTransaction(self, connection)
                yield transaction
                finished = transaction
        finally:
            # Also if the answer to the commit was lost or nobody waits for it: forgetting too much does no harm.
            if finished is not None:
                await asyncio.shield(self.tell(together([finished])))

    def changed_elsewhere(self) -> bool:
        return False

    def connections(self) -> int:
        pool: Any = self._engine.pool
        return int(pool.checkedout())

    async def run(
        self, connection: AsyncConnection, statement: Executable, parameters: Any
    ) -> CursorResult[*tuple[Any, ...]]:
        """Execute, and say how long it took."""
        if not self.observers:
            return await connection.execute(statement, parameters)
        began = time.perf_counter()
        try:
            return await connection.execute(statement, parameters)
        finally:
            seconds = time.perf_counter() - began
            for observe in self.observers:
                observe(seconds)

    async def ping(self) -> None:
        await self.first(text("SELECT 1"))

    async def close(self) -> None:
        await self._engine.dispose()


def cause_of(error: Exception) -> str:
    """What went wrong, in one line and without the statement."""
    cause = getattr(error, "orig", None) or error
    return str(cause.__cause__ or cause).splitlines()[0]


@asynccontextmanager
async def _reachable() -> AsyncIterator[None]:
    """A lost or full database becomes Unavailable: a 503 that tells clients to come back."""
    try:
        yield
    except GONE as error:
        raise _away(error) from error
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig else None
        if error.connection_invalidated or isinstance(cause, GONE):
            raise _away(cause or error) from error
        log.error("unexpected database error", exc_info=error)
        raise StorageFailed() from error


def _away(error: BaseException) -> Unavailable:
    log.warning("PostgreSQL does not answer", extra={"reason": type(error).__name__})
    return Unavailable()
