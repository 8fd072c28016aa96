"""The reconciler itself: of a sound world it says nothing, and of each thing that is wrong it says which."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest

from tests.faults.commerce.reconcile import Charge, Stores, violations
from tests.faults.commerce.shoppers import History, Seen

NOW = datetime(2026, 11, 25, tzinfo=UTC)
TOTAL = Decimal("75.48")
PAID, CANCELLED = "order-paid", "order-cancelled"
TITLES = {
    "Order Received": "Order Received - {}",
    "Order Confirmed": "Order Confirmation - {}",
    "Payment Successful": "Payment Confirmation - Order {}",
    "Order Cancelled": "Order Cancelled - {}",
}


def sound() -> tuple[Stores, History]:
    """One order that is paid, and one that was cancelled after it was paid, with the money given back."""
    orders, payments, refunds, charges, mails, pushes = [], [], [], [], [], []
    history = History(users={"user": "a@example.com"})
    for order, flow, cancelled in ((PAID, "1", False), (CANCELLED, "2", True)):
        payment, refund = f"pay-{flow}", f"ref-{flow}"
        items = [{"product_id": f"flow-{flow}"}]
        status, when = ("cancelled", NOW) if cancelled else ("confirmed", None)
        orders.append(
            SimpleNamespace(
                id=order, user_id="user", total=TOTAL, items=items, status=status, payment_id=payment, cancelled_at=when
            )
        )
        given_back = TOTAL if cancelled else Decimal(0)
        payments.append(
            SimpleNamespace(
                id=payment,
                order_id=order,
                amount=TOTAL,
                refunded_amount=given_back,
                status="refunded" if cancelled else "completed",
                completed_at=NOW,
                failed_at=None,
            )
        )
        charges.append(Charge(f"ch-{flow}", payment, TOTAL, [(refund, TOTAL)] if cancelled else []))
        if cancelled:
            refunds.append(SimpleNamespace(id=refund, status="succeeded"))
        for title, subject in TITLES.items():
            if cancelled or title != "Order Cancelled":
                mails.append(SimpleNamespace(subject=subject.format(order)))
                pushes.append(SimpleNamespace(title=title, body=f"Of {order}.", user_id="user"))
        history.flows[flow] = Seen(flow, "user", TOTAL, order, payment, cancelled, given_back)
    pushes.append(SimpleNamespace(title="Welcome", body="Hello.", user_id="user"))
    return Stores(orders, payments, refunds, mails, pushes, [SimpleNamespace(id="user")], charges), history


def test_of_a_sound_world_it_says_nothing() -> None:
    assert violations(*sound()) == []


def without(field: str) -> Callable[[Stores], None]:
    def take_away(stores: Stores) -> None:
        setattr(stores, field, [])

    return take_away


def with_value(field: str, place: int, **values: object) -> Callable[[Stores], None]:
    def change(stores: Stores) -> None:
        vars(getattr(stores, field)[place]).update(values)

    return change


def twice(field: str) -> Callable[[Stores], None]:
    def double(stores: Stores) -> None:
        setattr(stores, field, [*getattr(stores, field), getattr(stores, field)[0]])

    return double


def charged_again(stores: Stores) -> None:
    stores.charges = [*stores.charges, Charge("ch-3", "pay-1", TOTAL)]


def charged_for_nothing(stores: Stores) -> None:
    stores.charges = [*stores.charges, Charge("ch-3", "pay-3", TOTAL)]


def kept(stores: Stores) -> None:
    stores.charges[1].refunds.clear()


def left(stores: Stores) -> None:
    stores.waiting, stores.dead, stores.damage = ["mail"], ["orders"], ["integrity_check: a page is wrong"]


WRONG = {
    "order order-paid of 1 was acknowledged and is lost": without("orders"),
    "payment pay-1 of 1 was acknowledged and is lost": without("payments"),
    "user user was acknowledged and is lost": without("users"),
    "the cancellation of order-cancelled was acknowledged; the order is confirmed": with_value(
        "orders", 1, status="confirmed", cancelled_at=None
    ),
    "a refund of pay-2 was acknowledged and is lost": with_value("payments", 1, refunded_amount=Decimal(0)),
    "flow-1 was ordered 2 times": twice("orders"),
    "flow-9 was ordered by nobody": with_value("orders", 0, items=[{"product_id": "flow-9"}]),
    "order order-paid is lost, which there is not": with_value("orders", 0, status="lost"),
    "order order-paid is pending; its payment is completed": with_value("orders", 0, status="pending"),
    "order order-paid is confirmed; its payment is failed": with_value("payments", 0, status="failed"),
    "order order-paid has 2 payments": twice("payments"),
    "payment pay-1 is still processing": with_value("payments", 0, status="processing"),
    "payment pay-1 was charged 2 times": charged_again,
    "charge ch-3 belongs to pay-3, which is None": charged_for_nothing,
    "refund ref-2 is pending": with_value("refunds", 0, status="pending"),
    "refund ref-2 is succeeded, and was executed 0 times": kept,
    "order order-cancelled is cancelled; its charge was not given back": kept,
    "the books say 75.48, the provider says 150.96": kept,
    "mail Order Received - order-paid: 1 due, 2 there": twice("mails"),
    "mail Order Confirmation - order-paid: 1 due, 0 there": without("mails"),
    "push message ('Order Received', 'order-paid'): 1 due, 2 there": twice("pushes"),
    "push message ('Welcome', 'user'): 1 due, 0 there": without("pushes"),
    "still waiting for mail": left,
    "dead letter for orders": left,
    "integrity_check: a page is wrong": left,
}


@pytest.mark.parametrize("said", WRONG)
def test_of_what_is_wrong_it_says_what(said: str) -> None:
    stores, history = sound()
    WRONG[said](stores)
    assert said in violations(stores, history)
