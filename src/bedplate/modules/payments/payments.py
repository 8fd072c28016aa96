"""Payments: the implementation of the Payments facade. Charging itself happens later, in processing.py."""

from datetime import datetime
from decimal import Decimal
from typing import Generic

from pydantic import TypeAdapter

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import UniqueViolation
from bedplate.kernel.failpoints import reach
from bedplate.kernel.idempotency import Idempotency, Keep, Once
from bedplate.kernel.ids import is_id
from bedplate.kernel.outbox import emit
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.orders.public import Order, Orders
from bedplate.modules.payments import cards, rules
from bedplate.modules.payments.events import PaymentRequested, RefundRequested
from bedplate.modules.payments.provider import Provider, ProviderToken
from bedplate.modules.payments.public import (
    AlreadyPaid,
    Payment,
    PaymentNotFound,
    PaymentRequest,
    Payments,
    PaymentStatus,
    RefundNotAllowed,
)
from bedplate.modules.payments.store import PaymentStore, Refund, RefundStatus, Tx

ANSWER = TypeAdapter(Payment)
NOTHING = Decimal("0.00")


class PaymentsService(Payments, Generic[Tx]):
    """`idempotency` keeps its answers in the database of `store`. `currency`: the one that all is charged in."""

    def __init__(
        self,
        store: PaymentStore[Tx],
        idempotency: Idempotency,
        orders: Orders,
        provider: Provider,
        clock: Clock,
        currency: str = "USD",
    ) -> None:
        self._store = store
        self._idempotency = idempotency
        self._orders = orders
        self._provider = provider
        self._clock = clock
        self._currency = rules.currency(currency)

    async def pay(self, request: PaymentRequest, once: Once | None = None) -> Payment:
        async def work(keep: Keep[Payment]) -> Payment:
            method = cards.checked(request.method)
            order = await self._orders.get_order(request.order_id)
            rules.must_fit(request, order, self._currency)
            await reach("payments.pay.before_tokenize")
            token = await self._provider.tokenize(method)  # from here on nobody knows the card
            await reach("payments.pay.after_tokenize")
            payment = self._new_payment(order, method.type, token)
            try:
                async with self._store.transaction() as tx:
                    await self._store.take_slot(tx, payment.order_id, payment.id)
                    await self._store.insert(tx, payment, token.token)
                    await emit(tx, PaymentRequested(payment.id), payment.created_at)
                    await keep(tx, payment)
            except UniqueViolation:
                raise AlreadyPaid() from None
            await reach("payments.pay.after_commit")
            return payment

        return await self._idempotency.run(once, ANSWER, work)

    async def get_payment(self, payment_id: str) -> Payment:
        found = await self._store.find(payment_id) if rules.is_payment_id(payment_id) else None
        if found is None:
            raise PaymentNotFound()
        return found.payment

    async def list_payments(self, user_id: str, part: Slice) -> Page[Payment]:
        if not is_id(user_id):
            return Page([], 0)
        return await self._store.page(user_id.lower(), part)

    async def refund(self, payment_id: str, amount: Decimal | None, reason: str, once: Once | None = None) -> Payment:
        async def work(keep: Keep[Payment]) -> Payment:
            why = rules.refund_reason(reason)
            wanted = None if amount is None else rules.refund_amount(amount)
            payment = await self.get_payment(payment_id)
            if wanted is not None and wanted > payment.amount:  # of any size: before the database sees it
                raise RefundNotAllowed(refundable=str(rules.refundable(payment)))
            await reach("payments.reserve.before_commit")
            async with self._store.transaction() as tx:
                refunded = await give_back(self._store, tx, payment.order_id, wanted, why, self._clock.now())
                if refunded is not None:
                    await keep(tx, refunded)
            await reach("payments.reserve.after_commit")
            if refunded is None:
                # Read after the transaction: what is answered is committed.
                raise RefundNotAllowed(refundable=str(rules.refundable(await self.get_payment(payment_id))))
            return refunded

        return await self._idempotency.run(once, ANSWER, work)

    def _new_payment(self, order: Order, method: str, token: ProviderToken) -> Payment:
        return Payment(
            id=rules.new_payment_id(),
            order_id=order.id,
            user_id=order.user_id,
            amount=order.total,
            currency=self._currency,
            status=PaymentStatus.PROCESSING,
            method=method,
            card_brand=token.brand,
            card_last4=token.last4,
            transaction_id=None,
            failure_reason=None,
            error_code=None,
            refunded_amount=NOTHING,
            refund_reason=None,
            created_at=self._clock.now(),
            completed_at=None,
            failed_at=None,
            refunded_at=None,
        )


async def give_back(
    store: PaymentStore[Tx], tx: Tx, order_id: str, amount: Decimal | None, reason: str, at: datetime
) -> Payment | None:
    """Reserve a refund, of all that is left if no amount is given, and ask for it. None: that is not left."""
    payment = await store.lock(tx, order_id)
    if payment is None:
        return None
    wanted = rules.refundable(payment) if amount is None else amount
    if wanted <= 0:
        return None
    refund = Refund(rules.new_refund_id(), payment.id, wanted, reason, RefundStatus.PENDING, at)
    refunded = await store.reserve(tx, refund)
    if refunded is not None:
        await emit(tx, RefundRequested(payment.id, refund.id), at)
    return refunded
