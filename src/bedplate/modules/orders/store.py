"""Where orders are kept: the statements of this module, and the only place that knows of tables."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Executable, bindparam, func, insert, or_, select, update

from bedplate.kernel.db import Database, Transaction, Unit
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.orders.models import OrderRow
from bedplate.modules.orders.public import Order, OrderItem, OrderStatus

Tx = TypeVar("Tx", bound=Unit)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an order: into which status, from which, when, and the payment that it came with."""

    status: OrderStatus
    sources: tuple[OrderStatus, ...]
    at: datetime
    payment_id: str | None = None


class OrderStore(ABC, Generic[Tx]):
    """Orders of one database, in which also lies what is said of them and what idempotency keys were answered: all of
    it is written in the transactions of this class."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """See `Database.transaction`."""

    @abstractmethod
    async def insert(self, tx: Tx, order: Order) -> None:
        """A new order, under an id that nobody else has."""

    @abstractmethod
    async def take(self, tx: Tx, order_id: str, step: Step) -> Order | None:
        """Compare and swap: the order after this step; None if it is unknown or in none of the step's sources. Of many
        that try at once, each sees what the one before it has left."""

    @abstractmethod
    async def find(self, order_id: str) -> Order | None:
        """As it was last committed."""

    @abstractmethod
    async def page(self, user_id: str, status: OrderStatus | None, part: Slice) -> Page[Order]:
        """One user's, newest first, at most 100, with the exact total."""


# In the order of Order's fields.
COLUMNS = (
    OrderRow.id,
    OrderRow.user_id,
    OrderRow.items,
    OrderRow.status,
    OrderRow.total,
    OrderRow.payment_id,
    OrderRow.created_at,
    OrderRow.updated_at,
    OrderRow.cancelled_at,
)
STATUSES = {status.value: status for status in OrderStatus}

_INSERT = insert(OrderRow)
_FIND = select(*COLUMNS).where(OrderRow.id == bindparam("order_id"))


@cache
def _taking(sources: tuple[OrderStatus, ...]) -> Executable:
    """The statement of a step from these. Built once: that costs more than to run it, and so does IN with a list."""
    return (
        update(OrderRow)
        .where(OrderRow.id == bindparam("order_id"), or_(*(OrderRow.status == source.value for source in sources)))
        .values(
            status=bindparam("status"),
            updated_at=bindparam("at"),
            payment_id=func.coalesce(bindparam("payment_id"), OrderRow.payment_id),
            cancelled_at=bindparam("cancelled_at"),  # nothing comes after a cancellation
        )
        .returning(*COLUMNS)
    )


def _listing(*conditions: ColumnElement[bool]) -> tuple[Executable, Executable]:
    mine = (OrderRow.user_id == bindparam("user"), *conditions)
    page = select(*COLUMNS).where(*mine).order_by(OrderRow.created_at.desc(), OrderRow.id.desc())
    counting = select(func.count()).select_from(OrderRow).where(*mine)
    return page.limit(bindparam("limit")).offset(bindparam("offset")), counting


_EVERY = _listing()
_IN_STATUS = _listing(OrderRow.status == bindparam("status"))


class SqlOrders(OrderStore[Transaction]):
    """In SQLite or PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self._db.transaction()

    async def insert(self, tx: Transaction, order: Order) -> None:
        row = {
            "id": order.id,
            "user_id": order.user_id,
            "items": [
                {"product_id": item.product_id, "quantity": item.quantity, "price": str(item.price)}
                for item in order.items
            ],
            "status": order.status.value,
            "total": order.total,
            "payment_id": order.payment_id,
            "created_at": order.created_at,
            "updated_at": order.updated_at,
            "cancelled_at": order.cancelled_at,
        }
        await tx.execute(_INSERT, row)

    async def take(self, tx: Transaction, order_id: str, step: Step) -> Order | None:
        values = {
            "order_id": order_id,
            "status": step.status.value,
            "at": step.at,
            "payment_id": step.payment_id,
            "cancelled_at": step.at if step.status is OrderStatus.CANCELLED else None,
        }
        row = await tx.first(_taking(step.sources), values)
        return None if row is None else _order(row)

    async def find(self, order_id: str) -> Order | None:
        row = await self._db.first(_FIND, {"order_id": order_id})
        return None if row is None else _order(row)

    async def page(self, user_id: str, status: OrderStatus | None, part: Slice) -> Page[Order]:
        listing, counting = _EVERY if status is None else _IN_STATUS
        part = part.bounded()
        wanted = {"user": user_id, "status": None if status is None else status.value}
        rows = await self._db.all(listing, {**wanted, "limit": part.limit, "offset": part.offset})
        total = part.total_if_last(len(rows))
        if total is None:
            # By the index of one user's orders: to remember it would make every new order an announcement to all
            # processes.
            total = int(await self._db.scalar(counting, wanted))
        return Page([_order(row) for row in rows], total)


def _order(row: Sequence[Any]) -> Order:
    """A row of COLUMNS as a value."""
    order_id, user_id, items, status, *rest = row
    kept = [OrderItem(item["product_id"], item["quantity"], Decimal(item["price"])) for item in items]
    return Order(order_id, user_id, kept, STATUSES[status], *rest)
