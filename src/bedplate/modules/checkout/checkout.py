"""Checkout: the implementation of the Checkout facade, and what an order does when its payment has an outcome."""

from bedplate.kernel.failpoints import reach
from bedplate.kernel.outbox import Delivery, Listener
from bedplate.modules.checkout.public import Checkout, OrderNotPaid, PaymentIdMissing
from bedplate.modules.orders.public import Order, OrderNotModifiable, Orders, OrderStatus
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed
from bedplate.modules.payments.public import PaymentNotFound, Payments, PaymentStatus

CANCELLED_BY_STATUS = "Cancelled by status change"
PAYMENT_FAILED = "payment_failed"


class CheckoutService(Checkout):
    def __init__(self, orders: Orders, payments: Payments) -> None:
        self._orders = orders
        self._payments = payments

    async def change_status(self, order_id: str, status: OrderStatus, payment_id: str | None) -> Order:
        if status is OrderStatus.CONFIRMED:
            return await self._confirm(order_id, payment_id)
        if status is OrderStatus.CANCELLED:
            return await self._orders.cancel(order_id, CANCELLED_BY_STATUS)
        return await self._orders.advance(order_id, status)  # which refuses that it becomes pending again

    async def _confirm(self, order_id: str, payment_id: str | None) -> Order:
        if not payment_id:
            raise PaymentIdMissing()
        order = await self._orders.get_order(order_id)
        try:
            payment = await self._payments.get_payment(payment_id)
        except PaymentNotFound:
            raise _not_paid(order) from None
        if payment.order_id != order.id or payment.status is not PaymentStatus.COMPLETED:
            raise _not_paid(order)
        return await self._orders.confirm(order.id, payment.id)


def _not_paid(order: Order) -> OrderNotPaid:
    return OrderNotPaid(status=order.status.value, reason="No completed payment of this order has this paymentId")


class Settlement:
    """Listens to payments on behalf of orders. Both answers can be given twice: the state machine of orders, not an
    inbox, sees to it that the second changes nothing."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def listeners(self) -> list[Listener]:
        """What orders want to hear of payments."""
        return [
            Listener("orders.settlement", PaymentCompleted, self._paid),
            Listener("orders.settlement", PaymentFailed, self._not_paid),
        ]

    async def _paid(self, delivery: Delivery) -> None:
        event: PaymentCompleted = delivery.event
        try:
            await self._orders.confirm(event.order_id, event.payment_id)
        except OrderNotModifiable:
            order = await self._orders.get_order(event.order_id)
            # Cancelled meanwhile: payments hear of that too, and give the money back. Or it was confirmed by this
            # very payment and has gone on since. Anything else is for a person to see.
            if order.status is not OrderStatus.CANCELLED and order.payment_id != event.payment_id:
                raise
        await reach("checkout.settlement.after_confirm")

    async def _not_paid(self, delivery: Delivery) -> None:
        event: PaymentFailed = delivery.event
        await self._orders.cancel_unpaid(event.order_id, PAYMENT_FAILED)
        await reach("checkout.settlement.after_cancel")
