"""Orders' public face: values, problems and the facade."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from bedplate.kernel.errors import Kind, Problem
from bedplate.kernel.idempotency import Once
from bedplate.kernel.paging import Page, Slice

MAXIMUM_ITEMS = 100
"""Of one order."""


class OrderStatus(StrEnum):
    """pending, confirmed, processing, shipped, delivered in this order; cancelled from the first three."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    PROCESSING = "processing"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class OrderItem:
    """`price`: of one piece, with two decimals; more are rounded, half up, when an order is placed."""

    product_id: str
    quantity: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    """`id` as it is printed: `order-…`. `total` is computed here, never by the client."""

    id: str
    user_id: str
    items: list[OrderItem]
    status: OrderStatus
    total: Decimal
    payment_id: str | None
    created_at: datetime
    updated_at: datetime
    cancelled_at: datetime | None


class InvalidOrderUser(Problem):
    """Malformed, unknown or disabled."""

    kind = Kind.INVALID
    message = "Invalid user ID"


class EmptyOrder(Problem):
    kind = Kind.INVALID
    message = "Order must contain at least one item"


class OrderTooLarge(Problem):
    """More items, or more money, than an order may have."""

    kind = Kind.INVALID
    message = "{reason}"


class OrderNotFound(Problem):
    kind = Kind.NOT_FOUND
    message = "Order not found"


class OrderNotModifiable(Problem):
    """The state machine has no such step. Details: status (the present one), reason (a sentence)."""

    kind = Kind.CONFLICT
    message = "Order cannot be modified"


class Orders(ABC):
    """Orders of all users."""

    @abstractmethod
    async def place(self, user_id: str, items: list[OrderItem], once: Once | None = None) -> Order:
        """A new order, pending. Raises EmptyOrder, OrderTooLarge, InvalidField (of an item: `items.0.price`; of
        `items`: they cost nothing together), InvalidOrderUser, Unavailable (users cannot be asked), and what `once`
        raises."""

    @abstractmethod
    async def get_order(self, order_id: str) -> Order:
        """Raises OrderNotFound."""

    @abstractmethod
    async def list_orders(self, user_id: str, status: OrderStatus | None, part: Slice) -> Page[Order]:
        """One user's, newest first, with the exact total."""

    @abstractmethod
    async def confirm(self, order_id: str, payment_id: str) -> Order:
        """A pending order is paid. The caller has made sure of that. Confirmed before by the same payment: no change.
        Raises OrderNotFound, OrderNotModifiable."""

    @abstractmethod
    async def advance(self, order_id: str, status: OrderStatus) -> Order:
        """To processing, shipped or delivered. Raises OrderNotFound, OrderNotModifiable."""

    @abstractmethod
    async def cancel(self, order_id: str, reason: str, once: Once | None = None) -> Order:
        """What was paid is given back: payments listen.
        Raises OrderNotFound, OrderNotModifiable, what `once` raises."""

    @abstractmethod
    async def cancel_unpaid(self, order_id: str, reason: str) -> None:
        """Cancel it if it is still pending; nothing happens otherwise, or if there is no such order."""
