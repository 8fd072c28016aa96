"""Payments in each deployment: here, and behind loopback HTTP."""

from decimal import Decimal

import pytest

from bedplate.kernel.errors import InvalidField
from bedplate.kernel.idempotency import IdempotencyKeyReused
from bedplate.kernel.ids import new_id
from bedplate.kernel.paging import Slice
from bedplate.modules.identity.public import Registration, Users
from bedplate.modules.orders.public import Order, OrderItem, OrderNotFound, Orders, OrderStatus
from bedplate.modules.payments.public import (
    AlreadyPaid,
    InvalidPaymentMethod,
    PaymentMethod,
    PaymentMismatch,
    PaymentNotFound,
    PaymentRequest,
    Payments,
    PaymentStatus,
    RefundNotAllowed,
)
from tests import factories
from tests.factories import PASSWORD
from tests.modules.payments.shop import card, once
from tests.world import World


@pytest.fixture
def payments(world: World) -> Payments:
    return world.front.get(Payments)


async def new_order(world: World) -> Order:
    user = await world.front.get(Users).register(
        Registration(factories.email(), PASSWORD, username=factories.username())
    )
    items = [OrderItem("prod-1", 2, Decimal("29.99")), OrderItem("prod-2", 1, Decimal("15.50"))]
    return await world.front.get(Orders).place(user.id, items)


def request(order: Order, method: PaymentMethod | None = None) -> PaymentRequest:
    return PaymentRequest(order.id, order.user_id, Decimal("75.48"), "USD", method or card())


async def test_an_order_is_paid_confirmed_refunded_and_listed(world: World, payments: Payments) -> None:
    order = await new_order(world)
    payment = await payments.pay(request(order), once("key", 1))
    assert await payments.pay(request(order), once("key", 1)) == payment
    with pytest.raises(IdempotencyKeyReused):
        await payments.pay(request(order), once("key", 2))
    with pytest.raises(AlreadyPaid):
        await payments.pay(request(order))
    await world.deliver()
    done = await payments.get_payment(payment.id)
    assert (done.status, done.amount) == (PaymentStatus.COMPLETED, Decimal("75.48"))
    confirmed = await world.front.get(Orders).get_order(order.id)
    assert (confirmed.status, confirmed.payment_id) == (OrderStatus.CONFIRMED, payment.id)
    refunded = await payments.refund(payment.id, Decimal("5.48"), "a reason", once("refund"))
    assert (refunded.status, refunded.refunded_amount) == (PaymentStatus.PARTIALLY_REFUNDED, Decimal("5.48"))
    await world.front.get(Orders).cancel(order.id, "changed my mind")
    await world.deliver()
    listed = await payments.list_payments(order.user_id, Slice(10, 0))
    assert [(each.id, each.status) for each in listed.items] == [(payment.id, PaymentStatus.REFUNDED)]
    assert (listed.total, listed.items[0].refund_reason) == (1, "Order cancelled")


async def test_a_declined_payment_cancels_its_order(world: World, payments: Payments) -> None:
    order = await new_order(world)
    payment = await payments.pay(request(order, card("4000000000009995")))
    await world.deliver()
    failed = await payments.get_payment(payment.id)
    assert (failed.status, failed.error_code) == (PaymentStatus.FAILED, "PAY_002")
    assert (await world.front.get(Orders).get_order(order.id)).status is OrderStatus.CANCELLED


async def test_what_is_refused_is_refused_with_the_same_words_everywhere(world: World, payments: Payments) -> None:
    order = await new_order(world)
    with pytest.raises(InvalidPaymentMethod) as refused:
        await payments.pay(request(order, card("4242424242424241")))
    assert refused.value.details == {"reason": "The card number is not valid"}
    with pytest.raises(PaymentMismatch, match="The amount must be the total of the order"):
        await payments.pay(PaymentRequest(order.id, order.user_id, Decimal(1), "USD", card()))
    with pytest.raises(OrderNotFound):
        await payments.pay(PaymentRequest(f"order-{new_id()}", order.user_id, Decimal(1), "USD", card()))
    with pytest.raises(PaymentNotFound):
        await payments.get_payment("pay-456")
    payment = await payments.pay(request(order))
    with pytest.raises(RefundNotAllowed) as not_yet:
        await payments.refund(payment.id, None, "a reason")
    assert not_yet.value.details == {"refundable": "0.00"}
    with pytest.raises(InvalidField):
        await payments.refund(payment.id, Decimal("0.001"), "a reason")
