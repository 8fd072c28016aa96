"""What happens to payments. Commerce document: Payment Events; the others are additions."""

from dataclasses import dataclass
from typing import ClassVar

from bedplate.kernel.events import Event


@dataclass(frozen=True, slots=True)
class PaymentRequested(Event):
    """To be charged. Said by payments to itself."""

    topic = "payment_events"
    key_field = "payment_id"
    published: ClassVar[bool] = False

    payment_id: str


@dataclass(frozen=True, slots=True)
class RefundRequested(Event):
    """To be given back. Said by payments to itself."""

    topic = "payment_events"
    key_field = "payment_id"
    published: ClassVar[bool] = False

    payment_id: str
    refund_id: str


@dataclass(frozen=True, slots=True)
class PaymentCompleted(Event):
    topic = "payment_events"
    key_field = "payment_id"
    ids: ClassVar[tuple[str, ...]] = ("payment_id", "order_id", "user_id")

    payment_id: str
    order_id: str
    user_id: str
    amount: float
    currency: str
    transaction_id: str
    completed_at: str


@dataclass(frozen=True, slots=True)
class PaymentFailed(Event):
    topic = "payment_events"
    key_field = "payment_id"
    ids: ClassVar[tuple[str, ...]] = ("payment_id", "order_id")

    payment_id: str
    order_id: str
    reason: str
    error_code: str
    failed_at: str


@dataclass(frozen=True, slots=True)
class PaymentRefunded(Event):
    topic = "payment_events"
    key_field = "payment_id"
    ids: ClassVar[tuple[str, ...]] = ("payment_id", "order_id", "user_id")

    payment_id: str
    order_id: str
    user_id: str
    refund_id: str
    amount: float
    currency: str
    reason: str
    refunded_at: str
