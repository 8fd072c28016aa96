"""Payments' public face: values, problems and the facade."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from bedplate.kernel.errors import Kind, Problem
from bedplate.kernel.idempotency import Once
from bedplate.kernel.paging import Page, Slice


class PaymentStatus(StrEnum):
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"


@dataclass(frozen=True, slots=True)
class PaymentMethod:
    """How somebody pays. Number and cvv are never kept, logged or repeated: they go to the provider and are
    forgotten. `type`: credit_card, paypal or bank_transfer; the rest is for cards."""

    type: str
    card_number: str | None = field(default=None, repr=False)
    expiry_month: str | None = None
    expiry_year: str | None = None
    cvv: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """What a client asks for; amount, user and state are checked against the order."""

    order_id: str
    user_id: str
    amount: Decimal
    currency: str
    method: PaymentMethod


@dataclass(frozen=True, slots=True)
class Payment:
    """`id` and `transaction_id` as they are printed: `pay-…`, `txn-…`. `error_code`: of failed ones. The documented
    PAY_002 for insufficient funds and PAY_001 for a card that is no good (expired, wrong number or security code), else
    CARD_DECLINED, AUTHENTICATION_REQUIRED, PROCESSING_ERROR, PROVIDER_REFUSED or ORDER_CANCELLED. The event
    `payment_failed` has INSUFFICIENT_FUNDS, EXPIRED_CARD, INCORRECT_NUMBER and INCORRECT_CVC instead of PAY_…."""

    id: str
    order_id: str
    user_id: str
    amount: Decimal
    currency: str
    status: PaymentStatus
    method: str
    card_brand: str | None
    card_last4: str | None
    transaction_id: str | None
    failure_reason: str | None
    error_code: str | None
    refunded_amount: Decimal
    refund_reason: str | None
    created_at: datetime
    completed_at: datetime | None
    failed_at: datetime | None
    refunded_at: datetime | None


class InvalidPaymentMethod(Problem):
    """Unknown type, or a card that cannot be one. Details: reason (a whole sentence, without the number)."""

    kind = Kind.INVALID
    message = "Invalid payment method"


class PaymentMismatch(Problem):
    """Amount, currency or user are not those of the order. Details: field, reason."""

    kind = Kind.INVALID
    message = "{reason}"


class PaymentNotFound(Problem):
    kind = Kind.NOT_FOUND
    message = "Payment not found"


class AlreadyPaid(Problem):
    """The order has a payment, or can no longer be paid."""

    kind = Kind.CONFLICT
    message = "Payment already processed"


class RefundNotAllowed(Problem):
    """Not completed, or more than is left. Details: refundable (decimal text)."""

    kind = Kind.CONFLICT
    message = "Refund not allowed"


class Payments(ABC):
    """Payments of all users."""

    @abstractmethod
    async def pay(self, request: PaymentRequest, once: Once | None = None) -> Payment:
        """A payment in status processing; its outcome comes as an event and by `get_payment`.
        Raises InvalidPaymentMethod, OrderNotFound, PaymentMismatch, AlreadyPaid, Unavailable (orders or the provider
        cannot be asked), and what `once` raises."""

    @abstractmethod
    async def get_payment(self, payment_id: str) -> Payment:
        """Raises PaymentNotFound."""

    @abstractmethod
    async def list_payments(self, user_id: str, part: Slice) -> Page[Payment]:
        """One user's, newest first, with the exact total."""

    @abstractmethod
    async def refund(self, payment_id: str, amount: Decimal | None, reason: str, once: Once | None = None) -> Payment:
        """Give back `amount`, or all that is left. Reserved at once, executed by the provider soon after; should that
        refuse, which is logged, the amount is open again.
        Raises InvalidField, PaymentNotFound, RefundNotAllowed, what `once` raises."""
