"""Orders, payments, refunds and cancellations, with their events in any order and number and failures anywhere, against
a model; the sandbox's ledger is the judge of what was really charged and given back."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from bedplate.kernel import failpoints
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.failpoints import FailpointReached
from bedplate.kernel.outbox import Delivery
from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.models import OutboxRow, PaymentRow, RefundRow, SandboxEntryRow, SlotRow
from bedplate.modules.orders.public import OrderNotModifiable
from bedplate.modules.payments.public import AlreadyPaid, RefundNotAllowed
from bedplate.modules.payments.sandbox import CHARGE, REFUND
from tests.factories import TurnableClock
from tests.failpoints import of_module
from tests.kernel.servers import RedisServer
from tests.modules.payments.shop import Shop, card, once, open_shop, payments_at

GOOD, POOR, LOST, RETRY = "4242424242424242", "4000000000009995", "4000000000000077", "4000000000000119"
# More for a longer search, as many as one has time for.
EXAMPLES = int(os.environ.get("BEDPLATE_TEST_EXAMPLES", "60"))
STEPS = 40


@dataclass
class Pay:
    """The model of a payment."""

    id: str
    amount: Decimal
    number: str
    status: str = "processing"
    started: bool = False
    void: bool = False
    attempts: int = 0
    refunded: Decimal = Decimal(0)

    def reserve(self, amount: Decimal) -> bool:
        if self.status not in ("completed", "partially_refunded") or not 0 < amount <= self.amount - self.refunded:
            return False
        self.refunded += amount
        self.status = "refunded" if self.refunded == self.amount else "partially_refunded"
        return True

    def charge(self) -> None:
        """What its event does."""
        if self.status != "processing":
            return
        if self.void and not self.started:
            self.status = "failed"
            return
        self.started = True
        self.attempts += 1
        if self.number == POOR:
            self.status = "failed"
        elif self.number == GOOD or self.attempts > 1:
            self.status = "completed"
            if self.void:
                self.reserve(self.amount)


@dataclass
class Buy:
    """The model of an order."""

    id: str
    total: Decimal
    status: str = "pending"
    barred: bool = False
    payment: Pay | None = None


@dataclass
class Model:
    orders: list[Buy] = field(default_factory=list)

    def payments(self) -> list[tuple[Buy, Pay]]:
        return [(order, order.payment) for order in self.orders if order.payment is not None]

    def hear(self, kind: str, payload: dict[str, Any]) -> None:
        """What an event changes, which may be nothing."""
        if kind in ("PaymentRequested", "RefundRequested"):
            for _, payment in self.payments():
                if payment.id == payload["payment_id"] and kind == "PaymentRequested":
                    payment.charge()
            return
        [order] = [each for each in self.orders if each.id == payload["order_id"]]
        if kind == "OrderCancelled":
            if order.payment is None:
                order.barred = True
            elif order.payment.status == "processing":
                order.payment.void = True
            else:
                order.payment.reserve(order.payment.amount - order.payment.refunded)
        elif order.status == "pending":
            order.status = {"PaymentCompleted": "confirmed", "PaymentFailed": "cancelled"}[kind]


class Market(RuleBasedStateMachine):
    template: ClassVar[Path]
    redis: ClassVar[RedisServer | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._folder = tempfile.TemporaryDirectory()
        self.model = Model()
        self.keys = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    @initialize()
    def open(self) -> None:
        shutil.copy(self.template, f"{self._folder.name}/shop.db")
        self.shop: Shop = self.run(self._open())

    async def _open(self) -> Shop:
        db = SqliteDatabase(f"{self._folder.name}/shop.db")
        db._bare.execute("PRAGMA synchronous=OFF")
        url = None
        if self.redis is not None:
            url = self.redis.url
            with self.redis.client() as client:
                client.flushall()
        await self._stack.enter_async_context(payments_at(db, url))
        return await open_shop(db, TurnableClock())

    async def _asked(self, ask: Any) -> Any:
        """A client's request, made again with the same key until there is an answer."""
        self.keys += 1
        key = once(str(self.keys))
        for _ in range(3):
            try:
                return await ask(key)
            except FailpointReached:
                continue
        raise AssertionError("it fails again and again")

    def _refused(self, ask: Any, problem: type[Exception]) -> bool:
        """Ask; whether it was refused with this problem."""
        try:
            self.answer = self.run(self._asked(ask))
        except problem:
            return True
        return False

    @rule(cents=st.integers(1, 100_000))
    def place(self, cents: int) -> None:
        order = self.run(self.shop.order(Decimal(cents) / 100))
        self.model.orders.append(Buy(order.id, order.total))

    @precondition(lambda self: self.model.orders)
    @rule(data=st.data(), number=st.sampled_from([GOOD, GOOD, POOR, LOST, RETRY]))
    def pay(self, data: st.DataObject, number: str) -> None:
        order = self.model.orders[data.draw(st.integers(0, len(self.model.orders) - 1))]
        expected = order.status == "pending" and not order.barred and order.payment is None

        async def ask(key: Any) -> Any:
            return await self.shop.pay(await self.shop.orders.get_order(order.id), card(number), key)

        assert self._refused(ask, AlreadyPaid) is not expected
        if expected:
            order.payment = Pay(self.answer.id, order.total, number)

    @precondition(lambda self: self.model.orders)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        order = self.model.orders[data.draw(st.integers(0, len(self.model.orders) - 1))]

        async def ask(key: Any) -> Any:
            return await self.shop.orders.cancel(order.id, "changed my mind", key)

        assert self._refused(ask, OrderNotModifiable) is (order.status == "cancelled")
        order.status = "cancelled"

    @precondition(lambda self: self.model.payments())
    @rule(data=st.data(), share=st.one_of(st.none(), st.integers(1, 120)))
    def refund(self, data: st.DataObject, share: int | None) -> None:
        payments = self.model.payments()
        _, payment = payments[data.draw(st.integers(0, len(payments) - 1))]
        left = payment.amount - payment.refunded
        amount = (
            None if share is None else max((payment.amount * share / 100).quantize(Decimal("0.01")), Decimal("0.01"))
        )

        async def ask(key: Any) -> Any:
            return await self.shop.payments.refund(payment.id, amount, "a reason", key)

        assert self._refused(ask, RefundNotAllowed) is not payment.reserve(left if amount is None else amount)

    @rule(data=st.data(), comes_again=st.booleans())
    def deliver(self, data: st.DataObject, comes_again: bool) -> None:
        """Any event that is on its way, also one that was said after others."""
        rows = self.run(self.shop.rows(OutboxRow))
        if not rows:
            return
        row = rows[data.draw(st.integers(0, len(rows) - 1))]
        done = self.run(self._handle(row))
        if done and row.consumer != "ear":
            self.model.hear(row.type, row.payload)
        elif done is None:
            self._learn(row.payload)
        if done and not comes_again:
            self.run(self._forget(row))

    async def _handle(self, row: Any) -> bool | None:
        """True: handled. False: the provider did not answer. None: it failed somewhere in between."""
        [listener] = [
            each for each in self.shop.listeners if each.event.__name__ == row.type and each.consumer == row.consumer
        ]
        before = failpoints._armed.name
        try:
            await listener.handle(Delivery(listener.event(**row.payload), row.id, listener.name, row.created_at))
        except Unavailable:
            self.model.hear(row.type, row.payload)  # it was asked, and counts as asked
            return False
        except FailpointReached:
            assert before
            return None
        return True

    async def _forget(self, row: Any) -> None:
        async with self.shop.db.transaction() as tx:
            await tx.execute(delete(OutboxRow).where(OutboxRow.id == row.id, OutboxRow.consumer == row.consumer))

    def _learn(self, payload: dict[str, Any]) -> None:
        """How far a handler came that failed in between is read from the books, for what it was about only."""
        for order, payment in self.model.payments():
            if payload.get("payment_id") == payment.id or payload.get("order_id") == order.id:
                [row] = [row for row in self.run(self.shop.rows(PaymentRow)) if row.id == payment.id]
                payment.status, payment.refunded = row.status, row.refunded_amount
                payment.started, payment.void = row.started_at is not None, row.void_at is not None
                entries = self.run(self.shop.rows(SandboxEntryRow))
                payment.attempts = next((each.attempts for each in entries if each.key == payment.id), 0)
        for order in self.model.orders:
            if payload.get("order_id") == order.id and order.payment is None:
                order.barred = self.run(self._barred(order.id))

    async def _barred(self, order_id: str) -> bool:
        return any(row.order_id == order_id for row in await self.shop.rows(SlotRow))

    @rule(point=st.sampled_from(of_module("payments")), nth=st.integers(1, 2))
    def fail_somewhere(self, point: str, nth: int) -> None:
        failpoints.arm(f"{point}:raise:{nth}")

    @rule()
    def wait_and_sweep(self) -> None:
        self.shop.clock.advance(61)
        self.run(self._asked(lambda _: self.shop.processing.sweep()))

    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        if not hasattr(self, "shop"):
            return
        rows = {row.id: row for row in self.run(self.shop.rows(PaymentRow))}
        found = {name: (row.status, row.refunded_amount) for name, row in rows.items()}
        assert found == {payment.id: (payment.status, payment.refunded) for _, payment in self.model.payments()}
        for order in self.model.orders:
            assert self.run(self.shop.orders.get_order(order.id)).status == order.status

    @invariant()
    def no_money_moves_that_the_books_do_not_know_of(self) -> None:
        if not hasattr(self, "shop"):
            return
        charges = {row.key: row.amount for row in self.run(self.shop.ledger(CHARGE))}
        refunds = {row.key: row.amount for row in self.run(self.shop.ledger(REFUND))}
        reserved = {row.id: row.amount for row in self.run(self.shop.rows(RefundRow))}
        for _, payment in self.model.payments():
            taken = charges.pop(payment.id, Decimal(0))
            assert taken in (0, payment.amount)
            if payment.status not in ("processing", "failed"):
                assert taken == payment.amount
            if payment.status == "failed" or not payment.started:
                assert taken == 0
        assert charges == {}, "a charge without a payment"
        assert refunds.items() <= reserved.items()

    def teardown(self) -> None:
        try:
            if hasattr(self, "shop"):
                self.run(self._end())
        finally:
            failpoints.arm("")
            self._runner.close()
            self._folder.cleanup()

    async def _end(self) -> None:
        """Everything that is still on its way arrives; then money and state agree, to the cent."""
        try:
            failpoints.arm("")
            await self.shop.settle()
            assert await self.shop.moved() == await self.shop.booked()
            refunds = {row.key: row.amount for row in await self.shop.ledger(REFUND)}
            assert refunds == {row.id: row.amount for row in await self.shop.rows(RefundRow)}
            for order, payment in self.model.payments():
                row = await self.shop.payments.get_payment(payment.id)
                kept = row.amount - row.refunded_amount if row.completed_at else Decimal(0)
                if (await self.shop.orders.get_order(order.id)).status == "cancelled":
                    assert kept == 0, "paid, and nothing for it"
                else:
                    assert row.completed_at is not None
        finally:
            await self._stack.aclose()
            await self.shop.db.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("store", "examples"), [("sqlite", EXAMPLES), ("redis", EXAMPLES // 4)])
def test_money_and_state_agree_whatever_happens(
    request: pytest.FixtureRequest, sqlite_template: Path, store: str, examples: int
) -> None:
    Market.template = sqlite_template
    Market.redis = request.getfixturevalue("redis_server") if store == "redis" else None
    profile = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # In a thread, because it runs loops of its own.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run_state_machine_as_test, Market, settings=profile).result()
