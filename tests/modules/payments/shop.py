"""A shop: users, orders and payments on one database, with the sandbox as the judge of what was really charged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import select

from bedplate.compose.chosen import Kept, payments_of
from bedplate.kernel.cache import Cache
from bedplate.kernel.clock import iso
from bedplate.kernel.db import Database
from bedplate.kernel.events import Event
from bedplate.kernel.failpoints import FailpointReached
from bedplate.kernel.idempotency import Idempotency, Once, SqlAnswers
from bedplate.kernel.outbox import Delivery, Listener, revive
from bedplate.kernel.redis_documents import RedisDocuments
from bedplate.kernel.relay import Relay
from bedplate.kernel.security import Passwords
from bedplate.kernel.settings import Settings
from bedplate.models import DeadLetterRow, OutboxRow, PaymentRow, RefundRow, SandboxEntryRow
from bedplate.modules.checkout.checkout import Settlement
from bedplate.modules.identity.public import Registration, User
from bedplate.modules.identity.users import UsersService
from bedplate.modules.orders.events import OrderCancelled
from bedplate.modules.orders.orders import OrdersService
from bedplate.modules.orders.public import Order, OrderItem
from bedplate.modules.orders.store import SqlOrders
from bedplate.modules.payments.events import (
    PaymentCompleted,
    PaymentFailed,
    PaymentRefunded,
    PaymentRequested,
    RefundRequested,
)
from bedplate.modules.payments.payments import PaymentsService
from bedplate.modules.payments.processing import Processing
from bedplate.modules.payments.provider import Provider
from bedplate.modules.payments.public import Payment, PaymentMethod, PaymentRequest
from bedplate.modules.payments.sandbox import CHARGE, REFUND, SUCCEEDED, Sandbox
from bedplate.modules.payments.store import SqlPayments
from tests import factories
from tests.factories import PASSWORD, TurnableClock
from tests.stores import rows_in_redis

GOOD = "4242424242424242"
SECRET = "a-secret-of-the-tests-and-of-nobody-else"
TOTAL = Decimal("75.48")


def card(number: str = GOOD, cvv: str = "123") -> PaymentMethod:
    return PaymentMethod("credit_card", number, "12", "2025", cvv)


def once(key: str, body: Any = None) -> Once:
    return Once.of(SECRET, "somebody", key, body)


# Of the databases that have their payments elsewhere: where, and what was opened there.
PAYMENTS_AT: dict[Database, str] = {}
OPENED: dict[Database, list[Any]] = {}


@asynccontextmanager
async def payments_at(db: Database, url: str | None) -> AsyncIterator[None]:
    """Shops that are opened on this database keep their payments at that Redis, if there is one."""
    if url is not None:
        PAYMENTS_AT[db], OPENED[db] = url, []
    yield
    PAYMENTS_AT.pop(db, None)
    for documents in OPENED.pop(db, []):
        await documents.close()


class Ear:
    """Notes what is published of payments."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def listeners(self) -> list[Listener]:
        published = (PaymentCompleted, PaymentFailed, PaymentRefunded)
        return [Listener("ear.payments", each, self._hear) for each in published]

    async def _hear(self, delivery: Delivery) -> None:
        self.heard.append(delivery.event)


@dataclass
class Shop:
    """`user` buys. Events are delivered when a test asks for it."""

    db: Database
    clock: TurnableClock
    user: User
    orders: OrdersService
    payments: PaymentsService
    processing: Processing
    relay: Relay
    ear: Ear
    listeners: list[Listener]
    documents: RedisDocuments | None

    async def order(self, total: Decimal = TOTAL) -> Order:
        return await self.orders.place(self.user.id, [OrderItem("prod-1", 1, total)])

    async def pay(self, order: Order, method: PaymentMethod | None = None, once: Once | None = None) -> Payment:
        return await self.payments.pay(self.request(order, method), once)

    async def paid(self, total: Decimal = TOTAL) -> Payment:
        """The payment of a new order, completed."""
        payment = await self.pay(await self.order(total))
        await self.relay.drain()
        return await self.payments.get_payment(payment.id)

    def request(self, order: Order, method: PaymentMethod | None = None, **other: Any) -> PaymentRequest:
        details = {"order_id": order.id, "user_id": order.user_id, "amount": order.total, "currency": "USD"}
        return PaymentRequest(**{**details, "method": method or card(), **other})

    async def ledger(self, kind: str, reference: str | None = None) -> list[Any]:
        """What the sandbox has really charged or given back."""
        moved = select(SandboxEntryRow.__table__).where(
            SandboxEntryRow.kind == kind, SandboxEntryRow.outcome == SUCCEEDED
        )
        if reference is not None:
            moved = moved.where(SandboxEntryRow.reference == reference)
        return list(await self.db.all(moved))

    async def moved(self) -> Decimal:
        """Charges less refunds, by the sandbox's ledger."""
        charges, refunds = await self.ledger(CHARGE), await self.ledger(REFUND)
        return sum((each.amount for each in charges), Decimal(0)) - sum((each.amount for each in refunds), Decimal(0))

    async def booked(self) -> Decimal:
        """Completed less refunded, by our own books."""
        rows = [row for row in await self.rows(PaymentRow) if row.completed_at is not None]
        return sum((row.amount - row.refunded_amount for row in rows), Decimal(0))

    async def rows(self, table: Any) -> list[Any]:
        found = None if self.documents is None else await rows_in_redis(self.documents, table)
        return list(await self.db.all(select(table.__table__))) if found is None else found

    async def settle(self, rounds: int = 12) -> None:
        """Whatever may have happened: deliver, wait and sweep, until nothing is left to be done."""
        for _ in range(rounds):
            await self.relay.drain()
            if not await self.unfinished():
                return
            self.clock.advance(61)  # past every pause of the relay
            if self.documents is not None:
                await self.documents.drain()
            await self.processing.sweep()
            await revive(self.db, self.clock, ("payments", "orders"))
        raise AssertionError(f"left unfinished: {await self.unfinished()}")

    async def unfinished(self) -> list[Any]:
        """Events, processed payments and pending refunds that are still there."""
        waiting = await self.db.all(select(OutboxRow.__table__))
        dead = await self.db.all(select(DeadLetterRow.__table__))
        processed = [row for row in await self.rows(PaymentRow) if row.status == "processing"]
        pending = [row for row in await self.rows(RefundRow) if row.status == "pending"]
        left = [] if self.documents is None else await self.documents.waiting(100)
        return [*waiting, *dead, *processed, *pending, *left]

    def handler(self, event: Event) -> Any:
        """What payments do with an event."""
        (found,) = [each.handle for each in self.processing.listeners() if each.event is type(event)]
        return found

    async def hear(self, event: Event) -> None:
        """Handle an event once more, whatever the outbox says."""
        await self.handler(event)(Delivery(event, "an-id", "payments.test", self.clock.now()))

    async def hear_cancelled(self, order: Order) -> None:
        """The order is cancelled, and payments hear of it before the charge begins."""
        await self.orders.cancel(order.id, "changed my mind")
        await self.retrying(OrderCancelled(order.id, order.user_id, "changed my mind", iso(self.clock.now())))

    async def retrying(self, event: Event) -> None:
        """Handle an event, and again if a failpoint was in the way."""
        for _ in range(3):
            try:
                async with asyncio.timeout(1):
                    return await self.hear(event)
            except (FailpointReached, TimeoutError):
                continue
        raise AssertionError("it fails again and again")

    async def charge(self, payment: Payment) -> None:
        await self.hear(PaymentRequested(payment.id))

    async def execute_refunds(self) -> None:
        for row in await self.rows(RefundRow):
            await self.hear(RefundRequested(row.payment_id, row.id))


async def open_shop(db: Database, clock: TurnableClock, provider: Provider | None = None) -> Shop:
    """A shop on a migrated, empty database."""
    cache = Cache(clock, db, None)
    passwords = Passwords(1)
    users = UsersService(db, cache, passwords, clock, strict_passwords=False)
    orders = OrdersService(SqlOrders(db), Idempotency(SqlAnswers(db), clock), users, clock)
    provider = provider or Sandbox(db, clock)
    url = PAYMENTS_AT.get(db)
    kept: Kept[Any] = Kept(SqlPayments(db), SqlAnswers(db))
    if url is not None:
        kept = payments_of(Settings(_env_file=None, payments_database_url=url), db, clock)
        OPENED[db].append(kept.documents)
    store = kept.store
    payments = PaymentsService(store, Idempotency(kept.answers, clock), orders, provider, clock)
    processing = Processing(store, provider, clock)
    ear = Ear()
    listeners = [*Settlement(orders).listeners(), *processing.listeners(), *ear.listeners()]
    relay = Relay(db, listeners, clock)
    db.listeners += [cache, relay]
    user = await users.register(Registration(factories.email(), PASSWORD, username=factories.username()))
    passwords.close()
    documents: Any = kept.documents
    return Shop(db, clock, user, orders, payments, processing, relay, ear, listeners, documents)
