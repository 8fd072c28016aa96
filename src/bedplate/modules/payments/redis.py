"""Payments in Redis: one document for each order. Its payment, or that it was cancelled without one, and what is given
back."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from enum import Enum

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, UniqueViolation, amount_of, microseconds, minor_units, moment
from bedplate.kernel.documents import Body, DocumentTransaction
from bedplate.kernel.outbox import under_way
from bedplate.kernel.paging import Page, Slice
from bedplate.kernel.redis_documents import RedisDocuments, Shelf
from bedplate.modules.payments.public import Payment, PaymentStatus
from bedplate.modules.payments.rules import REFUNDABLE
from bedplate.modules.payments.store import (
    COMPLETED,
    CONSUMER,
    MAXIMUM_SWEPT,
    PARTIALLY_REFUNDED,
    PROCESSING,
    REFUNDED,
    STATUSES,
    Attempt,
    PaymentStore,
    Refund,
    RefundStatus,
)

PENDING = RefundStatus.PENDING.value
PROCESSED, GIVEN_BACK = "processed", "given_back"
MONEY = ("amount", "refunded_amount")
TIMES = ("created_at", "completed_at", "failed_at", "refunded_at")


def documents(url: str, queue: Database, clock: Clock) -> RedisDocuments:
    """Where they lie. Raises OperatorError."""
    return RedisDocuments(url, "payments", _shelf, queue, clock)


class RedisPayments(PaymentStore[DocumentTransaction]):
    """One transaction is about one order."""

    def __init__(self, documents: RedisDocuments) -> None:
        self._documents = documents

    def transaction(self) -> AbstractAsyncContextManager[DocumentTransaction]:
        return self._documents.transaction()

    async def take_slot(self, tx: DocumentTransaction, order_id: str, payment_id: str | None) -> None:
        if await tx.take(order_id) is not None:
            raise UniqueViolation("order_id")
        tx.put(order_id, {"order_id": order_id, "payment_id": payment_id, "payment": None, "refunds": {}})

    async def insert(self, tx: DocumentTransaction, payment: Payment, token: str) -> None:
        body = await tx.take(payment.order_id)
        assert body is not None
        more = {"token": token, "reference": None, "started_at": None, "void_at": None}
        body["payment"] = {each.name: _plain(getattr(payment, each.name)) for each in fields(Payment)} | more

    async def start(self, tx: DocumentTransaction, payment_id: str, at: datetime) -> Attempt | None:
        kept = await self._processed(tx, payment_id)
        if kept is None or kept["started_at"] is not None or kept["void_at"] is not None:
            return None
        return _attempt(_change(tx, kept, started_at=microseconds(at)))

    async def complete(
        self, tx: DocumentTransaction, payment_id: str, reference: str, transaction_id: str, at: datetime
    ) -> Attempt | None:
        kept = await self._processed(tx, payment_id)
        if kept is None:
            return None
        done = {"status": COMPLETED, "transaction_id": transaction_id, "completed_at": microseconds(at)}
        return _attempt(_change(tx, kept, reference=reference, **done))

    async def fail(
        self, tx: DocumentTransaction, payment_id: str, reason: str, code: str, at: datetime
    ) -> Payment | None:
        kept = await self._processed(tx, payment_id)
        if kept is None:
            return None
        why = {"failure_reason": reason, "error_code": code, "failed_at": microseconds(at)}
        return _payment(_change(tx, kept, status=PaymentStatus.FAILED.value, **why))

    async def void(self, tx: DocumentTransaction, order_id: str, at: datetime) -> bool:
        kept = _kept(await tx.take(order_id))
        if kept is None or kept["status"] != PROCESSING or kept["void_at"] is not None:
            return False
        _change(tx, kept, void_at=microseconds(at))
        return True

    async def lock(self, tx: DocumentTransaction, order_id: str) -> Payment | None:
        kept = _kept(await tx.take(order_id))
        return None if kept is None else _payment(kept)

    async def reserve(self, tx: DocumentTransaction, refund: Refund) -> Payment | None:
        kept = await self._taken(tx, refund.payment_id)
        if kept is None or kept["status"] not in REFUNDABLE:
            return None
        refunded = kept["refunded_amount"] + minor_units(refund.amount)
        if refunded > kept["amount"]:
            return None
        assert tx.body is not None
        tx.body["refunds"][refund.id] = {each.name: _plain(getattr(refund, each.name)) for each in fields(Refund)}
        status = REFUNDED if refunded == kept["amount"] else PARTIALLY_REFUNDED
        why = {"refund_reason": refund.reason, "refunded_at": microseconds(refund.created_at)}
        return _payment(_change(tx, kept, refunded_amount=refunded, status=status, **why))

    async def finish(self, tx: DocumentTransaction, refund_id: str, reference: str, at: datetime) -> bool:
        return await self._ended(tx, refund_id, RefundStatus.SUCCEEDED, reference, at) is not None

    async def release(self, tx: DocumentTransaction, refund: Refund, at: datetime) -> bool:
        kept = await self._ended(tx, refund.id, RefundStatus.FAILED, None, at)
        if kept is None:
            return False
        left = kept["refunded_amount"] - minor_units(refund.amount)
        as_before = {} if left else {"refund_reason": None, "refunded_at": None}
        _change(tx, kept, refunded_amount=left, status=PARTIALLY_REFUNDED if left else COMPLETED, **as_before)
        return True

    async def find(self, payment_id: str) -> Attempt | None:
        kept = _kept(await self._found(payment_id))
        return None if kept is None else _attempt(kept)

    async def find_refund(self, refund_id: str) -> Refund | None:
        body = await self._found(refund_id)
        return None if body is None else _refund(body["refunds"][refund_id])

    async def page(self, user_id: str, part: Slice) -> Page[Payment]:
        part = part.bounded()
        found, total = await self._documents.newest(f"user:{user_id}", part.limit, part.offset)
        return Page([_payment(body["payment"]) for body in found], total)

    async def left_behind(self, before: datetime, after: datetime) -> Sequence[str]:
        since, found = microseconds(after), []
        async for body in self._idle(PROCESSED, before):
            started = body["payment"]["started_at"]
            if started is None or started >= since:
                found.append(str(body["payment_id"]))
            if len(found) == MAXIMUM_SWEPT:
                break
        return found

    async def refunds_left_behind(self, before: datetime, after: datetime) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        async for body in self._idle(GIVEN_BACK, before):
            refunds = [_refund(each) for each in body["refunds"].values()]
            pending = [each for each in refunds if each.status is RefundStatus.PENDING]
            found += [(each.payment_id, each.id) for each in pending if after <= each.created_at < before]
            if len(found) >= MAXIMUM_SWEPT:
                break
        return found[:MAXIMUM_SWEPT]

    async def _idle(self, name: str, before: datetime) -> AsyncIterator[Body]:
        """Those in a list whose payment is from before that time and of which no event is on its way or undeliverable,
        the longest waiting first."""
        offset, last = 0, False
        while not last:
            found, last = await self._documents.idle(name, microseconds(before), MAXIMUM_SWEPT, offset)
            offset += MAXIMUM_SWEPT
            busy = await under_way(self._documents.queue, CONSUMER, [body["payment_id"] for body in found])
            for body in found:
                if body["payment_id"] not in busy:
                    yield body

    async def _taken(self, tx: DocumentTransaction, name: str) -> Body | None:
        """The payment that has this id, or this refund."""
        order_id = await self._documents.named(name)
        return None if order_id is None else _kept(await tx.take(order_id))

    async def _processed(self, tx: DocumentTransaction, payment_id: str) -> Body | None:
        kept = await self._taken(tx, payment_id)
        return kept if kept is not None and kept["status"] == PROCESSING else None

    async def _ended(
        self, tx: DocumentTransaction, refund_id: str, status: RefundStatus, reference: str | None, at: datetime
    ) -> Body | None:
        """The payment of a refund that ends now; None: it has ended before."""
        kept = await self._taken(tx, refund_id)
        if kept is None or tx.body is None or tx.body["refunds"][refund_id]["status"] != PENDING:
            return None
        tx.body["refunds"][refund_id] |= {
            "status": status.value,
            "reference": reference,
            "finished_at": microseconds(at),
        }
        return _change(tx, kept)

    async def _found(self, name: str) -> Body | None:
        order_id = await self._documents.named(name)
        return None if order_id is None else await self._documents.find(order_id)


def _change(tx: DocumentTransaction, kept: Body, **values: object) -> Body:
    """The payment with these values, which are written."""
    assert tx.body is not None
    kept.update(values)
    tx.put(tx.id, tx.body)
    return kept


def _shelf(body: Body) -> Shelf:
    payment = body["payment"]
    if payment is None:
        return Shelf((), {})
    at: int = payment["created_at"]
    pending = any(refund["status"] == PENDING for refund in body["refunds"].values())
    lists = {
        f"user:{payment['user_id']}": at,
        PROCESSED: at if payment["status"] == PROCESSING else None,
        GIVEN_BACK: at if pending else None,
    }
    return Shelf((body["payment_id"], *body["refunds"]), lists)


def _plain(value: object) -> object:
    """As JSON has it: times as microseconds, money as minor units."""
    if isinstance(value, datetime):
        return microseconds(value)
    if isinstance(value, Decimal):
        return minor_units(value)
    return value.value if isinstance(value, Enum) else value


def _kept(body: Body | None) -> Body | None:
    payment: Body | None = None if body is None else body["payment"]
    return payment


def _payment(kept: Body) -> Payment:
    values = {each.name: kept[each.name] for each in fields(Payment)}
    values |= {name: amount_of(kept[name]) for name in MONEY} | {name: moment(kept[name]) for name in TIMES}
    return Payment(**{**values, "status": STATUSES[kept["status"]]})


def _attempt(kept: Body) -> Attempt:
    return Attempt(
        _payment(kept), kept["token"], kept["reference"], moment(kept["started_at"]), moment(kept["void_at"])
    )


def _refund(kept: Body) -> Refund:
    return Refund(
        id=kept["id"],
        payment_id=kept["payment_id"],
        amount=amount_of(int(kept["amount"])),
        reason=kept["reason"],
        status=RefundStatus(kept["status"]),
        created_at=moment(int(kept["created_at"])),
    )
