"""Orders: the implementation of the Orders facade."""

from collections.abc import Callable
from typing import Any, Generic

from pydantic import TypeAdapter

from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.events import Event
from bedplate.kernel.failpoints import reach
from bedplate.kernel.idempotency import Idempotency, Keep, Once
from bedplate.kernel.ids import is_id
from bedplate.kernel.outbox import emit
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.identity.public import UserNotFound, Users
from bedplate.modules.orders import rules
from bedplate.modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated, OrderStatusChanged
from bedplate.modules.orders.public import (
    InvalidOrderUser,
    Order,
    OrderItem,
    OrderNotFound,
    OrderNotModifiable,
    Orders,
    OrderStatus,
)
from bedplate.modules.orders.store import OrderStore, Step, Tx

ANSWER = TypeAdapter(Order)


class OrdersService(Orders, Generic[Tx]):
    """`idempotency` keeps its answers in the database of `store`."""

    def __init__(self, store: OrderStore[Tx], idempotency: Idempotency, users: Users, clock: Clock) -> None:
        self._store = store
        self._idempotency = idempotency
        self._users = users
        self._clock = clock

    async def place(self, user_id: str, items: list[OrderItem], once: Once | None = None) -> Order:
        async def work(keep: Keep[Order]) -> Order:
            order = await self._new_order(user_id, items)
            async with self._store.transaction() as tx:
                await self._store.insert(tx, order)
                await emit(tx, _created(order), order.created_at)
                await keep(tx, order)
                await reach("orders.place.before_commit")
            await reach("orders.place.after_commit")
            return order

        return await self._idempotency.run(once, ANSWER, work)

    async def get_order(self, order_id: str) -> Order:
        order = await self._store.find(order_id) if rules.is_order_id(order_id) else None
        if order is None:
            raise OrderNotFound()
        return order

    async def list_orders(self, user_id: str, status: OrderStatus | None, part: Slice) -> Page[Order]:
        if not is_id(user_id):
            return Page([], 0)
        return await self._store.page(user_id.lower(), status, part)

    async def confirm(self, order_id: str, payment_id: str) -> Order:
        def confirmed(order: Order) -> Event:
            return OrderConfirmed(order.id, payment_id, iso(order.updated_at))

        order = await self._take(order_id, self._step(OrderStatus.CONFIRMED, payment_id), confirmed)
        if order is not None:
            return order
        present = await self.get_order(order_id)
        if present.status is OrderStatus.CONFIRMED and present.payment_id == payment_id:
            return present
        raise rules.refusal(present, OrderStatus.CONFIRMED)

    async def advance(self, order_id: str, status: OrderStatus) -> Order:
        def changed(order: Order) -> Event:
            (before,) = rules.SOURCES[status]
            return OrderStatusChanged(order.id, order.user_id, before.value, status.value, iso(order.updated_at))

        if status in rules.ADVANCES:
            order = await self._take(order_id, self._step(status), changed)
            if order is not None:
                return order
        raise await self._refusal(order_id, status)

    async def cancel(self, order_id: str, reason: str, once: Once | None = None) -> Order:
        async def work(keep: Keep[Order]) -> Order:
            order = await self._take(order_id, self._step(OrderStatus.CANCELLED), _cancelled(reason), keep)
            if order is None:
                raise await self._refusal(order_id, OrderStatus.CANCELLED)
            return order

        return await self._idempotency.run(once, ANSWER, work)

    async def cancel_unpaid(self, order_id: str, reason: str) -> None:
        unpaid = Step(OrderStatus.CANCELLED, (OrderStatus.PENDING,), self._clock.now())
        await self._take(order_id, unpaid, _cancelled(reason))

    async def _new_order(self, user_id: str, given: list[OrderItem]) -> Order:
        """What is asked for, if it keeps the rules and the user may have it."""
        items = rules.items(given)
        total = rules.total(items)
        buyer = await self._buyer(user_id)
        now = self._clock.now()
        return Order(rules.new_order_id(), buyer, items, OrderStatus.PENDING, total, None, now, now, None)

    async def _buyer(self, user_id: str) -> str:
        if not is_id(user_id):
            raise InvalidOrderUser()
        try:
            user = await self._users.get_user(user_id.lower())
        except UserNotFound:
            raise InvalidOrderUser() from None
        if user.disabled_at is not None:
            raise InvalidOrderUser()
        return user.id

    def _step(self, status: OrderStatus, payment_id: str | None = None) -> Step:
        return Step(status, rules.SOURCES[status], self._clock.now(), payment_id)

    async def _take(
        self, order_id: str, step: Step, said: Callable[[Order], Event], keep: Keep[Order] | None = None
    ) -> Order | None:
        """The order after this step, which is said with it; None, and nothing is said, if it cannot be taken."""
        if not rules.is_order_id(order_id):
            return None
        async with self._store.transaction() as tx:
            order = await self._store.take(tx, order_id, step)
            if order is not None:
                await emit(tx, said(order), step.at)
                if keep is not None:
                    await keep(tx, order)
                await reach("orders.step.before_commit")
        await reach("orders.step.after_commit")
        return order

    async def _refusal(self, order_id: str, wanted: OrderStatus) -> OrderNotModifiable:
        """Why a step was not taken. Read after the transaction: what is answered is committed."""
        return rules.refusal(await self.get_order(order_id), wanted)


def _created(order: Order) -> OrderCreated:
    items: list[dict[str, Any]] = [
        {"product_id": item.product_id, "quantity": item.quantity, "price": float(item.price)} for item in order.items
    ]
    return OrderCreated(order.id, order.user_id, float(order.total), items, iso(order.created_at))


def _cancelled(reason: str) -> Callable[[Order], Event]:
    return lambda order: OrderCancelled(order.id, order.user_id, reason, iso(order.updated_at))
