"""Processing: charges, refunds and what a cancelled order means for its payment; and what a crash left half done.

Each handler may run any number of times, at the same time as itself and in any order with the others: every step is a
compare-and-swap, and the provider is called with a key under which it acts once.
"""

import logging
from datetime import datetime, timedelta
from typing import Generic

from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.db import UniqueViolation
from bedplate.kernel.events import Event
from bedplate.kernel.failpoints import reach
from bedplate.kernel.outbox import Delivery, Listener, emit
from bedplate.modules.orders.events import OrderCancelled
from bedplate.modules.payments import rules
from bedplate.modules.payments.events import (
    PaymentCompleted,
    PaymentFailed,
    PaymentRefunded,
    PaymentRequested,
    RefundRequested,
)
from bedplate.modules.payments.payments import give_back
from bedplate.modules.payments.provider import Declined, Provider
from bedplate.modules.payments.public import Payment, PaymentStatus
from bedplate.modules.payments.store import Attempt, PaymentStore, Refund, RefundStatus, Tx

log = logging.getLogger("bedplate.payments")

# Longer than it takes to charge, to be declined and to be asked once more.
LEFT_BEHIND = timedelta(seconds=60)
EVER = timedelta(days=36_500)


class Processing(Generic[Tx]):
    """Listens to payments' own requests, and to orders."""

    def __init__(self, store: PaymentStore[Tx], provider: Provider, clock: Clock) -> None:
        self._store = store
        self._provider = provider
        self._clock = clock

    def listeners(self) -> list[Listener]:
        """What this module wants to hear."""
        return [
            Listener("payments.charge", PaymentRequested, self._charge),
            Listener("payments.refund", RefundRequested, self._refund),
            Listener("payments.compensation", OrderCancelled, self._compensate),
        ]

    async def sweep(self) -> None:
        """Take up again what has waited for more than a minute and of which nothing is on its way: a hundred payments
        and a hundred refunds at most."""
        before, after = self._clock.now() - LEFT_BEHIND, self._trusted_since()
        for payment_id in await self._store.left_behind(before, after):
            await self._again(PaymentRequested(payment_id))
        for payment_id, refund_id in await self._store.refunds_left_behind(before, after):
            await self._again(RefundRequested(payment_id, refund_id))

    async def _again(self, request: PaymentRequested | RefundRequested) -> None:
        await reach("payments.sweep.before_commit")
        async with self._store.transaction() as tx:
            await emit(tx, request, self._clock.now())
        await reach("payments.sweep.after_commit")

    async def _charge(self, delivery: Delivery) -> None:
        event: PaymentRequested = delivery.event
        await reach("payments.charge.before_start")
        attempt = await self._start(event.payment_id)
        await reach("payments.charge.after_start")
        if attempt is None or attempt.payment.status is not PaymentStatus.PROCESSING:
            return
        payment = attempt.payment
        if attempt.started_at is None:  # void before anybody was asked, so it cannot be started any more
            await self._fail(payment.id, rules.ORDER_CANCELLED, rules.ORDER_CANCELLED_CODE)
        elif attempt.started_at < self._trusted_since():
            log.error("a charge is too old to be tried again; ask the provider", extra={"payment": payment.id})
        else:
            await self._ask(attempt)

    async def _ask(self, attempt: Attempt) -> None:
        payment = attempt.payment
        try:
            reference = await self._provider.charge(
                attempt.token, payment.amount, payment.currency, payment.id, f"Order {payment.order_id}"
            )
        except Declined as declined:
            await reach("payments.charge.after_provider")
            await self._fail(payment.id, declined.reason, declined.code)
        else:
            await reach("payments.charge.after_provider")
            await self._complete(payment.id, reference)

    async def _start(self, payment_id: str) -> Attempt | None:
        async with self._store.transaction() as tx:
            started = await self._store.start(tx, payment_id, self._clock.now())
        return started or await self._store.find(payment_id)

    async def _complete(self, payment_id: str, reference: str) -> None:
        now = self._clock.now()
        async with self._store.transaction() as tx:
            done = await self._store.complete(tx, payment_id, reference, rules.new_transaction_id(), now)
            if done is not None:
                await emit(tx, _completed(done.payment, now), now)
                if done.void_at is not None:  # its order was cancelled while the provider was asked
                    await give_back(self._store, tx, done.payment.order_id, None, rules.ORDER_CANCELLED, now)
        await reach("payments.charge.after_record")

    async def _fail(self, payment_id: str, reason: str, code: str) -> None:
        now = self._clock.now()
        shown = rules.DOCUMENTED_CODES.get(code, code)
        async with self._store.transaction() as tx:
            failed = await self._store.fail(tx, payment_id, reason, shown, now)
            if failed is not None:
                await emit(tx, PaymentFailed(failed.id, failed.order_id, reason, code, iso(now)), now)
        await reach("payments.charge.after_record")

    async def _compensate(self, delivery: Delivery) -> None:
        event: OrderCancelled = delivery.event
        await reach("payments.compensation.before_bar")
        barred = await self._bar(event.order_id)
        await reach("payments.compensation.after_bar")
        if barred:
            return
        now = self._clock.now()
        async with self._store.transaction() as tx:
            if not await self._store.void(tx, event.order_id, now):
                await give_back(self._store, tx, event.order_id, None, rules.ORDER_CANCELLED, now)
        await reach("payments.compensation.after_commit")

    async def _bar(self, order_id: str) -> bool:
        """Take the order's place for the cancellation, so that a late payment is refused. False: it has a payment, or
        was barred before."""
        try:
            async with self._store.transaction() as tx:
                await self._store.take_slot(tx, order_id, None)
        except UniqueViolation:
            return False
        return True

    async def _refund(self, delivery: Delivery) -> None:
        event: RefundRequested = delivery.event
        refund, attempt = await self._store.find_refund(event.refund_id), await self._store.find(event.payment_id)
        if refund is None or attempt is None or attempt.reference is None or refund.status is not RefundStatus.PENDING:
            return
        if refund.created_at < self._trusted_since():
            log.error("a refund is too old to be tried again; ask the provider", extra={"refund": refund.id})
            return
        payment = attempt.payment
        await reach("payments.refund.before_provider")
        try:
            reference = await self._provider.refund(attempt.reference, refund.amount, payment.currency, refund.id)
        except Declined as declined:
            await reach("payments.refund.after_provider")
            await self._release(refund, declined)
        else:
            await reach("payments.refund.after_provider")
            await self._finish(payment, refund, reference)

    async def _finish(self, payment: Payment, refund: Refund, reference: str) -> None:
        now = self._clock.now()
        async with self._store.transaction() as tx:
            if await self._store.finish(tx, refund.id, reference, now):
                await emit(tx, _refunded(payment, refund, now), now)
        await reach("payments.refund.after_record")

    async def _release(self, refund: Refund, declined: Declined) -> None:
        async with self._store.transaction() as tx:
            released = await self._store.release(tx, refund, self._clock.now())
        await reach("payments.refund.after_record")
        if released:
            what = {"payment": refund.payment_id, "refund": refund.id, "reason": declined.reason}
            log.error("the provider refuses a refund; the amount is open again", extra=what)

    def _trusted_since(self) -> datetime:
        """What the provider was first asked before this moment it may have forgotten: to ask again could charge
        twice."""
        return self._clock.now() - (self._provider.remembers or EVER)


def _completed(payment: Payment, at: datetime) -> Event:
    return PaymentCompleted(
        payment_id=payment.id,
        order_id=payment.order_id,
        user_id=payment.user_id,
        amount=float(payment.amount),
        currency=payment.currency,
        transaction_id=payment.transaction_id or "",
        completed_at=iso(at),
    )


def _refunded(payment: Payment, refund: Refund, at: datetime) -> Event:
    return PaymentRefunded(
        payment_id=payment.id,
        order_id=payment.order_id,
        user_id=payment.user_id,
        refund_id=refund.id,
        amount=float(refund.amount),
        currency=payment.currency,
        reason=refund.reason,
        refunded_at=iso(at),
    )
