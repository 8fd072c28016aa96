"""What happens to orders. Commerce document: Order Events; the others are additions."""

from dataclasses import dataclass
from typing import Any, ClassVar

from bedplate.kernel.events import Event


@dataclass(frozen=True, slots=True)
class OrderCreated(Event):
    """`total_amount` and the items' `price` are JSON numbers with two decimals, as the document prints them."""

    topic = "order_events"
    key_field = "order_id"
    ids: ClassVar[tuple[str, ...]] = ("order_id", "user_id")

    order_id: str
    user_id: str
    total_amount: float
    items: list[dict[str, Any]]
    created_at: str


@dataclass(frozen=True, slots=True)
class OrderConfirmed(Event):
    topic = "order_events"
    key_field = "order_id"

    order_id: str
    payment_id: str
    confirmed_at: str


@dataclass(frozen=True, slots=True)
class OrderStatusChanged(Event):
    """To processing, shipped or delivered."""

    topic = "order_events"
    key_field = "order_id"
    ids: ClassVar[tuple[str, ...]] = ("order_id", "user_id")

    order_id: str
    user_id: str
    previous_status: str
    status: str
    changed_at: str


@dataclass(frozen=True, slots=True)
class OrderCancelled(Event):
    topic = "order_events"
    key_field = "order_id"
    ids: ClassVar[tuple[str, ...]] = ("order_id", "user_id")

    order_id: str
    user_id: str
    reason: str
    cancelled_at: str
