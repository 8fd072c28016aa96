"""Checkout's public face."""

from abc import ABC, abstractmethod

from bedplate.kernel.errors import Kind, Problem
from bedplate.modules.orders.public import Order, OrderStatus


class PaymentIdMissing(Problem):
    kind = Kind.INVALID
    message = "A paymentId is required to confirm an order"


class OrderNotPaid(Problem):
    """There is no completed payment of this order with that id. Details: status (the order's present one), reason."""

    kind = Kind.CONFLICT
    message = "Order cannot be modified"


class Checkout(ABC):
    """Steps of an order that its payment has a say in."""

    @abstractmethod
    async def change_status(self, order_id: str, status: OrderStatus, payment_id: str | None) -> Order:
        """Whatever the state machine allows; confirmed only with a completed payment of this order.
        Raises OrderNotFound, OrderNotModifiable, PaymentIdMissing, OrderNotPaid."""
