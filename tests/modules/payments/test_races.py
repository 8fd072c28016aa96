"""Many at once: one charge for an order, never more given back than was taken, and books that agree with the ledger."""

import asyncio
import random
from collections import Counter
from decimal import Decimal

import pytest

from bedplate.kernel import failpoints
from bedplate.kernel.idempotency import IdempotencyKeyInWork, Once
from bedplate.kernel.outbox import Delivery
from bedplate.models import OutboxRow, PaymentRow, RefundRow
from bedplate.modules.orders.public import OrderNotModifiable, OrderStatus
from bedplate.modules.payments.public import AlreadyPaid, Payment, PaymentStatus, RefundNotAllowed
from bedplate.modules.payments.sandbox import CHARGE, REFUND
from tests.modules.payments.shop import TOTAL, Shop, card, once


async def test_twenty_payments_of_one_order_at_once_are_one_charge(shop: Shop) -> None:
    order = await shop.order()
    outcomes = await asyncio.gather(*(shop.pay(order) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(each, Payment) for each in outcomes) == 1
    assert sum(isinstance(each, AlreadyPaid) for each in outcomes) == 19
    await shop.settle()
    [charge] = await shop.ledger(CHARGE)
    assert charge.amount == TOTAL
    assert len(await shop.rows(PaymentRow)) == 1


async def test_twenty_payments_with_the_same_key_at_once_are_one_charge_and_one_answer(shop: Shop) -> None:
    order = await shop.order()
    key = once("key")

    async def until_answered() -> Payment:
        while True:
            try:
                return await shop.pay(order, once=key)
            except IdempotencyKeyInWork:
                await asyncio.sleep(0.01)

    answers = await asyncio.wait_for(asyncio.gather(*(until_answered() for _ in range(20))), 30)
    assert len({answer.id for answer in answers}) == 1
    assert all(answer == answers[0] for answer in answers)
    await shop.settle()
    assert len(await shop.ledger(CHARGE)) == 1


async def test_twenty_payments_with_keys_of_their_own_at_once_are_one_charge(shop: Shop) -> None:
    order = await shop.order()
    outcomes = await asyncio.gather(
        *(shop.pay(order, once=once(str(number))) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(each, Payment) for each in outcomes) == 1
    assert sum(isinstance(each, AlreadyPaid) for each in outcomes) == 19
    await shop.settle()
    assert len(await shop.ledger(CHARGE)) == 1


async def test_fifty_refunds_at_once_give_back_what_was_taken_and_no_cent_more(shop: Shop) -> None:
    payment = await shop.paid(Decimal("100.00"))
    amounts = [Decimal("3.00") if number % 2 else Decimal("7.77") for number in range(50)]
    outcomes = await asyncio.gather(
        *(shop.payments.refund(payment.id, amount, "a reason") for amount in amounts), return_exceptions=True
    )
    given = sum(amount for amount, each in zip(amounts, outcomes, strict=True) if isinstance(each, Payment))
    assert {type(each) for each in outcomes} == {Payment, RefundNotAllowed}
    assert Decimal("92.23") < given <= 100, "as long as anything fits, it is given"
    await shop.settle()
    assert (await shop.payments.get_payment(payment.id)).refunded_amount == given
    assert await shop.moved() == await shop.booked() == 100 - given


async def test_fifty_refunds_of_all_that_is_left_at_once_are_one(shop: Shop) -> None:
    payment = await shop.paid()
    outcomes = await asyncio.gather(
        *(shop.payments.refund(payment.id, None, "a reason") for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(each, Payment) for each in outcomes) == 1
    await shop.settle()
    [refund] = await shop.ledger(REFUND)
    assert refund.amount == TOTAL


async def test_fifty_refunds_with_the_same_key_at_once_are_one(shop: Shop) -> None:
    payment = await shop.paid()
    outcomes = await asyncio.gather(
        *(shop.payments.refund(payment.id, Decimal(1), "a reason", once("key")) for _ in range(50)),
        return_exceptions=True,
    )
    assert {type(each) for each in outcomes} <= {Payment, IdempotencyKeyInWork}
    assert len(await shop.rows(RefundRow)) == 1


class Shuffle:
    """Lets others go first, a random number of times, at every failpoint."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    async def reached(self, name: str) -> None:
        await self.pause()

    async def pause(self) -> None:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)


async def race(shop: Shop, shuffle: Shuffle, seed: int) -> str:
    """One order: its payment, its cancellation, their events and some refunds, all at the same time; and what it came
    to."""
    chance = random.Random(seed)
    order = await shop.order()
    key: Once | None = once(str(seed)) if chance.random() < 0.5 else None
    number = chance.choice(["4242424242424242"] * 3 + ["4000000000009995", "4000000000000077", "4000000000000119"])

    async def pay() -> None:
        await shuffle.pause()
        try:
            payment = await shop.pay(order, card(number), key)
        except (AlreadyPaid, IdempotencyKeyInWork):
            return
        if chance.random() < 0.3:
            await shuffle.pause()
            try:
                await shop.payments.refund(payment.id, Decimal(chance.choice([1, 75])), "a reason")
            except RefundNotAllowed:
                return

    async def cancel() -> None:
        for _ in range(chance.choice([0, 1, 4, 16])):
            await shuffle.pause()
        try:
            await shop.orders.cancel(order.id, "changed my mind")
        except OrderNotModifiable:
            return

    async def deliver() -> None:
        """Some of what is in the outbox, to whoever listens, without noting it: it will come again."""
        for _ in range(chance.randrange(6)):
            await shuffle.pause()
            for row in await shop.rows(OutboxRow):
                listener = next(
                    each for each in shop.listeners if each.event.__name__ == row.type and each.consumer == row.consumer
                )
                try:
                    delivery = Delivery(listener.event(**row.payload), row.id, listener.name, row.created_at)
                    await listener.handle(delivery)
                except Exception as failed:  # as the relay does: it will come again
                    assert type(failed).__name__ in {"Unavailable", "OrderNotModifiable"}

    await asyncio.gather(pay(), pay(), cancel(), deliver(), deliver())
    await shop.settle()
    assert (await shop.orders.get_order(order.id)).status is OrderStatus.CANCELLED, seed
    row = next((row for row in await shop.rows(PaymentRow) if row.order_id == order.id), None)
    if row is None:
        return "never paid"
    charges = await shop.ledger(CHARGE, f"ch_{row.id}")
    taken = sum((each.amount for each in charges), Decimal(0))
    given = sum((each.amount for each in await shop.ledger(REFUND, f"ch_{row.id}")), Decimal(0))
    assert len(charges) <= 1, seed
    assert row.status in (PaymentStatus.FAILED.value, PaymentStatus.REFUNDED.value), (seed, row.status)
    assert taken == given == row.refunded_amount, seed
    return row.failure_reason or f"{row.status}: {row.refund_reason}"


async def races(shop: Shop, seeds: range) -> Counter[str]:
    """What they came to, each with an interleaving of its own by its number."""
    ends: Counter[str] = Counter()
    for seed in seeds:
        shuffle = Shuffle(seed)
        with failpoints.watched(shuffle.reached):
            ends[await race(shop, shuffle, seed)] += 1
    assert await shop.moved() == await shop.booked() == 0
    return ends


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.timeout(300)
async def test_a_cancellation_racing_a_payment_leaves_money_and_state_in_agreement(
    sqlite_shop: Shop, quarter: int
) -> None:
    """A thousand runs."""
    ends = await races(sqlite_shop, range(quarter * 250, quarter * 250 + 250))
    ways = ("never paid", "Order cancelled", "refunded: Order cancelled", "Insufficient funds")
    assert [way for way in ways if ends[way] < 5] == [], f"the race must be an open one: {ends}"


async def test_a_cancellation_racing_a_payment_on_every_engine(shop: Shop) -> None:
    assert len(await races(shop, range(10_000, 10_030))) > 2
