"""The reconciler: every store of the product, the provider's own ledger and what clients were told, held against each
other. It reads the databases themselves and trusts no part of the product but the names of the columns.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import select, text

from bedplate.compose.chosen import database_at
from bedplate.kernel.db import Database
from bedplate.models import DeadLetterRow, MailRow, OrderRow, OutboxRow, PaymentRow, PushRow, RefundRow, UserRow
from tests.faults.commerce.deployments import Deployment
from tests.faults.commerce.shoppers import History

ORDER_STATUSES = {"pending", "confirmed", "processing", "shipped", "delivered", "cancelled"}
PAID_ORDERS = {"confirmed", "processing", "shipped", "delivered"}
PAYMENT_STATUSES = {"processing", "completed", "failed", "refunded", "partially_refunded"}
CHARGED = {"completed", "refunded", "partially_refunded"}
NOTHING = Decimal(0)


@dataclass
class Charge:
    """One at the provider. `payment`: the idempotency key that it was made with."""

    id: str
    payment: str
    amount: Decimal
    refunds: list[tuple[str, Decimal]] = field(default_factory=list)

    @property
    def kept(self) -> Decimal:
        return self.amount - sum((amount for _, amount in self.refunds), NOTHING)


@dataclass
class Stores:
    """Everything that is written anywhere."""

    orders: Sequence[Any]
    payments: Sequence[Any]
    refunds: Sequence[Any]
    mails: Sequence[Any]
    pushes: Sequence[Any]
    users: Sequence[Any]
    charges: Sequence[Charge]
    waiting: Sequence[str] = ()
    dead: Sequence[str] = ()
    damage: Sequence[str] = ()


async def read(there: Deployment) -> Stores:
    """As it is committed at this moment; nothing is held still meanwhile."""
    opened = {url: database_at(url) for url in set(there.databases.values())}
    of = {unit: opened[url] for unit, url in there.databases.items()}
    try:
        orders, users = await _all(of["orders"], OrderRow), await _all(of["identity"], UserRow)
        payments, refunds = await _all(of["payments"], PaymentRow), await _all(of["payments"], RefundRow)
        mails, pushes = await _all(of["mail"], MailRow), await _all(of["mail"], PushRow)
        waiting, dead, damage = [], [], []
        for database in opened.values():
            waiting += [f"{row.consumer}: {row.type} {row.key}" for row in await _all(database, OutboxRow)]
            dead += [
                f"{row.consumer}: {row.type} {row.key}: {row.error}" for row in await _all(database, DeadLetterRow)
            ]
            damage += await _damage(database)
    finally:
        for database in opened.values():
            await database.close()
    charges = _ledger(there.ledger)
    return Stores(orders, payments, refunds, mails, pushes, users, charges, waiting, dead, damage)


async def _all(database: Database, table: Any) -> Sequence[Any]:
    return await database.all(select(table.__table__))


async def _damage(database: Database) -> list[str]:
    if database.dialect.name != "sqlite":
        return []
    found = []
    for pragma in ("integrity_check", "foreign_key_check"):
        found += [f"{pragma}: {row[0]}" for row in await database.all(text(f"PRAGMA {pragma}")) if row[0] != "ok"]
    return found


def _ledger(path: Path) -> list[Charge]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as ledger:
        rows = ledger.execute("SELECT id, payment, amount FROM intents WHERE status IN ('succeeded', 'processing')")
        charges = {row[0]: Charge(row[0], row[1], Decimal(row[2]).scaleb(-2)) for row in rows}
        for intent, refund, amount in ledger.execute("SELECT intent, refund, amount FROM refunds"):
            charges[intent].refunds.append((refund, Decimal(amount).scaleb(-2)))
    return list(charges.values())


def violations(stores: Stores, history: History) -> list[str]:
    """Every invariant that does not hold, in words."""
    return [
        *history.offences,
        *_lost(stores, history),
        *_orders(stores),
        *_money(stores),
        *_told(stores),
        *(f"still waiting for {each}" for each in stores.waiting),
        *(f"dead letter for {each}" for each in stores.dead),
        *stores.damage,
    ]


def _lost(stores: Stores, history: History) -> Iterable[str]:
    """Whatever was acknowledged is there, as it was acknowledged, and once."""
    orders = {row.id: row for row in stores.orders}
    payments = {row.id: row for row in stores.payments}
    users = {row.id for row in stores.users}
    yield from (f"user {user} was acknowledged and is lost" for user in history.users if user not in users)
    for seen in history.flows.values():
        order, payment = orders.get(seen.order_id), payments.get(seen.payment_id)
        if seen.order_id and (order is None or (order.user_id, order.total) != (seen.user_id, seen.total)):
            yield f"order {seen.order_id} of {seen.flow} was acknowledged and is lost"
        if seen.payment_id and (payment is None or (payment.order_id, payment.amount) != (seen.order_id, seen.total)):
            yield f"payment {seen.payment_id} of {seen.flow} was acknowledged and is lost"
        if seen.cancelled and order is not None and order.status != "cancelled":
            yield f"the cancellation of {seen.order_id} was acknowledged; the order is {order.status}"
        if seen.refunded and (payment is None or payment.refunded_amount < seen.refunded):
            yield f"a refund of {seen.payment_id} was acknowledged and is lost"
    copies = Counter(item["product_id"] for row in stores.orders for item in row.items)
    yield from (f"{product} was ordered {number} times" for product, number in copies.items() if number > 1)
    asked = {f"flow-{flow}" for flow in history.flows}
    yield from (f"{product} was ordered by nobody" for product in copies if product not in asked)


def _orders(stores: Stores) -> Iterable[str]:
    payments = {row.order_id: row for row in stores.payments}
    for order in stores.orders:
        payment = payments.get(order.id)
        if order.status not in ORDER_STATUSES:
            yield f"order {order.id} is {order.status}, which there is not"
        if order.status == "pending" and payment is not None and payment.status != "processing":
            yield f"order {order.id} is pending; its payment is {payment.status}"
        paid = payment is not None and payment.status in CHARGED and payment.id == order.payment_id
        if order.status in PAID_ORDERS and not paid:
            yield f"order {order.id} is {order.status}; its payment is {payment and payment.status}"
        if (order.status == "cancelled") != (order.cancelled_at is not None):
            yield f"order {order.id} is {order.status}; cancelled at {order.cancelled_at}"


def _money(stores: Stores) -> Iterable[str]:
    payments = {row.id: row for row in stores.payments}
    orders = {row.id: row for row in stores.orders}
    charges: dict[str, list[Charge]] = defaultdict(list)
    for charge in stores.charges:
        charges[charge.payment].append(charge)
        payment = payments.get(charge.payment)
        if payment is None or payment.status not in CHARGED:
            yield f"charge {charge.id} belongs to {charge.payment}, which is {payment and payment.status}"
    for order_id, number in Counter(row.order_id for row in stores.payments).items():
        if number > 1:
            yield f"order {order_id} has {number} payments"
    pending = [row.id for row in stores.refunds if row.status == "pending"]
    yield from (f"refund {refund} is pending" for refund in pending)
    given = Counter(key for charge in stores.charges for key, _ in charge.refunds)
    yield from (f"refund {key} was executed {number} times" for key, number in given.items() if number > 1)
    yield from (
        f"refund {row.id} is {row.status}, and was executed {given[row.id]} times"
        for row in stores.refunds
        if (row.status == "succeeded") != (given[row.id] == 1)
    )
    for payment in stores.payments:
        yield from _payment(payment, charges[payment.id], orders.get(payment.order_id))
    ours = sum((row.amount - row.refunded_amount for row in stores.payments if row.status in CHARGED), NOTHING)
    theirs = sum((charge.kept for charge in stores.charges), NOTHING)
    if ours != theirs:
        yield f"the books say {ours}, the provider says {theirs}"


def _payment(payment: Any, charges: Sequence[Charge], order: Any) -> Iterable[str]:
    if payment.status not in PAYMENT_STATUSES:
        yield f"payment {payment.id} is {payment.status}, which there is not"
    if payment.status == "processing":
        yield f"payment {payment.id} is still processing"
    if len(charges) > 1:
        yield f"payment {payment.id} was charged {len(charges)} times"
    if payment.status in CHARGED and [charge.amount for charge in charges] != [payment.amount]:
        yield f"payment {payment.id} over {payment.amount} has charges of {[str(each.amount) for each in charges]}"
    if order is None:
        yield f"payment {payment.id} is for {payment.order_id}, which is not there"
    elif order.status == "cancelled" and sum((charge.kept for charge in charges), NOTHING):
        yield f"order {order.id} is cancelled; its charge was not given back"


def _told(stores: Stores) -> Iterable[str]:
    """One mail and one push message for each event that has one, and none for what has not happened."""
    mails, pushes = Counter(row.subject for row in stores.mails), Counter(_told_of(row) for row in stores.pushes)
    due_mails: Counter[str] = Counter()
    due_pushes: Counter[tuple[str, str]] = Counter({("Welcome", row.id): 1 for row in stores.users})
    payments = {row.order_id: row for row in stores.payments}
    for order in stores.orders:
        payment = payments.get(order.id)
        happened: Mapping[tuple[str, str], bool] = {
            ("Order Received", f"Order Received - {order.id}"): True,
            ("Order Confirmed", f"Order Confirmation - {order.id}"): order.payment_id is not None,
            ("Order Cancelled", f"Order Cancelled - {order.id}"): order.status == "cancelled",
            ("Payment Successful", f"Payment Confirmation - Order {order.id}"): bool(payment and payment.completed_at),
            ("Payment Failed", f"Payment Failed - Order {order.id}"): bool(payment and payment.failed_at),
        }
        for (title, subject), told in happened.items():
            if told:
                due_mails[subject] += 1
                due_pushes[title, order.id] += 1
    about_orders = Counter({subject: number for subject, number in mails.items() if "order-" in subject})
    yield from _differences("mail", due_mails, about_orders)
    yield from _differences("push message", due_pushes, pushes)


def _told_of(push: Any) -> tuple[str, str]:
    words = [word.rstrip(":.") for word in push.body.split() if word.startswith("order-")]
    return push.title, words[0] if words else push.user_id


def _differences(what: str, due: Counter[Any], there: Counter[Any]) -> Iterable[str]:
    for each in sorted(due.keys() | there.keys(), key=str):
        if due[each] != there[each]:
            yield f"{what} {each}: {due[each]} due, {there[each]} there"


async def settled(there: Deployment, history: History, seconds: float) -> tuple[list[str], float, Stores]:
    """What is violated once nothing is, or after so many seconds; how many seconds that took; what was read."""
    began = time.monotonic()
    while True:
        stores = await read(there)
        found = violations(stores, history)
        took = time.monotonic() - began
        if not found or took > seconds:
            return found, took, stores
        await asyncio.sleep(1.0)
