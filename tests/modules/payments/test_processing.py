"""Charging, refunding and compensating: what follows from events, in whatever order and how often they come."""

import asyncio
import itertools
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from sqlalchemy import delete, select

from bedplate.kernel.clock import iso
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.events import to_wire
from bedplate.kernel.outbox import dead_letters, waiting
from bedplate.kernel.relay import AWAY_FOR, RETRIES
from bedplate.models import DeadLetterRow, OutboxRow, PaymentRow, RefundRow, SandboxEntryRow, SlotRow
from bedplate.modules.orders.events import OrderCancelled
from bedplate.modules.orders.public import OrderStatus
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed, PaymentRefunded, PaymentRequested
from bedplate.modules.payments.provider import CALL_SECONDS, REASONS, Declined
from bedplate.modules.payments.public import AlreadyPaid, Payment, PaymentStatus
from bedplate.modules.payments.sandbox import CHARGE, REFUND, Sandbox
from tests.factories import TurnableClock
from tests.modules.payments.shop import GOOD, TOTAL, Shop, card, open_shop

REASON = "Order cancelled"


async def state(shop: Shop, payment: Payment) -> Payment:
    return await shop.payments.get_payment(payment.id)


def cancelled(payment: Payment) -> OrderCancelled:
    return OrderCancelled(payment.order_id, payment.user_id, "changed my mind", iso(payment.created_at))


async def test_a_completed_payment_is_said_as_the_document_prints_it(shop: Shop) -> None:
    done = await shop.paid()
    assert done.completed_at is not None
    [event] = shop.ear.heard
    assert isinstance(event, PaymentCompleted)
    assert to_wire("an-id", event, done.completed_at) == {
        "event_id": "an-id",
        "event_type": "payment_completed",
        "occurred_at": iso(done.completed_at),
        "payment_id": done.id,
        "order_id": done.order_id,
        "user_id": done.user_id,
        "data": {
            "amount": 75.48,
            "currency": "USD",
            "transaction_id": done.transaction_id,
            "completed_at": iso(done.completed_at),
        },
    }
    assert (await shop.orders.get_order(done.order_id)).status is OrderStatus.CONFIRMED


async def test_insufficient_funds_are_said_and_shown_as_the_document_prints_them(shop: Shop) -> None:
    payment = await shop.pay(await shop.order(), card("4000000000009995"))
    await shop.relay.drain()
    failed = await state(shop, payment)
    assert failed.status is PaymentStatus.FAILED
    assert (failed.failure_reason, failed.error_code) == ("Insufficient funds", "PAY_002")
    assert failed.failed_at is not None
    assert (failed.completed_at, failed.transaction_id) == (None, None)
    [event] = shop.ear.heard
    assert isinstance(event, PaymentFailed)
    assert to_wire("an-id", event, failed.failed_at) == {
        "event_id": "an-id",
        "event_type": "payment_failed",
        "occurred_at": iso(failed.failed_at),
        "payment_id": payment.id,
        "order_id": payment.order_id,
        "data": {
            "reason": "Insufficient funds",
            "error_code": "INSUFFICIENT_FUNDS",
            "failed_at": iso(failed.failed_at),
        },
    }
    assert (await shop.orders.get_order(payment.order_id)).status is OrderStatus.CANCELLED
    await shop.settle()
    assert await shop.moved() == 0


@pytest.mark.parametrize(
    ("number", "event_code", "code"),
    [
        ("4000000000009995", "INSUFFICIENT_FUNDS", "PAY_002"),
        ("4000000000000002", "CARD_DECLINED", "CARD_DECLINED"),
        ("4000000000000069", "EXPIRED_CARD", "PAY_001"),
        ("4000000000000127", "INCORRECT_CVC", "PAY_001"),
    ],
)
async def test_each_card_that_declines_says_why(shop: Shop, number: str, event_code: str, code: str) -> None:
    payment = await shop.pay(await shop.order(), card(number))
    await shop.relay.drain()
    failed = await state(shop, payment)
    assert (failed.status, failed.error_code) == (PaymentStatus.FAILED, code)
    assert failed.failure_reason == REASONS[event_code]
    [event] = shop.ear.heard
    assert (event.reason, event.error_code) == (REASONS[event_code], event_code)  # type: ignore[attr-defined]
    assert await shop.ledger(CHARGE) == []
    assert len(await shop.rows(SandboxEntryRow)) == 1


@pytest.mark.parametrize("number", [GOOD, "4111111111111111", "5555555555554444", "378282246310005"])
async def test_every_other_valid_card_is_charged(shop: Shop, number: str) -> None:
    payment = await shop.pay(await shop.order(), card(number, "1234"))
    await shop.relay.drain()
    assert (await state(shop, payment)).status is PaymentStatus.COMPLETED
    assert await shop.moved() == await shop.booked() == TOTAL


@pytest.mark.parametrize("number", ["4000000000000077", "4000000000000119"])
async def test_a_lost_answer_and_a_needed_retry_end_in_one_charge(
    shop: Shop, clock: TurnableClock, number: str
) -> None:
    payment = await shop.pay(await shop.order(), card(number))
    await shop.relay.drain()
    assert (await state(shop, payment)).status is PaymentStatus.PROCESSING
    lost = number == "4000000000000077"
    assert len(await shop.ledger(CHARGE)) == lost, "charged at once, or not at all"
    clock.advance(2)
    await shop.relay.drain()
    assert (await state(shop, payment)).status is PaymentStatus.COMPLETED
    [entry] = await shop.rows(SandboxEntryRow)
    assert (entry.attempts, entry.outcome) == (2, "succeeded")
    assert await shop.moved() == await shop.booked() == TOTAL


async def test_an_event_that_comes_again_charges_and_says_nothing_again(shop: Shop) -> None:
    payment = await shop.paid()
    for _ in range(3):
        await shop.charge(payment)
    await shop.relay.drain()
    assert await state(shop, payment) == payment
    assert len(shop.ear.heard) == len(await shop.ledger(CHARGE)) == 1


async def test_the_same_event_handled_at_once_charges_once(shop: Shop) -> None:
    payment = await shop.pay(await shop.order())
    await asyncio.gather(*(shop.charge(payment) for _ in range(8)))
    await shop.relay.drain()
    [entry] = await shop.rows(SandboxEntryRow)
    assert len(shop.ear.heard) == 1
    assert await shop.moved() == await shop.booked() == TOTAL


async def test_a_refund_that_is_asked_for_many_times_at_once_is_given_and_said_once(shop: Shop) -> None:
    payment = await shop.paid()
    await shop.payments.refund(payment.id, Decimal("25.48"), "a reason")
    await asyncio.gather(*(shop.execute_refunds() for _ in range(8)))
    await shop.relay.drain()
    assert await shop.moved() == await shop.booked() == Decimal("50.00")
    assert [type(event) for event in shop.ear.heard] == [PaymentCompleted, PaymentRefunded]


async def test_an_order_cancelled_before_it_is_paid_bars_a_late_payment(shop: Shop) -> None:
    order = await shop.order()
    request = shop.request(order)
    for _ in range(3):  # as often as it comes
        await shop.hear(OrderCancelled(order.id, order.user_id, "why", iso(order.created_at)))
    [slot] = await shop.rows(SlotRow)
    assert (slot.order_id, slot.payment_id) == (order.id, None)
    with pytest.raises(AlreadyPaid):  # although it is still pending for orders: it was asked a moment too early
        await shop.payments.pay(request)
    assert await shop.rows(PaymentRow) == []


async def test_an_order_cancelled_before_the_charge_has_begun_is_not_charged(shop: Shop) -> None:
    payment = await shop.pay(await shop.order())
    await shop.hear(cancelled(payment))
    assert (await state(shop, payment)).status is PaymentStatus.PROCESSING
    await shop.relay.drain()
    failed = await state(shop, payment)
    assert (failed.status, failed.failure_reason) == (PaymentStatus.FAILED, REASON)
    assert failed.error_code == "ORDER_CANCELLED"
    assert await shop.rows(SandboxEntryRow) == [], "the provider was never asked"


async def test_an_order_cancelled_during_the_charge_is_charged_and_refunded(db: Any, clock: TurnableClock) -> None:
    provider = Halting(db, clock)
    shop = await open_shop(db, clock, provider)
    payment = await shop.pay(await shop.order())
    charging = asyncio.create_task(shop.charge(payment))
    await asyncio.wait_for(provider.asked.wait(), 10)
    await shop.hear(cancelled(payment))
    provider.go_on.set()
    await charging
    done = await state(shop, payment)
    assert (done.status, done.refunded_amount) == (PaymentStatus.REFUNDED, TOTAL)
    assert done.refund_reason == REASON
    assert await shop.moved() == TOTAL
    await shop.relay.drain()
    assert await shop.moved() == await shop.booked() == 0
    assert [type(event) for event in shop.ear.heard] == [PaymentCompleted, PaymentRefunded]


class Halting(Sandbox):
    """A provider that waits, before it charges, until it is told to go on."""

    def __init__(self, db: Any, clock: Any) -> None:
        super().__init__(db, clock)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def charge(self, *what: Any) -> str:
        self.asked.set()
        await asyncio.wait_for(self.go_on.wait(), 10)
        return await super().charge(*what)


async def test_an_order_cancelled_after_it_was_paid_is_refunded_in_full(shop: Shop) -> None:
    payment = await shop.paid()
    await shop.payments.refund(payment.id, Decimal("5.48"), "One piece was broken")
    await shop.orders.cancel(payment.order_id, "changed my mind")
    await shop.relay.drain()
    done = await state(shop, payment)
    assert (done.status, done.refunded_amount, done.refund_reason) == (PaymentStatus.REFUNDED, TOTAL, REASON)
    assert sorted(each.amount for each in await shop.ledger(REFUND)) == [Decimal("5.48"), Decimal("70.00")]
    said = [event for event in shop.ear.heard if isinstance(event, PaymentRefunded)]
    assert sorted((event.amount, event.reason) for event in said) == [(5.48, "One piece was broken"), (70.0, REASON)]
    assert {event.refund_id for event in said} == {row.id for row in await shop.rows(RefundRow)}


async def test_a_cancellation_of_what_has_failed_changes_nothing(shop: Shop) -> None:
    payment = await shop.pay(await shop.order(), card("4000000000000002"))
    await shop.relay.drain()
    failed = await state(shop, payment)
    await shop.hear(cancelled(payment))
    await shop.settle()
    assert await state(shop, payment) == failed


STEPS = ("charge", "cancel", "refund", "charge", "cancel", "refund")


@pytest.mark.parametrize("order", sorted(set(itertools.permutations(STEPS, 4))), ids="-".join)
async def test_events_in_any_order_and_number_end_in_the_same_books(sqlite_shop: Shop, order: tuple[str, ...]) -> None:
    shop = sqlite_shop
    payment = await shop.pay(await shop.order())
    for step in order:
        if step == "charge":
            await shop.charge(payment)
        elif step == "cancel":
            await shop.hear(cancelled(payment))
        else:
            await shop.execute_refunds()
    await shop.settle()
    done = await state(shop, payment)
    cancelled_first = "cancel" in order and ("charge" not in order or order.index("cancel") < order.index("charge"))
    expected = PaymentStatus.COMPLETED
    if "cancel" in order:
        expected = PaymentStatus.FAILED if cancelled_first else PaymentStatus.REFUNDED
    assert done.status is expected
    assert await shop.moved() == await shop.booked() == (TOTAL if expected is PaymentStatus.COMPLETED else 0)
    assert len(await shop.ledger(REFUND)) == (expected is PaymentStatus.REFUNDED)


async def test_a_refund_that_the_provider_refuses_leaves_the_amount_open(db: Any, clock: TurnableClock) -> None:
    shop = await open_shop(db, clock, Stingy(db, clock))
    payment = await shop.paid()
    await shop.payments.refund(payment.id, Decimal("25.48"), "a reason")
    await shop.payments.refund(payment.id, Decimal("50.00"), "another")
    await shop.relay.drain()
    open_again = await state(shop, payment)
    assert (open_again.status, open_again.refunded_amount) == (PaymentStatus.PARTIALLY_REFUNDED, Decimal("25.48"))
    assert sorted(row.status for row in await shop.rows(RefundRow)) == ["failed", "succeeded"]
    assert await shop.moved() == await shop.booked() == Decimal("50.00")
    assert [event.amount for event in shop.ear.heard if isinstance(event, PaymentRefunded)] == [25.48]
    await shop.execute_refunds()
    assert await state(shop, payment) == open_again, "a refund ends once"


async def test_a_payment_whose_only_refund_is_refused_is_as_it_was(db: Any, clock: TurnableClock) -> None:
    shop = await open_shop(db, clock, Stingy(db, clock))
    payment = await shop.paid(Decimal("50.00"))
    await shop.payments.refund(payment.id, None, "a reason")
    await shop.relay.drain()
    assert await state(shop, payment) == payment


class Stingy(Sandbox):
    """Refuses to give fifty dollars back."""

    async def refund(self, reference: str, amount: Decimal, currency: str, key: str) -> str:
        if amount == 50:
            raise Declined("REFUND_REFUSED")
        return await super().refund(reference, amount, currency, key)


class Away(Sandbox):
    """A provider that does not answer while it is away, and knows a key for two hours."""

    remembers: ClassVar[timedelta | None] = timedelta(hours=2)
    away = True

    async def charge(self, *what: Any) -> str:
        if self.away:
            raise Unavailable()
        return await super().charge(*what)


@pytest.fixture
async def without_provider(db: Any, clock: TurnableClock) -> Shop:
    return await open_shop(db, clock, Away(db, clock))


async def test_a_provider_that_is_away_for_long_holds_payments_up_and_loses_none(
    without_provider: Shop, clock: TurnableClock
) -> None:
    shop = without_provider
    payment = await shop.pay(await shop.order())
    await shop.relay.drain()
    clock.advance(AWAY_FOR.total_seconds())
    for _ in range(len(RETRIES) + 1):
        assert await dead_letters(shop.db) == []
        await shop.relay.drain()
        clock.advance(40)
    [letter] = await dead_letters(shop.db)
    assert (letter.type, letter.key, letter.consumer) == ("PaymentRequested", payment.id, "payments")
    await shop.processing.sweep()
    assert await waiting(shop.db) == 0, "a dead letter is for the kernel to revive"
    async with shop.db.transaction() as tx:
        await tx.execute(delete(DeadLetterRow))
    await shop.processing.sweep()
    assert await waiting(shop.db) == 1
    Away.away = False
    try:
        await shop.relay.drain()
    finally:
        Away.away = True
    assert (await state(shop, payment)).status is PaymentStatus.COMPLETED
    assert await shop.moved() == await shop.booked() == TOTAL


async def test_what_the_provider_may_have_forgotten_is_not_tried_again(
    without_provider: Shop, clock: TurnableClock
) -> None:
    shop = without_provider
    payment = await shop.pay(await shop.order())
    with pytest.raises(Unavailable):
        await shop.charge(payment)
    clock.advance(7201)
    Away.away = False
    try:
        await shop.charge(payment)
        async with shop.db.transaction() as tx:
            await tx.execute(delete(OutboxRow))
        await shop.processing.sweep()
    finally:
        Away.away = True
    assert await waiting(shop.db) == 0
    assert (await state(shop, payment)).status is PaymentStatus.PROCESSING
    assert await shop.ledger(CHARGE) == [], "it could be the second one"


async def test_a_sweep_takes_up_what_has_no_event_and_nothing_else(shop: Shop, clock: TurnableClock) -> None:
    lost = await shop.pay(await shop.order())
    refunded = await shop.pay(await shop.order())
    await shop.charge(refunded)
    await shop.payments.refund(refunded.id, None, "a reason")
    async with shop.db.transaction() as tx:
        await tx.execute(delete(OutboxRow).where(OutboxRow.consumer == "payments"))
    waits = await shop.pay(await shop.order())

    async def asked() -> list[tuple[str, str]]:
        rows = await shop.db.all(select(OutboxRow.type, OutboxRow.key).where(OutboxRow.consumer == "payments"))
        return sorted((row.type, row.key) for row in rows)

    await shop.processing.sweep()
    assert await asked() == [("PaymentRequested", waits.id)], "nothing is old enough"
    clock.advance(61)
    for _ in range(2):  # the second time all is on its way
        await shop.processing.sweep()
        assert await asked() == [
            ("PaymentRequested", lost.id),
            ("PaymentRequested", waits.id),
            ("RefundRequested", refunded.id),
        ]
    await shop.settle()
    assert await shop.moved() == await shop.booked() == 2 * TOTAL


async def test_a_sweep_is_bounded_and_comes_to_everything(sqlite_shop: Shop) -> None:
    shop = sqlite_shop
    payments = [await shop.pay(await shop.order()) for _ in range(105)]
    async with shop.db.transaction() as tx:
        await tx.execute(delete(OutboxRow).where(OutboxRow.consumer == "payments"))
    shop.clock.advance(61)
    await shop.processing.sweep()
    requested = [row for row in await shop.rows(OutboxRow) if row.type == "PaymentRequested"]
    assert {row.key for row in requested} == {payment.id for payment in payments[:100]}, "the oldest first"
    await shop.processing.sweep()
    await shop.relay.drain()
    assert len(await shop.ledger(CHARGE)) == 105


async def test_what_nobody_knows_is_not_charged(shop: Shop) -> None:
    await shop.hear(PaymentRequested("pay-456"))
    assert await shop.rows(SandboxEntryRow) == []


def test_a_provider_has_less_time_than_a_handling() -> None:
    from bedplate.kernel.relay import HANDLING_SECONDS

    assert CALL_SECONDS < HANDLING_SECONDS
