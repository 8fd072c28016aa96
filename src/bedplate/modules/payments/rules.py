"""What payments and refunds must keep to, and how they are named."""

import re
from collections.abc import Mapping
from decimal import Decimal

from bedplate.kernel.db import rounded
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.settings import OperatorError
from bedplate.modules.orders.public import Order, OrderStatus
from bedplate.modules.payments.public import AlreadyPaid, Payment, PaymentMismatch, PaymentRequest, PaymentStatus

PAYMENT = "pay-"
TRANSACTION = "txn-"
REFUND = "ref-"

REASON = range(1, 501)
ORDER_CANCELLED = "Order cancelled"
ORDER_CANCELLED_CODE = "ORDER_CANCELLED"
REFUNDABLE = frozenset({PaymentStatus.COMPLETED, PaymentStatus.PARTIALLY_REFUNDED})

# Events carry a refusal's own code; a payment shows the documented one where there is one: "insufficient funds", and
# "invalid payment method" for what is wrong with the card itself.
DOCUMENTED_CODES: Mapping[str, str] = {
    "INSUFFICIENT_FUNDS": "PAY_002",
    "EXPIRED_CARD": "PAY_001",
    "INCORRECT_CVC": "PAY_001",
    "INCORRECT_NUMBER": "PAY_001",
}

# Amounts have two decimals all over the product. These currencies have none, or three: a charge would be wrong by a
# factor of a hundred or ten.
NOT_IN_HUNDREDTHS = re.compile(
    "BIF|CLP|DJF|GNF|ISK|JPY|KMF|KRW|MGA|PYG|RWF|UGX|VND|VUV|XAF|XOF|XPF|BHD|IQD|JOD|KWD|LYD|OMR|TND"
)
CODE = re.compile(r"[A-Z]{3}")


def new_payment_id() -> str:
    """`pay-` and a UUIDv7."""
    return PAYMENT + new_id()


def new_transaction_id() -> str:
    """`txn-` and a UUIDv7."""
    return TRANSACTION + new_id()


def new_refund_id() -> str:
    """`ref-` and a UUIDv7. Also the key that the provider is called with."""
    return REFUND + new_id()


def is_payment_id(text: str) -> bool:
    """Whether text can be a payment's id: any other is not worth a query."""
    return text.startswith(PAYMENT) and is_id(text.removeprefix(PAYMENT))


def currency(code: str) -> str:
    """The one that is charged in. Raises OperatorError."""
    if not CODE.fullmatch(code) or NOT_IN_HUNDREDTHS.fullmatch(code):
        raise OperatorError(f"{code} is not a currency with hundredths, such as USD")
    return code


def must_fit(request: PaymentRequest, order: Order, charged_in: str) -> None:
    """Whether this pays for that. Raises AlreadyPaid, PaymentMismatch."""
    if request.user_id.lower() != order.user_id:
        raise PaymentMismatch(field="user_id", reason="The order belongs to another user")
    if order.status is not OrderStatus.PENDING:
        raise AlreadyPaid()
    if request.currency.upper() != charged_in:
        raise PaymentMismatch(field="currency", reason=f"The currency must be {charged_in}")
    if not request.amount.is_finite() or request.amount <= 0:
        raise PaymentMismatch(field="amount", reason="The amount must be greater than 0")
    if request.amount != order.total:
        raise PaymentMismatch(field="amount", reason="The amount must be the total of the order")


def refund_reason(text: str) -> str:
    """Why money is given back. Raises InvalidField."""
    stripped = text.strip()
    if len(stripped) not in REASON:
        raise InvalidField(field="reason", reason=f"Reason must be between 1 and {REASON.stop - 1} characters")
    if not all(character.isprintable() or character == " " for character in stripped):
        raise InvalidField(field="reason", reason="Reason must not contain control characters")
    return stripped


def refund_amount(amount: Decimal) -> Decimal:
    """How much is given back, if it can be paid out. Raises InvalidField."""
    if not amount.is_finite() or amount <= 0:
        raise InvalidField(field="amount", reason="Amount must be greater than 0")
    # Only numbers of this size are sure to be roundable; no payment is near it.
    if amount < Decimal(10) ** 15 and amount != rounded(amount):
        raise InvalidField(field="amount", reason="Amount must have at most two decimals")
    return amount


def refundable(payment: Payment) -> Decimal:
    """How much is left to be given back."""
    if payment.status not in REFUNDABLE:
        return Decimal("0.00")
    return payment.amount - payment.refunded_amount
