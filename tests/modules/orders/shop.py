"""A shop: orders and users of one deployment, and a witness who hears everything that orders say."""

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Self

import pytest
from sqlalchemy import func, select

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.events import Event, to_wire
from bedplate.kernel.idempotency import Idempotency, Once, SqlAnswers
from bedplate.kernel.ids import new_id
from bedplate.kernel.mongo import MongoDocuments
from bedplate.kernel.outbox import OutboxRow
from bedplate.models import OrderRow
from bedplate.modules.identity.public import Registration, User, Users
from bedplate.modules.orders import events
from bedplate.modules.orders.mongo import MongoOrders
from bedplate.modules.orders.orders import OrdersService
from bedplate.modules.orders.public import Order, OrderItem, Orders, OrderStatus
from bedplate.modules.orders.store import SqlOrders
from tests import factories
from tests.factories import PASSWORD, TurnableClock
from tests.stores import orders_in
from tests.world import World

WITNESS = "witness"
SAID = [each.__name__ for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)]

# The document's own order.
ITEMS = [OrderItem("prod-1", 2, Decimal("29.99")), OrderItem("prod-2", 1, Decimal("15.50"))]
WAY = (OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.PROCESSING, OrderStatus.SHIPPED, OrderStatus.DELIVERED)

on_every_store = pytest.mark.parametrize("world", ["sqlite", "postgres+redis", "documents"], indirect=True)


@dataclass
class Shop:
    """`db`: where orders are kept, or what is said of them, whoever calls them from wherever."""

    world: World
    orders: Orders
    users: Users
    db: Database
    clock: TurnableClock
    someone: User | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, world: World, **more: Any) -> Self:
        assert world.runtime.database is not None
        front, database = world.front, world.runtime.database
        return cls(world, front.get(Orders), front.get(Users), database, world.clock, **more)

    def __post_init__(self) -> None:
        witness(self.db)

    async def buyer(self) -> User:
        return await self.users.register(Registration(email=factories.email("buyer"), password=PASSWORD))

    async def order(self, status: OrderStatus = OrderStatus.PENDING, user_id: str | None = None) -> Order:
        """A new order that has come as far as this."""
        if user_id is None:
            self.someone = self.someone or await self.buyer()
            user_id = self.someone.id
        order = await self.orders.place(user_id, ITEMS)
        if status is OrderStatus.CANCELLED:
            return await self.orders.cancel(order.id, "changed my mind")
        for step in WAY[1 : WAY.index(status) + 1]:
            if step is OrderStatus.CONFIRMED:
                order = await self.orders.confirm(order.id, f"pay-{new_id()}")
            else:
                order = await self.orders.advance(order.id, step)
        return order

    async def said(self, key: str | None = None) -> list[dict[str, Any]]:
        """What was said of one order, or of all, in that order and in its form on the wire."""
        heard = select(OutboxRow.__table__).where(OutboxRow.consumer == WITNESS).order_by(OutboxRow.id)
        rows = await self.db.all(heard if key is None else heard.where(OutboxRow.key == key))
        return [to_wire(row.id, Event.known[row.type](**row.payload), row.created_at) for row in rows]

    async def types_said(self, key: str | None = None) -> list[str]:
        return [event["event_type"] for event in await self.said(key)]

    def service(self, users: Users, clock: Clock) -> OrdersService[Any]:
        """Another one on the same orders."""
        documents = self.world.runtime.documents.get("orders")
        if isinstance(documents, MongoDocuments):
            return OrdersService(MongoOrders(documents), Idempotency(documents, clock), users, clock)
        return OrdersService(SqlOrders(self.db), Idempotency(SqlAnswers(self.db), clock), users, clock)

    async def rows(self) -> int:
        """How many orders there are."""
        if isinstance(documents := self.world.runtime.documents.get("orders"), MongoDocuments):
            return await orders_in(documents)
        return int(await self.db.scalar(select(func.count()).select_from(OrderRow)))


def witness(db: Database) -> None:
    """Have one more consumer who never takes what is his: it stays where it was written with the state change."""
    heard = {name: [*dict.fromkeys([*db.routes.get(name, ()), WITNESS])] for name in SAID}
    db.routes = {**db.routes, **heard}


def once(key: str = "key-1", body: Any = None, scope: str = "a caller and an operation") -> Once:
    return Once.of("a secret of the tests", scope, key, body)


async def outcomes(attempts: list[Any]) -> tuple[list[Any], list[Exception]]:
    """What came of attempts that all begin at the same moment: results and refusals."""
    barrier = asyncio.Barrier(len(attempts))

    async def attempt(act: Any) -> Any:
        await barrier.wait()
        return await act()

    async with asyncio.timeout(30):
        ended = await asyncio.gather(*(attempt(act) for act in attempts), return_exceptions=True)
    refusals = [each for each in ended if isinstance(each, Exception)]
    return [each for each in ended if not isinstance(each, BaseException)], refusals
