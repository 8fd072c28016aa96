"""The state machine of orders against a model of it: any sequence of calls, on each engine."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete

from bedplate.kernel.mongo import MongoDocuments
from bedplate.kernel.outbox import OutboxRow
from bedplate.kernel.paging import Slice
from bedplate.models import OrderRow
from bedplate.modules.identity.public import User
from bedplate.modules.orders.public import Order, OrderNotModifiable, OrderStatus
from tests.modules.orders.shop import ITEMS, Shop, on_every_store
from tests.stores import empty

T = TypeVar("T")

PAYMENTS = ("pay-1", "pay-2")
STEP_SECONDS = 10

# As the requirement says it, and not taken from the code that is tested.
STEPS = {
    "pending": {"confirmed", "cancelled"},
    "confirmed": {"processing", "cancelled"},
    "processing": {"shipped", "cancelled"},
    "shipped": {"delivered"},
    "delivered": set(),
    "cancelled": set(),
}


@dataclass
class Expected:
    """What the model knows of one order."""

    buyer: User
    status: str = "pending"
    payment_id: str | None = None
    said: list[tuple[str, str | None]] = field(default_factory=lambda: [("order_created", None)])

    def may(self, status: str) -> bool:
        return status in STEPS[self.status]


class Stateful(RuleBasedStateMachine):
    """Calls the facade and the model alike. Runs in a thread; the facade lives on the loop of the tests."""

    placed = Bundle("placed")

    def __init__(self, shop: Shop, buyers: list[User], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.shop = shop
        self.orders = shop.orders
        self.buyers = buyers
        self.loop = loop
        self.model: dict[str, Expected] = {}

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(STEP_SECONDS)

    @initialize()
    def begin_with_no_order(self) -> None:
        async def forget() -> None:
            if isinstance(documents := self.shop.world.runtime.documents.get("orders"), MongoDocuments):
                await empty(documents)
            async with self.shop.db.transaction() as tx:
                await tx.execute(delete(OrderRow))
                await tx.execute(delete(OutboxRow))

        self.call(forget())

    @rule(target=placed, buyer=st.integers(0, 1))
    def place(self, buyer: int) -> str:
        order = self.call(self.orders.place(self.buyers[buyer].id, ITEMS))
        assert order.id not in self.model
        self.model[order.id] = Expected(self.buyers[buyer])
        return self.as_expected(order)

    @rule(order_id=placed, payment_id=st.sampled_from(PAYMENTS))
    def confirm(self, order_id: str, payment_id: str) -> None:
        expected = self.model[order_id]
        repeated = (expected.status, expected.payment_id) == ("confirmed", payment_id)
        if self.tried(self.orders.confirm(order_id, payment_id), expected.may("confirmed") or repeated, order_id):
            if not repeated:
                expected.said.append(("order_confirmed", payment_id))
            expected.status, expected.payment_id = "confirmed", payment_id
            self.as_expected(self.call(self.orders.get_order(order_id)))

    @rule(order_id=placed, status=st.sampled_from(OrderStatus))
    def advance(self, order_id: str, status: OrderStatus) -> None:
        expected = self.model[order_id]
        allowed = status.value in ("processing", "shipped", "delivered") and expected.may(status.value)
        if self.tried(self.orders.advance(order_id, status), allowed, order_id):
            expected.said.append(("order_status_changed", status.value))
            expected.status = status.value

    @rule(order_id=placed, reason=st.sampled_from(("changed my mind", "")))
    def cancel(self, order_id: str, reason: str) -> None:
        expected = self.model[order_id]
        if self.tried(self.orders.cancel(order_id, reason), expected.may("cancelled"), order_id):
            expected.said.append(("order_cancelled", reason))
            expected.status = "cancelled"

    @rule(order_id=placed)
    def cancel_unpaid(self, order_id: str) -> None:
        expected = self.model[order_id]
        self.call(self.orders.cancel_unpaid(order_id, "payment_failed"))
        if expected.status == "pending":
            expected.said.append(("order_cancelled", "payment_failed"))
            expected.status = "cancelled"

    @rule(buyer=st.integers(0, 1), status=st.none() | st.sampled_from(OrderStatus), limit=st.integers(1, 5))
    def look(self, buyer: int, status: OrderStatus | None, limit: int) -> None:
        page = self.call(self.orders.list_orders(self.buyers[buyer].id, status, Slice(limit, 0)))
        mine = [order_id for order_id, each in self.model.items() if each.buyer is self.buyers[buyer]]
        wanted = [each for each in reversed(mine) if status is None or self.model[each].status == status.value]
        assert ([order.id for order in page.items], page.total) == (wanted[:limit], len(wanted))

    @invariant()
    def every_order_is_as_the_model_has_it(self) -> None:
        for order_id in self.model:
            self.as_expected(self.call(self.orders.get_order(order_id)))

    @invariant()
    def everything_was_said_once_in_order_and_nothing_else(self) -> None:
        told: dict[str, list[tuple[str, str | None]]] = {order_id: [] for order_id in self.model}
        for event in self.call(self.shop.said()):
            data = event["data"]
            point = data.get("payment_id", data.get("status", data.get("reason")))
            told[event["order_id"]].append((event["event_type"], point))
        assert told == {order_id: each.said for order_id, each in self.model.items()}

    def tried(self, step: Coroutine[Any, Any, Order], allowed: bool, order_id: str) -> bool:
        """Whether the step was taken; that it was refused is right only where the model does not allow it."""
        before = self.model[order_id].status
        try:
            self.call(step)
        except OrderNotModifiable as refused:
            assert not allowed
            assert refused.details["status"] == before
            return False
        assert allowed
        return True

    def as_expected(self, order: Order) -> str:
        expected = self.model[order.id]
        assert (order.status.value, order.payment_id) == (expected.status, expected.payment_id)
        assert (order.user_id, order.items) == (expected.buyer.id, ITEMS)
        assert (order.cancelled_at is None) == (expected.status != "cancelled")
        assert order.created_at <= order.updated_at
        return order.id


@on_every_store
async def test_no_sequence_of_calls_makes_orders_differ_from_the_model(shop: Shop) -> None:
    buyers = [await shop.buyer() for _ in range(2)]
    loop = asyncio.get_running_loop()
    sized = settings(
        max_examples=8 if shop.world.runtime.documents else 20,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    await asyncio.to_thread(run_state_machine_as_test, lambda: Stateful(shop, buyers, loop), settings=sized)
