"""Notices: what each event tells its user, in a mail and in a push message."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bedplate.kernel.events import Event
from bedplate.modules.identity.events import UserCreated, UserVerified
from bedplate.modules.identity.public import User
from bedplate.modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed

MAXIMUM_ITEMS = 20
MAXIMUM_PRODUCT = 40
MAXIMUM_REASON = 100
PAYMENT_FAILED = "payment_failed"


@dataclass(frozen=True, slots=True)
class Notice:
    """`template` is empty where no mail is due, or another part writes it."""

    title: str
    push: str
    template: str = ""
    subject: str = ""
    variables: Mapping[str, object] = field(default_factory=dict)


def _user_created(event: UserCreated, user: User, currency: str) -> Notice:
    return Notice("Welcome", "Your account has been created. Please verify your email address.")


def _user_verified(event: UserVerified, user: User, currency: str) -> Notice:
    return Notice(
        title="Account Verified",
        push="Your account has been verified.",
        template="user_verified",
        subject="Account Verified Successfully",
    )


def _order_created(event: OrderCreated, user: User, currency: str) -> Notice:
    total = f"{_money(event.total_amount)} {currency}"
    # Product ids are the client's words. Who has not shown that the address is his may have taken somebody else's to
    # have them mailed there.
    shown = event.items[:MAXIMUM_ITEMS] if user.email_verified else []
    items = [(item["quantity"], _cut(item["product_id"], MAXIMUM_PRODUCT), _money(item["price"])) for item in shown]
    more = len(event.items) - len(items) if items else 0
    return Notice(
        title="Order Received",
        push=f"We have received your order {event.order_id} over {total}.",
        template="order_created",
        subject=f"Order Received - {event.order_id}",
        variables={"order_id": event.order_id, "total": total, "items": items, "more": more},
    )


def _order_confirmed(event: OrderConfirmed, user: User, currency: str) -> Notice:
    return Notice(
        title="Order Confirmed",
        push=f"Your order {event.order_id} has been paid and confirmed.",
        template="order_confirmed",
        subject=f"Order Confirmation - {event.order_id}",
        variables={"order_id": event.order_id, "payment_id": event.payment_id},
    )


def _order_cancelled(event: OrderCancelled, user: User, currency: str) -> Notice:
    return Notice(
        title="Order Cancelled",
        push=f"Your order {event.order_id} has been cancelled.",
        template="order_cancelled",
        subject=f"Order Cancelled - {event.order_id}",
        # Of the reasons only this one is worded: others may be the words of whoever cancelled.
        variables={"order_id": event.order_id, "payment_failed": event.reason == PAYMENT_FAILED},
    )


def _payment_completed(event: PaymentCompleted, user: User, currency: str) -> Notice:
    amount = f"{_money(event.amount)} {event.currency}"
    return Notice(
        title="Payment Successful",
        push=f"Your payment of {amount} for order {event.order_id} was successful.",
        template="payment_completed",
        subject=f"Payment Confirmation - Order {event.order_id}",
        variables={"order_id": event.order_id, "amount": amount, "transaction_id": event.transaction_id},
    )


def _payment_failed(event: PaymentFailed, user: User, currency: str) -> Notice:
    reason = _cut(event.reason, MAXIMUM_REASON)
    return Notice(
        title="Payment Failed",
        push=f"Your payment for order {event.order_id} failed: {reason}",
        template="payment_failed",
        subject=f"Payment Failed - Order {event.order_id}",
        variables={"order_id": event.order_id, "reason": reason},
    )


# `currency`: what everything costs, where the event does not say.
NOTICES: Mapping[type[Event], Callable[[Any, User, str], Notice]] = {
    UserCreated: _user_created,
    UserVerified: _user_verified,
    OrderCreated: _order_created,
    OrderConfirmed: _order_confirmed,
    OrderCancelled: _order_cancelled,
    PaymentCompleted: _payment_completed,
    PaymentFailed: _payment_failed,
}


def _money(amount: float) -> str:
    return f"{amount:.2f}"


def _cut(text: str, longest: int) -> str:
    """One line of at most so many characters."""
    line = "".join(character if character.isprintable() else " " for character in text[: longest + 1])
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
