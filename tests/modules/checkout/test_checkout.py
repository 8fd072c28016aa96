"""Checkout: orders and payments that meet, through the facades in each deployment."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from bedplate.kernel.clock import iso
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import Delivery, dead_letters
from bedplate.modules.checkout.checkout import Settlement
from bedplate.modules.checkout.public import Checkout, OrderNotPaid, PaymentIdMissing
from bedplate.modules.orders.public import Order, OrderNotFound, OrderNotModifiable, OrderStatus
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed
from bedplate.modules.payments.public import Payment, PaymentMethod, PaymentRequest, Payments, PaymentStatus
from tests.modules.orders.shop import Shop, outcomes
from tests.world import World

GOOD, WITHOUT_FUNDS = "4111111111111111", "4000000000009995"
CROWD = 50


@dataclass
class Counter(Shop):
    """A shop with a place to pay."""

    checkout: Checkout
    payments: Payments

    async def pay(self, order: Order, card: str = GOOD) -> Payment:
        """Ask for the money: what comes of it is delivered later."""
        method = PaymentMethod("credit_card", card, "12", "2039", "123")
        return await self.payments.pay(PaymentRequest(order.id, order.user_id, order.total, "USD", method))

    async def outcome(self, payment: Payment) -> Payment:
        """The payment once everybody has heard everything."""
        await self.world.deliver()
        return await self.payments.get_payment(payment.id)

    def deaf(self) -> None:
        """Orders hear no more of payments."""
        for event in (PaymentCompleted, PaymentFailed):
            heard_by: Sequence[str] = self.db.routes[event.__name__]
            self.db.routes = {**self.db.routes, event.__name__: [each for each in heard_by if each != "orders"]}

    async def paid_and_not_heard_of(self) -> tuple[Order, Payment]:
        """A pending order with a completed payment."""
        self.deaf()
        order = await self.order()
        payment = await self.outcome(await self.pay(order))
        assert payment.status is PaymentStatus.COMPLETED
        assert await self.orders.get_order(order.id) == order
        return order, payment


@pytest.fixture
def shop(world: World) -> Counter:
    return Counter.of(world, checkout=world.front.get(Checkout), payments=world.front.get(Payments))


async def hear(shop: Counter, event: PaymentCompleted | PaymentFailed) -> None:
    """Deliver this to the orders, as the relay does."""
    for listener in Settlement(shop.orders).listeners():
        if isinstance(event, listener.event):
            await listener.handle(Delivery(event, new_id(), listener.name, shop.clock.now()))


def completed(order: Order, payment_id: str) -> PaymentCompleted:
    return PaymentCompleted(payment_id, order.id, order.user_id, 75.48, "USD", "txn-1", "2026-01-01T00:00:00Z")


def failed(order: Order, payment_id: str) -> PaymentFailed:
    return PaymentFailed(payment_id, order.id, "Insufficient funds", "INSUFFICIENT_FUNDS", "2026-01-01T00:00:00Z")


async def test_a_completed_payment_confirms_its_order(shop: Counter) -> None:
    order = await shop.order()
    payment = await shop.outcome(await shop.pay(order))
    confirmed = await shop.orders.get_order(order.id)
    assert (payment.status, confirmed.status) == (PaymentStatus.COMPLETED, OrderStatus.CONFIRMED)
    assert confirmed.payment_id == payment.id
    event = (await shop.said(order.id))[-1]
    assert (event["event_type"], event["data"]["payment_id"]) == ("order_confirmed", payment.id)


async def test_a_failed_payment_cancels_its_order(shop: Counter) -> None:
    order = await shop.order()
    payment = await shop.outcome(await shop.pay(order, WITHOUT_FUNDS))
    cancelled = await shop.orders.get_order(order.id)
    assert (payment.status, cancelled.status) == (PaymentStatus.FAILED, OrderStatus.CANCELLED)
    assert cancelled.payment_id is None
    assert cancelled.cancelled_at is not None
    event = (await shop.said(order.id))[-1]
    assert event["data"] == {"reason": "payment_failed", "cancelled_at": iso(cancelled.cancelled_at)}


async def test_an_order_that_was_cancelled_before_its_payment_ended_costs_nothing(shop: Counter) -> None:
    order = await shop.order()
    payment = await shop.pay(order)
    cancelled = await shop.orders.cancel(order.id, "changed my mind")
    payment = await shop.outcome(payment)
    assert await shop.orders.get_order(order.id) == cancelled
    assert payment.status is PaymentStatus.FAILED or payment.refunded_amount == payment.amount
    assert await shop.types_said(order.id) == ["order_created", "order_cancelled"]
    assert await dead_letters(shop.db) == []


async def test_cancelling_a_paid_order_by_its_status_gives_the_money_back(shop: Counter) -> None:
    order = await shop.order()
    payment = await shop.outcome(await shop.pay(order))
    cancelled = await shop.checkout.change_status(order.id, OrderStatus.CANCELLED, None)
    assert (cancelled.status, cancelled.payment_id) == (OrderStatus.CANCELLED, payment.id)
    assert (await shop.said(order.id))[-1]["data"]["reason"] == "Cancelled by status change"
    payment = await shop.outcome(payment)
    assert (payment.status, payment.refunded_amount) == (PaymentStatus.REFUNDED, Decimal("75.48"))


async def test_an_outcome_heard_twice_changes_nothing_the_second_time(shop: Counter) -> None:
    paid, unpaid = await shop.order(), await shop.order()
    for _ in range(3):
        await hear(shop, completed(paid, "pay-1"))
        await hear(shop, failed(unpaid, "pay-2"))
        shop.clock.advance(1)
    assert await shop.types_said(paid.id) == ["order_created", "order_confirmed"]
    assert await shop.types_said(unpaid.id) == ["order_created", "order_cancelled"]


async def test_an_outcome_heard_late_changes_nothing_that_came_since(shop: Counter) -> None:
    for status in (OrderStatus.PROCESSING, OrderStatus.SHIPPED, OrderStatus.DELIVERED, OrderStatus.CANCELLED):
        order = await shop.order(status)
        await hear(shop, completed(order, order.payment_id or "pay-1"))
        await hear(shop, failed(order, "pay-2"))
        assert await shop.orders.get_order(order.id) == order


async def test_a_second_payment_of_an_order_is_for_a_person_to_see(shop: Counter) -> None:
    order = await shop.order(OrderStatus.CONFIRMED)
    with pytest.raises(OrderNotModifiable):
        await hear(shop, completed(order, "pay-of-somebody-else"))
    assert await shop.orders.get_order(order.id) == order


async def test_a_paid_order_that_is_not_known_is_for_a_person_to_see(shop: Counter) -> None:
    order = await shop.order()
    await hear(shop, failed(order, "pay-1"))
    lost: Any = completed(order, "pay-1")
    with pytest.raises(OrderNotFound):
        await hear(shop, PaymentCompleted("pay-1", f"order-{new_id()}", lost.user_id, 1.0, "USD", "txn-1", ""))
    await hear(shop, PaymentFailed("pay-1", f"order-{new_id()}", "Declined", "CARD_DECLINED", ""))


async def test_nobody_confirms_an_order_without_naming_a_payment(shop: Counter) -> None:
    order = await shop.order()
    for nothing in (None, ""):
        with pytest.raises(PaymentIdMissing):
            await shop.checkout.change_status(order.id, OrderStatus.CONFIRMED, nothing)
    assert await shop.orders.get_order(order.id) == order


async def test_nobody_confirms_an_unpaid_order(shop: Counter) -> None:
    order, other = await shop.order(), await shop.order()
    payment = await shop.pay(order)
    theirs = await shop.outcome(await shop.pay(other))
    _, unheard = await shop.paid_and_not_heard_of()
    assert theirs.status is PaymentStatus.COMPLETED
    refused = await shop.order()
    declined = await shop.outcome(await shop.pay(refused, WITHOUT_FUNDS))
    assert declined.status is PaymentStatus.FAILED
    for target, payment_id in (
        (await shop.order(), payment.id),
        (await shop.order(), theirs.id),
        (await shop.order(), unheard.id),
        (refused, declined.id),
        *[
            (await shop.order(), each)
            for each in ("pay-1", "\0", "x" * 1000, f"pay-{new_id()}", order.id, theirs.order_id)
        ],
    ):
        with pytest.raises(OrderNotPaid):
            await shop.checkout.change_status(target.id, OrderStatus.CONFIRMED, payment_id)
        assert await shop.orders.get_order(target.id) == target


async def test_a_payment_under_way_is_no_payment(shop: Counter) -> None:
    order = await shop.order()
    payment = await shop.pay(order)
    assert payment.status is PaymentStatus.PROCESSING
    with pytest.raises(OrderNotPaid):
        await shop.checkout.change_status(order.id, OrderStatus.CONFIRMED, payment.id)
    assert await shop.orders.get_order(order.id) == order


async def test_money_that_was_given_back_confirms_nothing(shop: Counter) -> None:
    order, payment = await shop.paid_and_not_heard_of()
    await shop.payments.refund(payment.id, None, "changed my mind")
    with pytest.raises(OrderNotPaid):
        await shop.checkout.change_status(order.id, OrderStatus.CONFIRMED, payment.id)
    assert await shop.orders.get_order(order.id) == order


async def test_a_paid_order_is_confirmed_by_its_status_before_or_after_it_was_heard_of(shop: Counter) -> None:
    heard = await shop.order()
    payment = await shop.outcome(await shop.pay(heard))
    before = await shop.orders.get_order(heard.id)
    assert await shop.checkout.change_status(heard.id, OrderStatus.CONFIRMED, payment.id) == before
    order, payment = await shop.paid_and_not_heard_of()
    confirmed = await shop.checkout.change_status(order.id, OrderStatus.CONFIRMED, payment.id)
    assert (confirmed.status, confirmed.payment_id) == (OrderStatus.CONFIRMED, payment.id)
    await hear(shop, completed(order, payment.id))
    assert await shop.orders.get_order(order.id) == confirmed
    for each in (heard, order):
        assert await shop.types_said(each.id) == ["order_created", "order_confirmed"]


# Requirement: pending, confirmed, processing, shipped, delivered; cancelled from the first three; nothing else. That a
# confirmed order is confirmed by its own payment again is an answer that is repeated, not a step.
ALLOWED = {
    ("pending", "confirmed"),
    ("confirmed", "confirmed"),
    ("confirmed", "processing"),
    ("processing", "shipped"),
    ("shipped", "delivered"),
    ("pending", "cancelled"),
    ("confirmed", "cancelled"),
    ("processing", "cancelled"),
}


async def brought_to(shop: Counter, status: OrderStatus) -> tuple[Order, Payment]:
    order, payment = await shop.paid_and_not_heard_of()
    if status is OrderStatus.CANCELLED:
        return await shop.orders.cancel(order.id, "changed my mind"), payment
    for step in list(OrderStatus)[1 : list(OrderStatus).index(status) + 1]:
        order = await shop.checkout.change_status(order.id, step, payment.id)
    return order, payment


async def test_the_status_changes_by_these_steps_and_no_others(shop: Counter) -> None:
    taken = set()
    for source in OrderStatus:
        for target in OrderStatus:
            order, payment = await brought_to(shop, source)
            try:
                changed = await shop.checkout.change_status(order.id, target, payment.id)
            except OrderNotModifiable as refused:
                assert refused.details["status"] == source.value
                assert await shop.orders.get_order(order.id) == order
            else:
                assert changed.status is target
                taken.add((source.value, target.value))
    assert taken == ALLOWED


async def test_the_status_of_an_unknown_order_is_not_found(shop: Counter) -> None:
    _, payment = await shop.paid_and_not_heard_of()
    for order_id in ("", "order-", "order-123", "\0", "x" * 1000, f"order-{new_id()}", payment.id):
        for status in OrderStatus:
            with pytest.raises(OrderNotFound):
                await shop.checkout.change_status(order_id, status, payment.id)


async def test_many_who_confirm_by_the_same_payment_do_it_once(shop: Counter) -> None:
    order, payment = await shop.paid_and_not_heard_of()

    async def confirm() -> Order:
        return await shop.checkout.change_status(order.id, OrderStatus.CONFIRMED, payment.id)

    answers, refusals = await outcomes([confirm] * CROWD)
    assert refusals == []
    assert all(answer == answers[0] for answer in answers)
    assert await shop.types_said(order.id) == ["order_created", "order_confirmed"]
