"""The database: tables and statements are SQLAlchemy's, the drivers run them, rows are frozen values.

One interface, two engines: `sqlite.py` (embedded) and `postgres.py`. Reads open no transaction. A mutating facade
method has one visible `async with db.transaction() as tx:`, inside which nothing is awaited but tx itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, TypeAlias, overload

from sqlalchemy import Dialect, Executable, MetaData, Row, Select, delete
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import UserDefinedType

from bedplate.kernel.events import Event

PART = 1000

Parameters = Mapping[str, Any]
Routes = Mapping[str, Sequence[str]]
Record: TypeAlias = Row[*tuple[Any, ...]]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXACT_BEFORE = 2**32 * 1_000_000  # the year 2106
CENT = Decimal("0.01")


class Base(DeclarativeBase):
    """Parent of every table class. Constraint names are fixed so that both engines report violations alike."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcTime(UserDefinedType[datetime]):
    """Aware UTC times: timestamptz on PostgreSQL, microseconds since the epoch on SQLite (sortable, no parsing)."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TIMESTAMP WITH TIME ZONE"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return microseconds if dialect.name == "sqlite" else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return moment if dialect.name == "sqlite" else None


class Id(UserDefinedType[str]):
    """UUIDs, as canonical text in Python: uuid on PostgreSQL, the text itself on SQLite (nothing to convert)."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "UUID"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return None if dialect.name == "sqlite" else _text


class Money(UserDefinedType[Decimal]):
    """Amounts with two decimals, stored as whole minor units: exact on both engines, and sortable."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BIGINT"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        return minor_units

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return amount_of


@compiles(UtcTime, "sqlite")
def _utc_time_on_sqlite(*_: Any, **__: Any) -> str:
    return "BIGINT"


@compiles(Id, "sqlite")
def _id_on_sqlite(*_: Any, **__: Any) -> str:
    return "CHAR(36)"


@overload
def microseconds(value: datetime) -> int: ...
@overload
def microseconds(value: None) -> None: ...
@overload
def microseconds(value: datetime | None) -> int | None: ...
def microseconds(value: datetime | None) -> int | None:
    return None if value is None else (value - EPOCH) // timedelta(microseconds=1)


@overload
def moment(value: int) -> datetime: ...
@overload
def moment(value: None) -> None: ...
@overload
def moment(value: int | None) -> datetime | None: ...
def moment(value: int | None) -> datetime | None:
    if value is None:
        return None
    # Lists convert many: the quick way is exact as long as a double has microseconds to half a unit.
    if 0 <= value < EXACT_BEFORE:
        return datetime.fromtimestamp(value / 1_000_000, UTC)
    return EPOCH + timedelta(microseconds=value)


@overload
def minor_units(value: Decimal) -> int: ...
@overload
def minor_units(value: None) -> None: ...
@overload
def minor_units(value: Decimal | None) -> int | None: ...
def minor_units(value: Decimal | None) -> int | None:
    return None if value is None else int(rounded(value).scaleb(2))


@overload
def amount_of(value: int) -> Decimal: ...
@overload
def amount_of(value: None) -> None: ...
@overload
def amount_of(value: int | None) -> Decimal | None: ...
def amount_of(value: int | None) -> Decimal | None:
    return None if value is None else Decimal(value).scaleb(-2)


def rounded(amount: Decimal) -> Decimal:
    """To whole minor units, half up, as invoices are."""
    return amount.quantize(CENT, ROUND_HALF_UP)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


class UniqueViolation(Exception):
    """A unique constraint refused a row."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint

    def on(self, column: str) -> bool:
        """Whether the constraint is over this column (the last one, if several)."""
        return self.constraint.endswith(column)


class Statements(ABC):
    """What a database and a transaction both do."""

    @abstractmethod
    async def all(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Record]:
        """Every row. The statement bounds them."""

    @abstractmethod
    async def first(self, statement: Executable, parameters: Parameters | None = None) -> Record | None:
        """The first row, or None."""

    async def scalar(self, statement: Executable, parameters: Parameters | None = None) -> Any:
        """The first column of the first row, or None."""
        row = await self.first(statement, parameters)
        return None if row is None else row[0]


class Unit(ABC):
    """What happens together or not at all, with what was said in it. `routes`: which consumers listen to which event,
    by its class name."""

    def __init__(self, routes: Routes) -> None:
        self.routes = routes
        self.emitted: list[Event] = []

    @abstractmethod
    async def queue(self, insertion: Executable, rows: list[dict[str, Any]]) -> None:
        """Rows for the outbox. `insertion`: the statement that writes them, where the outbox lies beside the rest."""


class Transaction(Unit, Statements):
    """All or nothing. What it makes stale, and what was said in it, is told to the others after the commit."""

    def __init__(self, routes: Routes) -> None:
        super().__init__(routes)
        self.stale: set[str] = set()

    async def queue(self, insertion: Executable, rows: list[dict[str, Any]]) -> None:
        await self.execute(insertion, rows)

    @abstractmethod
    async def execute(self, statement: Executable, parameters: Any = None) -> int:
        """The number of rows changed.

        Raises:
            UniqueViolation: a unique constraint refused it; the transaction is to be left.
        """

    def invalidate(self, *tags: str) -> None:
        """Cached values under these tags are forgotten by every process once this transaction is committed."""
        self.stale.update(tags)


@dataclass(frozen=True, slots=True)
class Effects:
    """What a commit means for others: tags that are stale, and what was said."""

    stale: frozenset[str]
    emitted: Sequence[Event]


def together(transactions: Iterable[Transaction]) -> Effects:
    """The effects of transactions that were committed at once."""
    members = list(transactions)
    stale = frozenset().union(*(member.stale for member in members))
    return Effects(stale, [event for member in members for event in member.emitted])


class Committed(ABC):
    """Who wants to know of commits: the cache (what is stale), the relay (something was emitted), metrics."""

    @abstractmethod
    async def committed(self, effects: Effects) -> None:
        """Called after the commit and before the caller gets its answer."""


class Database(Statements):
    """A database that is open. `listeners` are told of each commit, in order. `routes`: who hears what is said in it.
    `observers` are told how many seconds each statement took."""

    dialect: Dialect

    def __init__(self) -> None:
        self.listeners: list[Committed] = []
        self.routes: Routes = {}
        self.observers: list[Callable[[float], None]] = []

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """One transaction: committed at the end of the block, rolled back by an exception.

        Raises:
            Unavailable: the database cannot be reached or stays locked.
        """

    @abstractmethod
    def changed_elsewhere(self) -> bool:
        """Whether another process has committed since the last call (always False where that cannot be seen)."""

    @abstractmethod
    def connections(self) -> int:
        """How many connections are in use."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable if the database does not answer."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""

    async def tell(self, effects: Effects) -> None:
        """Tell the listeners of a commit."""
        for listener in self.listeners:
            await listener.committed(effects)


async def delete_by_parts(database: Database, table: type[Base], key: Any, rows: Select[Any]) -> None:
    """Delete the rows whose `key` the statement selects, a thousand at a time: one long statement would hold up all."""
    part = delete(table).where(key.in_(rows.limit(PART).scalar_subquery()))
    while True:
        async with database.transaction() as tx:
            if not await tx.execute(part):
                return
