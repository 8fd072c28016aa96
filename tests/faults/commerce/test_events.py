"""Events delivered up to five times, shuffled, late, and at first not at all: the end is that of a world in which each
came once and in order."""

import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select

from bedplate import models
from bedplate.compose.shape import GROUPS, LISTENS, topics_of
from bedplate.kernel.broker import published_types, with_broker
from bedplate.kernel.cache import Cache
from bedplate.kernel.db import Database
from bedplate.kernel.events import Event
from bedplate.kernel.idempotency import Idempotency, SqlAnswers
from bedplate.kernel.intake import Intake
from bedplate.kernel.outbox import Listener, routes_of
from bedplate.kernel.publisher import Publisher
from bedplate.kernel.relay import Relay
from bedplate.kernel.security import Passwords
from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.modules.checkout.checkout import Settlement
from bedplate.modules.identity.public import Registration
from bedplate.modules.identity.users import UsersService
from bedplate.modules.mail.notifications import Notifications
from bedplate.modules.mail.transport import MailboxOnly
from bedplate.modules.orders.orders import OrdersService
from bedplate.modules.orders.public import Order, OrderItem, OrderNotModifiable
from bedplate.modules.orders.store import SqlOrders
from bedplate.modules.payments.payments import PaymentsService
from bedplate.modules.payments.processing import Processing
from bedplate.modules.payments.public import AlreadyPaid, PaymentMethod, PaymentMismatch, PaymentRequest
from bedplate.modules.payments.sandbox import CHARGE, REFUND, SUCCEEDED, Sandbox
from bedplate.modules.payments.store import SqlPayments
from tests.factories import PASSWORD, TurnableClock
from tests.faults.commerce.chaos import ChaosBroker, Echo
from tests.faults.commerce.harness import seed_of
from tests.faults.commerce.reconcile import Charge, Stores, violations
from tests.faults.commerce.shoppers import GOOD, ORDERS_OF_ONE_USER, REFUSED, History, Seen

# What happens to an order, and the one end that each may have.
ENDS = {
    "paid": ("confirmed", "completed"),
    "refused": ("cancelled", "failed"),
    "cancelled": ("cancelled", ""),
    "cancelled while it was paid": ("cancelled", "nothing kept"),
    "cancelled when it was paid": ("cancelled", "nothing kept"),
}


@dataclass
class Part:
    """One module with a database of its own."""

    unit: str
    database: Database
    relay: Relay
    publisher: Publisher
    intake: Intake | None


@dataclass
class Bazaar:
    """The real modules, each with its own database, joined by the worst of brokers."""

    clock: TurnableClock
    broker: ChaosBroker
    echo: Echo
    users: UsersService
    orders: OrdersService
    payments: PaymentsService
    parts: list[Part] = field(default_factory=list)

    def database(self, unit: str) -> Database:
        return next(part.database for part in self.parts if part.unit == unit)

    async def turn(self) -> int:
        """Let everything that is there go one step. How much that was."""
        moved = 0
        for part in self.parts:
            moved += await part.publisher.drain()
            if part.intake is not None:
                moved += sum([await reader.step(0.0) for reader in part.intake._readers])
            moved += await part.relay.drain()
        self.clock.advance(2)
        return moved

    async def settle(self) -> None:
        quiet = 0
        for _ in range(20_000):
            moved = await self.turn() + await self.echo.repeat(0.3)
            quiet = 0 if moved or self.echo.kept else quiet + 1
            if quiet > 15:
                return
        raise AssertionError("it never comes to rest")


@asynccontextmanager
async def bazaar(folder: Path, template: Path, seed: int) -> AsyncIterator[Bazaar]:
    clock, broker, echo = TurnableClock(), ChaosBroker(seed), Echo(seed)
    databases: dict[str, Database] = {}
    for unit in ("identity", "orders", "payments", "mail"):
        shutil.copy(template, folder / f"{unit}.db")
        databases[unit] = opened = SqliteDatabase(str(folder / f"{unit}.db"))
        opened._bare.execute("PRAGMA synchronous=OFF")  # nothing here is about the disk
    passwords = Passwords(1)
    cache = Cache(clock, databases["identity"], None)
    databases["identity"].listeners.append(cache)
    users = UsersService(databases["identity"], cache, passwords, clock, strict_passwords=False)
    orders = OrdersService(
        SqlOrders(databases["orders"]), Idempotency(SqlAnswers(databases["orders"]), clock), users, clock
    )
    store, provider = SqlPayments(databases["payments"]), Sandbox(databases["payments"], clock)
    payments = PaymentsService(store, Idempotency(SqlAnswers(databases["payments"]), clock), orders, provider, clock)
    listeners = {
        "identity": [],
        "orders": Settlement(orders).listeners(),
        "payments": Processing(store, provider, clock).listeners(),
        "mail": Notifications(databases["mail"], users, orders, MailboxOnly(), clock, "USD", 10_000).listeners(),
    }
    opened_bazaar = Bazaar(clock, broker, echo, users, orders, payments)
    for unit, database in databases.items():
        opened_bazaar.parts.append(_part(unit, database, listeners[unit], opened_bazaar))
    try:
        yield opened_bazaar
    finally:
        passwords.close()
        for database in databases.values():
            await database.close()


def _part(unit: str, database: Database, listeners: list[Listener], there: Bazaar) -> Part:
    heard = [there.echo.of(listener) for listener in listeners]
    relay = Relay(database, heard, there.clock)
    # What is heard of others comes through the broker; in its own database a module hears itself alone.
    own = [listener for listener in heard if not listener.event.published]
    database.routes = with_broker(routes_of(own))
    groups = {
        topic: [
            GROUPS[other]
            for other in ("orders", "payments", "mail")
            if other != unit and topic in topics_of(LISTENS[other])
        ]
        for topic in published_types()
    }
    publisher = Publisher(database, there.broker, there.clock, groups)
    wanted: dict[str, list[type[Event]]] = {}
    for listener in listeners:
        if listener.event.published and listener.event not in wanted.get(listener.event.topic, ()):
            wanted.setdefault(listener.event.topic, []).append(listener.event)
    intake = Intake(database, there.broker, GROUPS[unit], unit, wanted, there.clock, relay.look) if wanted else None
    return Part(unit, database, relay, publisher, intake)


async def trade(there: Bazaar, number: int, seed: int) -> tuple[History, dict[str, str]]:
    """So many orders, while the events of those before are on their way; what happened to each."""
    dice = random.Random(seed)
    history, happened = History(), dict[str, str]()
    user = ""
    for turn in range(number):
        if turn % ORDERS_OF_ONE_USER == 0:
            name = f"trader{turn}"
            registration = Registration(f"{name}@example.com", PASSWORD, username=name)
            user = (await there.users.register(registration)).id
            history.users[user] = registration.email
        price = Decimal(dice.randint(100, 9_999)).scaleb(-2)
        order = await there.orders.place(user, [OrderItem(f"flow-{turn}", 1, price)])
        seen = history.flows[str(turn)] = Seen(str(turn), user, price, order.id)
        kind = happened[order.id] = dice.choice(list(ENDS))
        await _happen(there, kind, order, seen, dice)
        if turn % 20 == 19:
            await there.turn()
    return history, happened


async def _happen(there: Bazaar, kind: str, order: Order, seen: Seen, dice: random.Random) -> None:
    if kind == "cancelled":
        await there.orders.cancel(order.id, "changed my mind")
        seen.cancelled = True
        if dice.random() < 0.5:
            return
    method = PaymentMethod("credit_card", REFUSED if kind == "refused" else GOOD, "12", "2040", "123")
    request = PaymentRequest(order.id, order.user_id, order.total, "USD", method)
    try:
        seen.payment_id = (await there.payments.pay(request)).id
    except (AlreadyPaid, PaymentMismatch, OrderNotModifiable):
        assert kind == "cancelled"
    if kind == "cancelled when it was paid":
        for _ in range(dice.randint(1, 4)):
            await there.turn()
    if kind.startswith("cancelled w"):
        await there.orders.cancel(order.id, "changed my mind")
        seen.cancelled = True


async def stores_of(there: Bazaar) -> Stores:
    async def rows(unit: str, table: type[models.Base]) -> list[object]:
        return list(await there.database(unit).all(select(table.__table__)))

    entries = [row for row in await rows("payments", models.SandboxEntryRow) if row.outcome == SUCCEEDED]  # type: ignore[attr-defined]
    charges = {row.reference: Charge(row.reference, row.key, row.amount) for row in entries if row.kind == CHARGE}  # type: ignore[attr-defined]
    for row in entries:
        if row.kind == REFUND:  # type: ignore[attr-defined]
            charges[row.reference].refunds.append((row.key, row.amount))  # type: ignore[attr-defined]
    waiting = [f"{part.unit}: {row}" for part in there.parts for row in await rows(part.unit, models.OutboxRow)]
    dead = [f"{part.unit}: {row}" for part in there.parts for row in await rows(part.unit, models.DeadLetterRow)]
    return Stores(
        await rows("orders", models.OrderRow),
        await rows("payments", models.PaymentRow),
        await rows("payments", models.RefundRow),
        await rows("mail", models.MailRow),
        await rows("mail", models.PushRow),
        await rows("identity", models.UserRow),
        list(charges.values()),
        waiting,
        dead,
    )


async def through_chaos(folder: Path, template: Path, number: int, seed: int) -> ChaosBroker:
    async with bazaar(folder, template, seed) as there:
        history, happened = await trade(there, number, seed)
        await there.settle()
        stores = await stores_of(there)
        broker, heard = there.broker, there.echo.repeated
        print(
            f"\n{number} orders, {broker.published} events published, {broker.delivered} deliveries, {broker.dropped} "
            f"dropped at first, {heard} handled a second time, seed {seed}; ends {dict(Counter(happened.values()))}"
        )
        assert violations(stores, history) == []
        payments = {row.order_id: row.status for row in stores.payments}
        for order in stores.orders:
            status, payment = ENDS[happened[order.id]]
            assert order.status == status, happened[order.id]
            ends = {"nothing kept": ("failed", "refunded"), "": ("failed", None)}.get(payment, (payment,))
            assert payments.get(order.id) in ends, happened[order.id]
        return broker


@pytest.mark.timeout(120)
async def test_events_in_any_order_and_number_come_to_the_same_end(tmp_path: Path, sqlite_template: Path) -> None:
    broker = await through_chaos(tmp_path, sqlite_template, 60, seed_of(1))
    assert broker.delivered > 2 * broker.published


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_ten_thousand_events_in_any_order_and_number_come_to_the_same_end(
    tmp_path: Path, sqlite_template: Path
) -> None:
    broker = await through_chaos(tmp_path, sqlite_template, 3_000, seed_of(2))
    assert broker.published >= 10_000
