"""Where payments are kept: the statements of this module, and the only place that knows of tables."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import bindparam, case, func, insert, or_, select, update

from bedplate.kernel.db import Database, Money, Transaction, Unit, UtcTime
from bedplate.kernel.outbox import nothing_for
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.payments.models import PaymentRow, RefundRow, SlotRow
from bedplate.modules.payments.public import Payment, PaymentStatus

CONSUMER = "payments"
MAXIMUM_SWEPT = 100
Tx = TypeVar("Tx", bound=Unit)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A payment with what its processing needs. `token`: the card at the provider; `reference`: the charge there.
    `started_at`: since when the provider may have been asked; `void_at`: when its order was cancelled."""

    payment: Payment
    token: str
    reference: str | None
    started_at: datetime | None
    void_at: datetime | None


class RefundStatus(StrEnum):
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Refund:
    """Money that is reserved to be given back; pending until the provider has done it or refused."""

    id: str
    payment_id: str
    amount: Decimal
    reason: str
    status: RefundStatus
    created_at: datetime


class PaymentStore(ABC, Generic[Tx]):
    """Payments of one database, in which also lies what is said of them and what idempotency keys were answered: all
    of it is written in the transactions of this class. Every step is a compare-and-swap: of many that try at once, each
    sees what the one before it has left, and None means that there was nothing to change."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """See `Database.transaction`."""

    @abstractmethod
    async def take_slot(self, tx: Tx, order_id: str, payment_id: str | None) -> None:
        """Be the first for an order: as its payment, or as its cancellation (None).
        Raises UniqueViolation: somebody else was; the transaction is to be left."""

    @abstractmethod
    async def insert(self, tx: Tx, payment: Payment, token: str) -> None:
        """The payment that has the slot."""

    @abstractmethod
    async def start(self, tx: Tx, payment_id: str, at: datetime) -> Attempt | None:
        """Before the provider is asked for the first time. None: it was started before, is void, or has ended."""

    @abstractmethod
    async def complete(
        self, tx: Tx, payment_id: str, reference: str, transaction_id: str, at: datetime
    ) -> Attempt | None:
        """It is charged. None: it has ended before."""

    @abstractmethod
    async def fail(self, tx: Tx, payment_id: str, reason: str, code: str, at: datetime) -> Payment | None:
        """It will not be charged. None: it has ended before."""

    @abstractmethod
    async def void(self, tx: Tx, order_id: str, at: datetime) -> bool:
        """The order of a payment that is still processed was cancelled."""

    @abstractmethod
    async def lock(self, tx: Tx, order_id: str) -> Payment | None:
        """An order's payment; nobody else changes it before this transaction ends."""

    @abstractmethod
    async def reserve(self, tx: Tx, refund: Refund) -> Payment | None:
        """Note a refund, pending. None: the payment is not completed, or has less left than this."""

    @abstractmethod
    async def finish(self, tx: Tx, refund_id: str, reference: str, at: datetime) -> bool:
        """The provider has given it back. False: it has ended before."""

    @abstractmethod
    async def release(self, tx: Tx, refund: Refund, at: datetime) -> bool:
        """The provider refuses: the reserved amount is left again. False: it has ended before."""

    @abstractmethod
    async def find(self, payment_id: str) -> Attempt | None:
        """As it was last committed."""

    @abstractmethod
    async def find_refund(self, refund_id: str) -> Refund | None:
        """As it was last committed."""

    @abstractmethod
    async def page(self, user_id: str, part: Slice) -> Page[Payment]:
        """One user's, newest first, at most 100, with the exact total."""

    @abstractmethod
    async def left_behind(self, before: datetime, after: datetime) -> Sequence[str]:
        """Payments from before that time which are processed and of which no event is on its way or undeliverable: the
        longest waiting 100. Those that were started before `after` are left out."""

    @abstractmethod
    async def refunds_left_behind(self, before: datetime, after: datetime) -> Sequence[tuple[str, str]]:
        """The same for pending refunds: (payment, refund). Those from before `after` are left out."""


# In the order of Payment's fields.
COLUMNS = (
    PaymentRow.id,
    PaymentRow.order_id,
    PaymentRow.user_id,
    PaymentRow.amount,
    PaymentRow.currency,
    PaymentRow.status,
    PaymentRow.method,
    PaymentRow.card_brand,
    PaymentRow.card_last4,
    PaymentRow.transaction_id,
    PaymentRow.failure_reason,
    PaymentRow.error_code,
    PaymentRow.refunded_amount,
    PaymentRow.refund_reason,
    PaymentRow.created_at,
    PaymentRow.completed_at,
    PaymentRow.failed_at,
    PaymentRow.refunded_at,
)
# Then those of Attempt.
MORE = (PaymentRow.provider_token, PaymentRow.provider_reference, PaymentRow.started_at, PaymentRow.void_at)
REFUND_COLUMNS = (
    RefundRow.id,
    RefundRow.payment_id,
    RefundRow.amount,
    RefundRow.reason,
    RefundRow.status,
    RefundRow.created_at,
)
STATUSES = {status.value: status for status in PaymentStatus}
PROCESSING = PaymentStatus.PROCESSING.value
COMPLETED = PaymentStatus.COMPLETED.value
PARTIALLY_REFUNDED = PaymentStatus.PARTIALLY_REFUNDED.value
REFUNDED = PaymentStatus.REFUNDED.value

_this = PaymentRow.id == bindparam("payment_id")
_processed = (_this, PaymentRow.status == PROCESSING)
_sum = bindparam("sum", type_=Money())

_TAKE_SLOT = insert(SlotRow)
_INSERT = insert(PaymentRow)
_START = (
    update(PaymentRow)
    .where(*_processed, PaymentRow.started_at.is_(None), PaymentRow.void_at.is_(None))
    .values(started_at=bindparam("at"))
    .returning(*COLUMNS, *MORE)
)
_COMPLETE = (
    update(PaymentRow)
    .where(*_processed)
    .values(
        status=COMPLETED,
        provider_reference=bindparam("reference"),
        transaction_id=bindparam("transaction"),
        completed_at=bindparam("at"),
    )
    .returning(*COLUMNS, *MORE)
)
_FAIL = (
    update(PaymentRow)
    .where(*_processed)
    .values(
        status=PaymentStatus.FAILED.value,
        failure_reason=bindparam("reason"),
        error_code=bindparam("code"),
        failed_at=bindparam("at"),
    )
    .returning(*COLUMNS)
)
_VOID = (
    update(PaymentRow)
    .where(PaymentRow.order_id == bindparam("order"), PaymentRow.status == PROCESSING, PaymentRow.void_at.is_(None))
    .values(void_at=bindparam("at"))
)
_LOCK = select(*COLUMNS).where(PaymentRow.order_id == bindparam("order")).with_for_update()
# The condition and the change are one statement: of fifty refunds at once none sees an amount that is not left.
_RESERVE = (
    update(PaymentRow)
    .where(
        _this,
        PaymentRow.status.in_((COMPLETED, PARTIALLY_REFUNDED)),
        PaymentRow.refunded_amount + _sum <= PaymentRow.amount,
    )
    .values(
        refunded_amount=PaymentRow.refunded_amount + _sum,
        status=case((PaymentRow.refunded_amount + _sum == PaymentRow.amount, REFUNDED), else_=PARTIALLY_REFUNDED),
        refund_reason=bindparam("reason"),
        refunded_at=bindparam("at"),
    )
    .returning(*COLUMNS)
)
_RELEASE = (
    update(PaymentRow)
    .where(_this)
    .values(
        refunded_amount=PaymentRow.refunded_amount - _sum,
        status=case((PaymentRow.refunded_amount == _sum, COMPLETED), else_=PARTIALLY_REFUNDED),
        refund_reason=case((PaymentRow.refunded_amount == _sum, None), else_=PaymentRow.refund_reason),
        refunded_at=case((PaymentRow.refunded_amount == _sum, None), else_=PaymentRow.refunded_at),
    )
)
_INSERT_REFUND = insert(RefundRow)
_FINISH_REFUND = (
    update(RefundRow)
    .where(RefundRow.id == bindparam("refund_id"), RefundRow.status == RefundStatus.PENDING.value)
    .values(status=bindparam("ended"), provider_reference=bindparam("reference"), finished_at=bindparam("at"))
)
_FIND = select(*COLUMNS, *MORE).where(_this)
_FIND_REFUND = select(*REFUND_COLUMNS).where(RefundRow.id == bindparam("refund_id"))
_PAGE = (
    select(*COLUMNS)
    .where(PaymentRow.user_id == bindparam("user"))
    .order_by(PaymentRow.created_at.desc(), PaymentRow.id.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
_COUNT = select(func.count()).select_from(PaymentRow).where(PaymentRow.user_id == bindparam("user"))
_before = bindparam("before", type_=UtcTime())
_after = bindparam("after", type_=UtcTime())


_LEFT_BEHIND = (
    select(PaymentRow.id)
    .where(
        PaymentRow.status == PROCESSING,
        PaymentRow.created_at < _before,
        or_(PaymentRow.started_at.is_(None), PaymentRow.started_at >= _after),
        *nothing_for(CONSUMER, PaymentRow.id),
    )
    .order_by(PaymentRow.created_at)
    .limit(MAXIMUM_SWEPT)
)
_REFUNDS_LEFT_BEHIND = (
    select(RefundRow.payment_id, RefundRow.id)
    .where(
        RefundRow.status == RefundStatus.PENDING.value,
        RefundRow.created_at < _before,
        RefundRow.created_at >= _after,
        *nothing_for(CONSUMER, RefundRow.payment_id),
    )
    .order_by(RefundRow.created_at)
    .limit(MAXIMUM_SWEPT)
)


class SqlPayments(PaymentStore[Transaction]):
    """In SQLite or PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self._db.transaction()

    async def take_slot(self, tx: Transaction, order_id: str, payment_id: str | None) -> None:
        await tx.execute(_TAKE_SLOT, {"order_id": order_id, "payment_id": payment_id})

    async def insert(self, tx: Transaction, payment: Payment, token: str) -> None:
        row = {
            "id": payment.id,
            "order_id": payment.order_id,
            "user_id": payment.user_id,
            "amount": payment.amount,
            "currency": payment.currency,
            "status": payment.status.value,
            "method": payment.method,
            "card_brand": payment.card_brand,
            "card_last4": payment.card_last4,
            "provider_token": token,
            "refunded_amount": payment.refunded_amount,
            "created_at": payment.created_at,
        }
        await tx.execute(_INSERT, row)

    async def start(self, tx: Transaction, payment_id: str, at: datetime) -> Attempt | None:
        return _attempt(await tx.first(_START, {"payment_id": payment_id, "at": at}))

    async def complete(
        self, tx: Transaction, payment_id: str, reference: str, transaction_id: str, at: datetime
    ) -> Attempt | None:
        values = {"payment_id": payment_id, "reference": reference, "transaction": transaction_id, "at": at}
        return _attempt(await tx.first(_COMPLETE, values))

    async def fail(self, tx: Transaction, payment_id: str, reason: str, code: str, at: datetime) -> Payment | None:
        values = {"payment_id": payment_id, "reason": reason, "code": code, "at": at}
        return _payment(await tx.first(_FAIL, values))

    async def void(self, tx: Transaction, order_id: str, at: datetime) -> bool:
        return bool(await tx.execute(_VOID, {"order": order_id, "at": at}))

    async def lock(self, tx: Transaction, order_id: str) -> Payment | None:
        return _payment(await tx.first(_LOCK, {"order": order_id}))

    async def reserve(self, tx: Transaction, refund: Refund) -> Payment | None:
        values = {"payment_id": refund.payment_id, "sum": refund.amount, "reason": refund.reason}
        payment = _payment(await tx.first(_RESERVE, {**values, "at": refund.created_at}))
        if payment is not None:
            row = {"id": refund.id, "payment_id": refund.payment_id, "amount": refund.amount, "reason": refund.reason}
            await tx.execute(_INSERT_REFUND, {**row, "status": refund.status.value, "created_at": refund.created_at})
        return payment

    async def finish(self, tx: Transaction, refund_id: str, reference: str, at: datetime) -> bool:
        values = {"refund_id": refund_id, "ended": RefundStatus.SUCCEEDED.value, "reference": reference, "at": at}
        return bool(await tx.execute(_FINISH_REFUND, values))

    async def release(self, tx: Transaction, refund: Refund, at: datetime) -> bool:
        values = {"refund_id": refund.id, "ended": RefundStatus.FAILED.value, "reference": None, "at": at}
        if not await tx.execute(_FINISH_REFUND, values):
            return False
        await tx.execute(_RELEASE, {"payment_id": refund.payment_id, "sum": refund.amount})
        return True

    async def find(self, payment_id: str) -> Attempt | None:
        return _attempt(await self._db.first(_FIND, {"payment_id": payment_id}))

    async def find_refund(self, refund_id: str) -> Refund | None:
        row = await self._db.first(_FIND_REFUND, {"refund_id": refund_id})
        if row is None:
            return None
        refund, payment_id, amount, reason, status, created_at = row
        return Refund(refund, payment_id, amount, reason, RefundStatus(status), created_at)

    async def page(self, user_id: str, part: Slice) -> Page[Payment]:
        part = part.bounded()
        rows = await self._db.all(_PAGE, {"user": user_id, "limit": part.limit, "offset": part.offset})
        total = part.total_if_last(len(rows))
        if total is None:
            total = int(await self._db.scalar(_COUNT, {"user": user_id}))
        return Page([_of(row) for row in rows], total)

    async def left_behind(self, before: datetime, after: datetime) -> Sequence[str]:
        return [row.id for row in await self._db.all(_LEFT_BEHIND, {"before": before, "after": after})]

    async def refunds_left_behind(self, before: datetime, after: datetime) -> Sequence[tuple[str, str]]:
        rows = await self._db.all(_REFUNDS_LEFT_BEHIND, {"before": before, "after": after})
        return [(row.payment_id, row.id) for row in rows]


def _of(row: Sequence[Any]) -> Payment:
    """A row that begins with COLUMNS, as a value."""
    return Payment(*row[:5], STATUSES[row[5]], *row[6 : len(COLUMNS)])  # type: ignore[call-arg]  # mypy counts two lists


def _payment(row: Sequence[Any] | None) -> Payment | None:
    return None if row is None else _of(row)


def _attempt(row: Sequence[Any] | None) -> Attempt | None:
    return None if row is None else Attempt(_of(row), *row[len(COLUMNS) :])
