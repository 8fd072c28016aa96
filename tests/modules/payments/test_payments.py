"""Payments, through the facade."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from bedplate.kernel.errors import InvalidField, Unavailable
from bedplate.kernel.idempotency import IdempotencyKeyReused
from bedplate.kernel.ids import new_id
from bedplate.kernel.paging import Slice
from bedplate.kernel.settings import OperatorError
from bedplate.models import IdempotencyRow, PaymentRow, RefundRow
from bedplate.modules.orders.public import OrderNotFound
from bedplate.modules.payments import rules
from bedplate.modules.payments.public import (
    AlreadyPaid,
    InvalidPaymentMethod,
    PaymentMethod,
    PaymentMismatch,
    PaymentNotFound,
    PaymentStatus,
    RefundNotAllowed,
)
from bedplate.modules.payments.sandbox import CHARGE, REFUND, Sandbox
from tests.factories import TurnableClock
from tests.modules.payments.shop import TOTAL, Shop, card, once

PAGE = Slice(10, 0)


async def test_a_payment_is_processed_first_and_completed_soon(shop: Shop) -> None:
    order = await shop.order()
    payment = await shop.pay(order)
    assert rules.is_payment_id(payment.id)
    assert (payment.order_id, payment.user_id) == (order.id, shop.user.id)
    assert (payment.amount, payment.currency, payment.status) == (TOTAL, "USD", PaymentStatus.PROCESSING)
    assert (payment.method, payment.card_brand, payment.card_last4) == ("credit_card", "visa", "4242")
    assert (payment.transaction_id, payment.completed_at, payment.refunded_amount) == (None, None, Decimal(0))
    assert await shop.payments.get_payment(payment.id) == payment
    assert await shop.ledger(CHARGE) == [], "nobody is asked before the payment is committed"

    await shop.relay.drain()
    done = await shop.payments.get_payment(payment.id)
    assert done.status is PaymentStatus.COMPLETED
    assert done.transaction_id is not None
    assert done.transaction_id.startswith("txn-")
    assert done.completed_at is not None
    assert (await shop.orders.get_order(order.id)).payment_id == payment.id
    [charge] = await shop.ledger(CHARGE)
    assert (charge.key, charge.amount, charge.currency) == (payment.id, TOTAL, "USD")


async def test_an_order_is_paid_once(shop: Shop) -> None:
    order = await shop.order()
    await shop.pay(order)
    for _ in range(2):
        with pytest.raises(AlreadyPaid):
            await shop.pay(order)
        await shop.relay.drain()
    assert len(await shop.ledger(CHARGE)) == 1


async def test_a_failed_payment_is_the_only_one_too(shop: Shop) -> None:
    order = await shop.order()
    await shop.pay(order, card("4000000000000002"))
    await shop.relay.drain()
    with pytest.raises(AlreadyPaid):
        await shop.pay(order)


async def test_a_cancelled_order_cannot_be_paid(shop: Shop) -> None:
    order = await shop.order()
    await shop.orders.cancel(order.id, "changed my mind")
    with pytest.raises(AlreadyPaid):
        await shop.pay(order)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"user_id": new_id()}, "user_id"),
        ({"amount": Decimal("75.47")}, "amount"),
        ({"amount": Decimal("75.481")}, "amount"),
        ({"amount": Decimal("0")}, "amount"),
        ({"amount": Decimal("-75.48")}, "amount"),
        ({"amount": Decimal("NaN")}, "amount"),
        ({"amount": Decimal("sNaN")}, "amount"),
        ({"amount": Decimal("Infinity")}, "amount"),
        ({"amount": Decimal("1e400")}, "amount"),
        ({"currency": "EUR"}, "currency"),
        ({"currency": ""}, "currency"),
    ],
)
async def test_what_does_not_fit_the_order_is_refused_and_said(shop: Shop, other: dict[str, Any], field: str) -> None:
    order = await shop.order()
    with pytest.raises(PaymentMismatch) as refused:
        await shop.payments.pay(shop.request(order, **other))
    assert refused.value.details["field"] == field
    assert refused.value.details["reason"] == str(refused.value)
    await shop.pay(order)  # which is still open


async def test_an_amount_is_compared_as_a_number(shop: Shop) -> None:
    order = await shop.order(Decimal("10.00"))
    payment = await shop.payments.pay(shop.request(order, amount=Decimal("1e1"), currency="usd"))
    assert str((await shop.payments.get_payment(payment.id)).amount) == str(payment.amount) == "10.00"
    assert payment.currency == "USD"


async def test_nobody_pays_for_an_order_that_does_not_exist(shop: Shop) -> None:
    order = await shop.order()
    for unknown in (f"order-{new_id()}", "order-123", "", "\x00", "pay-1"):
        with pytest.raises(OrderNotFound):
            await shop.payments.pay(shop.request(order, order_id=unknown))


async def test_a_method_that_cannot_be_one_is_refused_before_anybody_is_asked(shop: Shop) -> None:
    order = await shop.order()
    for method in (PaymentMethod("cash"), card("4242424242424241"), replace(card(), cvv="1")):
        with pytest.raises(InvalidPaymentMethod):
            await shop.pay(order, method)
    assert await shop.rows(PaymentRow) == []


@pytest.mark.parametrize("type", ["paypal", "bank_transfer"])
async def test_other_methods_are_charged_and_show_no_card(shop: Shop, type: str) -> None:
    payment = await shop.pay(await shop.order(), PaymentMethod(type))
    await shop.relay.drain()
    done = await shop.payments.get_payment(payment.id)
    assert (done.status, done.method) == (PaymentStatus.COMPLETED, type)
    assert (done.card_brand, done.card_last4) == (None, None)


async def test_the_provider_gets_the_card_without_its_groups(shop: Shop) -> None:
    payment = await shop.pay(await shop.order(), card("4000-0000 0000 9995"))
    assert (payment.card_brand, payment.card_last4) == ("visa", "9995")
    await shop.relay.drain()
    assert (await shop.payments.get_payment(payment.id)).error_code == "PAY_002"


async def test_the_same_request_with_the_same_key_gets_the_same_answer(shop: Shop) -> None:
    order = await shop.order()
    first = await shop.pay(order, once=once("key", "body"))
    await shop.relay.drain()
    assert await shop.pay(order, once=once("key", "body")) == first, "as it was answered, whatever has happened since"
    with pytest.raises(IdempotencyKeyReused):
        await shop.pay(order, once=once("key", "another body"))
    with pytest.raises(AlreadyPaid):
        await shop.pay(order, once=once("another key", "body"))
    assert len(await shop.ledger(CHARGE)) == 1


async def test_a_refusal_is_remembered_under_its_key_but_an_unknown_outcome_is_not(shop: Shop) -> None:
    order = await shop.order()
    for _ in range(2):
        with pytest.raises(PaymentMismatch):
            await shop.payments.pay(shop.request(order, amount=Decimal(1)), once("refused"))
    tokenize, shop.payments._provider = shop.payments._provider, Away(shop.db, shop.clock)
    with pytest.raises(Unavailable):
        await shop.pay(order, once=once("away"))
    shop.payments._provider = tokenize
    assert (await shop.pay(order, once=once("away"))).status is PaymentStatus.PROCESSING
    [refused, paid] = sorted(await shop.rows(IdempotencyRow), key=lambda row: row.created_at)
    assert (refused.answer["problem"], paid.answer["value"]["amount"]) == ("PaymentMismatch", "75.48")


class Away(Sandbox):
    """A provider that does not answer."""

    async def tokenize(self, method: PaymentMethod) -> Any:
        raise Unavailable()


async def test_payments_of_a_user_are_listed_newest_first(shop: Shop) -> None:
    made = []
    for _ in range(5):
        made.append(await shop.pay(await shop.order()))
        shop.clock.advance(1)
    newest = list(reversed(made))
    everything = await shop.payments.list_payments(shop.user.id, PAGE)
    assert (everything.items, everything.total) == (newest, 5)
    assert (await shop.payments.list_payments(shop.user.id.upper(), PAGE)).total == 5
    part = await shop.payments.list_payments(shop.user.id, Slice(2, 2))
    assert (part.items, part.total) == (newest[2:4], 5)
    beyond = await shop.payments.list_payments(shop.user.id, Slice(2, 10))
    assert (beyond.items, beyond.total) == ([], 5)
    for stranger in (new_id(), "nobody", "", "\x00"):
        nothing = await shop.payments.list_payments(stranger, PAGE)
        assert (nothing.items, nothing.total) == ([], 0)


NOBODYS = "01a211a1-2245-77a5-a1c2-b38f006fd61a"


@pytest.mark.parametrize("unknown", [f"pay-{NOBODYS}", f"order-{NOBODYS}", NOBODYS, "pay-456", "", "pay-\x00"])
async def test_a_payment_that_does_not_exist_is_not_found(shop: Shop, unknown: str) -> None:
    with pytest.raises(PaymentNotFound):
        await shop.payments.get_payment(unknown)
    with pytest.raises(PaymentNotFound):
        await shop.payments.refund(unknown, None, "a reason")


async def test_a_refund_is_reserved_at_once_and_given_back_soon(shop: Shop) -> None:
    payment = await shop.paid()
    refunded = await shop.payments.refund(payment.id, Decimal("25.48"), "  One piece was broken ")
    assert refunded.status is PaymentStatus.PARTIALLY_REFUNDED
    assert (refunded.refunded_amount, refunded.refund_reason) == (Decimal("25.48"), "One piece was broken")
    assert refunded.refunded_at is not None
    assert await shop.payments.get_payment(payment.id) == refunded
    assert await shop.ledger(REFUND) == []

    rest = await shop.payments.refund(payment.id, None, "So was the other")
    assert (rest.status, rest.refunded_amount) == (PaymentStatus.REFUNDED, TOTAL)
    assert rest.refund_reason == "So was the other"
    await shop.relay.drain()
    assert sorted(each.amount for each in await shop.ledger(REFUND)) == [Decimal("25.48"), Decimal("50.00")]
    assert await shop.moved() == await shop.booked() == 0
    assert {row.status for row in await shop.rows(RefundRow)} == {"succeeded"}


async def test_no_more_is_given_back_than_is_left(shop: Shop) -> None:
    payment = await shop.paid()
    await shop.payments.refund(payment.id, Decimal("75.00"), "a reason")
    for amount in (Decimal("0.49"), Decimal("75.48"), Decimal("1e400"), Decimal("99999999999999999999")):
        with pytest.raises(RefundNotAllowed) as refused:
            await shop.payments.refund(payment.id, amount, "a reason")
        assert refused.value.details == {"refundable": "0.48"}, amount
    await shop.payments.refund(payment.id, Decimal("0.48"), "a reason")
    for amount in (Decimal("0.01"), None):
        with pytest.raises(RefundNotAllowed) as refused:
            await shop.payments.refund(payment.id, amount, "a reason")
        assert refused.value.details == {"refundable": "0.00"}


async def test_what_is_not_completed_is_not_given_back(shop: Shop) -> None:
    processed = await shop.pay(await shop.order())
    failed = await shop.pay(await shop.order(), card("4000000000000002"))
    with pytest.raises(RefundNotAllowed):
        await shop.payments.refund(processed.id, None, "a reason")
    await shop.relay.drain()
    with pytest.raises(RefundNotAllowed):
        await shop.payments.refund(failed.id, Decimal("0.01"), "a reason")


@pytest.mark.parametrize("amount", ["0", "-1", "0.001", "NaN", "sNaN", "Infinity", "-Infinity", "1e-400"])
async def test_a_refund_that_cannot_be_paid_out_is_refused(shop: Shop, amount: str) -> None:
    payment = await shop.paid()
    with pytest.raises(InvalidField) as refused:
        await shop.payments.refund(payment.id, Decimal(amount), "a reason")
    assert refused.value.details["field"] == "amount"


@pytest.mark.parametrize("reason", ["", "   ", "r" * 501, "a\nb", "a\x00b", "\ud800"])
async def test_a_refund_wants_a_reason_that_can_be_printed(shop: Shop, reason: str) -> None:
    payment = await shop.paid()
    with pytest.raises(InvalidField) as refused:
        await shop.payments.refund(payment.id, None, reason)
    assert refused.value.details["field"] == "reason"
    longest = await shop.payments.refund(payment.id, None, "ü" * 500)
    assert longest.refund_reason == "ü" * 500


async def test_a_refund_with_a_key_is_made_once(shop: Shop) -> None:
    payment = await shop.paid()
    first = await shop.payments.refund(payment.id, Decimal(10), "a reason", once("key"))
    assert await shop.payments.refund(payment.id, Decimal(10), "a reason", once("key")) == first
    assert await shop.payments.refund(payment.id, Decimal(10), "a reason", once("other")) != first
    await shop.relay.drain()
    assert await shop.moved() == await shop.booked() == TOTAL - 20


@pytest.mark.parametrize("code", ["JPY", "KWD", "usd", "US", "DOLLAR", "US1"])
def test_only_currencies_with_hundredths_are_charged_in(code: str) -> None:
    with pytest.raises(OperatorError):
        rules.currency(code)
    assert rules.currency("EUR") == "EUR"


async def test_a_clock_of_the_test_is_what_times_are_read_from(shop: Shop, clock: TurnableClock) -> None:
    clock.advance(3600)
    payment = await shop.paid()
    assert payment.created_at.tzinfo is not None
    assert payment.completed_at is not None
    assert payment.completed_at >= payment.created_at
    assert (clock.now() - payment.created_at).total_seconds() < 60
