"""SQLite, the embedded engine: the synchronous driver called on the event loop, where a thread hop costs more.

WAL with synchronous=FULL: what was acknowledged survives a power cut. One connection reads, one writes. Transactions
of this process take turns, each in a savepoint, and those that run close together are committed together, with one
sync of the disk; where that is slow it happens in a thread, while the loop serves readers. The writers of other
processes are waited for without blocking the loop.
"""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection, Engine, Executable, create_engine
from sqlalchemy.dialects.sqlite.pysqlite import dialect as Dialect
from sqlalchemy.pool import NullPool

from bedplate.kernel.db import Database, Parameters, Record, Transaction, UniqueViolation, together
from bedplate.kernel.errors import StorageFailed, Unavailable
from bedplate.kernel.settings import OperatorError
from bedplate.kernel.statements import Plans

try:  # a current SQLite where the platform has a wheel of it; the standard library's is often years old
    from pysqlite3 import dbapi2 as driver
except ImportError:
    import sqlite3 as driver

log = logging.getLogger("bedplate.sqlite")

WAIT_SECONDS = 5.0
# A commit that takes longer is worth a thread; most of its time is a wait for the disk.
INLINE_SECONDS = 0.0004
# Readers wait for nobody but the recovery after another process was killed.
READER_WAIT_MILLISECONDS = 1000
# More than the product has; what was prepared once is run without being parsed again.
PREPARED = 1000
# Versions before this can corrupt the file when two connections write and checkpoint at once (WAL reset).
SAFE_FOR_SEVERAL_WRITERS = (3, 51, 3)


def safe_for_several_processes() -> bool:
    """Whether this SQLite may have several writing processes."""
    return bool(driver.sqlite_version_info >= SAFE_FOR_SEVERAL_WRITERS)


def engine_for(path: str) -> Engine:
    """A synchronous engine for the migrations."""
    return create_engine(
        f"sqlite:///{path}",
        module=driver,
        creator=lambda: connect(path),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
    )


def connect(path: str) -> Any:
    """A connection with the pragmas that the product relies on. Raises OperatorError: the file cannot be used."""
    # For its owner only: it holds password hashes. The files beside it get the same mode.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise OperatorError(f"cannot use the database {path}: {error.strerror}") from None
    connection = driver.connect(path, isolation_level=None, check_same_thread=False, cached_statements=PREPARED)
    # Busy waits would stop the whole loop, so the writer's retries are made by transaction() below.
    for pragma in ("busy_timeout=0", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        _retrying(connection.execute, f"PRAGMA {pragma}")
    return connection


def path_of(url: str) -> str:
    """The file that a sqlite URL names."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise OperatorError("DATABASE_URL is not a URL like sqlite:///folder/name.db")
    return path


def begin(connection: Connection) -> None:
    """Take the only writer, waiting for other processes. Blocks: not for the event loop."""
    _retrying(connection.connection.execute, "BEGIN IMMEDIATE")


def _retrying(execute: Any, statement: str) -> None:
    # Switching to WAL takes an exclusive lock for a moment: two processes starting together meet here.
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            execute(statement)
            return
        except driver.OperationalError as busy:
            if "locked" not in str(busy) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class SqliteTransaction(Transaction):
    def __init__(self, database: "SqliteDatabase", writer: Any) -> None:
        super().__init__(database.routes)
        self._database = database
        self._writer = writer

    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        return self._database.rows(self._writer, statement, parameters)

    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        return self._database.row(self._writer, statement, parameters)

    async def execute(self, statement: Executable, parameters: Any = None) -> int:
        return self._database.execute(self._writer, statement, parameters)


class SqliteDatabase(Database):
    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._reader = connect(path)
            self._bare = connect(path)
            self._reader.execute(f"PRAGMA busy_timeout={READER_WAIT_MILLISECONDS}")
        except (OSError, driver.OperationalError) as error:
            cause = error.strerror if isinstance(error, OSError) else error
            raise OperatorError(f"cannot open the database {path}: {cause}") from None
        self.dialect = Dialect()
        self._plans = Plans(self.dialect)
        self._turn = asyncio.Lock()
        self._group: asyncio.Future[None] | None = None
        self._members: list[Transaction] = []
        self._committer: asyncio.Task[None] | None = None
        self._commit_seconds: deque[float] = deque([0.0], maxlen=15)
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._version = self._bare.cursor()
        self._last_version = self._data_version()
        self._asked = False
        self._missed = False

    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        return self.rows(self._reader, statement, parameters)

    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        return self.row(self._reader, statement, parameters)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        transaction = SqliteTransaction(self, self._bare)
        async with self._my_turn():
            durable = await self._join_group(transaction)
            self._bare.execute("SAVEPOINT one")
            try:
                yield transaction
            except BaseException:
                self._bare.execute("ROLLBACK TO one")
                raise
            finally:
                self._bare.execute("RELEASE one")
        # Cancelled or not, the group is committed and told of; what is waited for here is only the news of it.
        await asyncio.shield(durable)

    def changed_elsewhere(self) -> bool:
        # Asked once in a turn of the loop: whoever was told of another process's commit is heard in a later turn.
        if self._asked:
            return False
        self._asked = True
        asyncio.get_running_loop().call_soon(self._ask_again)
        # While a group is open, its connection may be in use by another thread; nobody else can commit then.
        missed = self._missed or (self._group is None and self._moved())
        self._missed = False
        return missed

    def _moved(self) -> bool:
        version = self._data_version()
        moved = version != self._last_version
        self._last_version = version
        return moved

    def _ask_again(self) -> None:
        self._asked = False

    def connections(self) -> int:
        return 2  # one reads, one writes

    def rows(self, connection: Any, statement: Executable, parameters: Parameters | None) -> Sequence[Record]:
        plan = self._plans.of(statement, parameters or {})
        found, columns = self._run(_all, connection, plan.sql, plan.values(parameters or {}))
        make = plan.make or plan.learn([column[0] for column in columns])
        return [make(each) for each in found]

    def row(self, connection: Any, statement: Executable, parameters: Parameters | None) -> Record | None:
        plan = self._plans.of(statement, parameters or {})
        found, columns = self._run(_first, connection, plan.sql, plan.values(parameters or {}))
        if found is None:
            return None
        return (plan.make or plan.learn([column[0] for column in columns]))(found)

    def execute(self, connection: Any, statement: Executable, parameters: Any) -> int:
        if isinstance(parameters, list):
            plan = self._plans.of(statement, parameters[0])
            cursor = self._run(connection.executemany, plan.sql, [plan.values(each) for each in parameters])
        else:
            plan = self._plans.of(statement, parameters or {})
            cursor = self._run(connection.execute, plan.sql, plan.values(parameters or {}))
        return int(cursor.rowcount)

    def _run(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Ask, and say how long it took."""
        if not self.observers:
            return _answered(ask, *arguments)
        began = time.perf_counter()
        try:
            return _answered(ask, *arguments)
        finally:
            seconds = time.perf_counter() - began
            for observe in self.observers:
                observe(seconds)

    async def ping(self) -> None:
        _answered(self._reader.execute, "SELECT 1").close()

    async def close(self) -> None:
        if self._committer is not None:
            await self._committer
        self._syncer.shutdown()
        self._reader.close()
        self._bare.close()

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT_SECONDS) if self._turn.locked() else nullcontext():
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable() from None
        try:
            yield
        finally:
            self._turn.release()

    async def _join_group(self, transaction: Transaction) -> "asyncio.Future[None]":
        """The group of transactions that is committed next; the first one opens it."""
        if self._group is None:
            await self._begin()
            # What others committed before this process got the lock; while it has it, nobody can.
            self._missed |= self._moved()
            self._group = asyncio.get_running_loop().create_future()
            self._committer = asyncio.create_task(self._commit())
        self._members.append(transaction)
        return self._group

    async def _commit(self) -> None:
        # The turn comes in order: whoever asked for it before still joins the group.
        async with self._turn:
            group, members, error = self._group, self._members, await self._sync()
            self._group, self._members = None, []
        assert group is not None
        try:
            # Also if it failed: to forget too much does no harm.
            await self.tell(together(members))
        finally:
            if error is None:
                group.set_result(None)
            else:  # a full or broken disk: all of the group is undone, and each one is told
                log.error("a commit failed", exc_info=error)
                group.set_exception(Unavailable())
                group.exception()  # it is no defect if nobody waits any more

    async def _sync(self) -> Exception | None:
        began = time.perf_counter()
        try:
            if median(self._commit_seconds) > INLINE_SECONDS:
                await asyncio.get_running_loop().run_in_executor(self._syncer, self._bare.execute, "COMMIT")
            else:
                self._bare.execute("COMMIT")
        except Exception as error:
            if self._bare.in_transaction:
                self._bare.execute("ROLLBACK")
            return error
        finally:
            self._commit_seconds.append(time.perf_counter() - began)
        return None

    async def _begin(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        pause = 0.001
        while True:
            try:
                self._bare.execute("BEGIN IMMEDIATE")
                return
            except driver.OperationalError as busy:
                if time.monotonic() > deadline:
                    raise Unavailable() from busy
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.05)

    def _data_version(self) -> int:
        # On the writing connection this changes with commits of other processes only.
        self._version.execute("PRAGMA data_version")
        return int(self._version.fetchone()[0])


def _all(connection: Any, sql: str, values: Sequence[Any]) -> tuple[list[Any], Any]:
    """All rows, and what is said of their columns."""
    cursor = connection.execute(sql, values)
    return cursor.fetchall(), cursor.description


def _first(connection: Any, sql: str, values: Sequence[Any]) -> tuple[Any, Any]:
    cursor = connection.execute(sql, values)
    found, columns = cursor.fetchone(), cursor.description
    cursor.close()  # or it would go on reading what is there now
    return found, columns


def _answered(ask: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return ask(*arguments)
    except driver.OperationalError as error:  # locked, full, broken
        log.warning("SQLite does not answer", extra={"reason": str(error)})
        raise Unavailable() from error
    except driver.IntegrityError as error:
        # "UNIQUE constraint failed: identity_users.email_key"
        words = str(error)
        if words.startswith("UNIQUE"):
            raise UniqueViolation(words.rpartition(": ")[2].replace(".", "_")) from error
        log.error("unexpected database error", exc_info=error)
        raise StorageFailed() from error
    except driver.Error as error:
        log.error("unexpected database error", exc_info=error)
        raise StorageFailed() from error
