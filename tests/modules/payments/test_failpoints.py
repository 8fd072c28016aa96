"""A process that fails anywhere in the work of payments: whoever asked asks again, the rest recovers by itself, and
then it is as if nothing had happened."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete

from bedplate.kernel import failpoints, relay
from bedplate.kernel.db import Transaction
from bedplate.kernel.failpoints import FailpointReached
from bedplate.models import OutboxRow, PaymentRow
from bedplate.modules.orders.public import Order, OrderStatus
from bedplate.modules.payments.public import AlreadyPaid, PaymentStatus
from bedplate.modules.payments.sandbox import CHARGE, REFUND
from tests.failpoints import noted, of_module
from tests.modules.payments.shop import TOTAL, Shop, card, once

POINTS = of_module("payments")
Operation = Callable[[], Awaitable[Any]]


async def until_done(operation: Operation) -> Any:
    """As a client does that got no answer: the same again, with the same key."""
    for _ in range(3):
        try:
            async with asyncio.timeout(5):
                return await operation()
        except (FailpointReached, TimeoutError):
            continue
    raise AssertionError("it fails again and again")


async def pay(shop: Shop, order: Order, number: str = "4242424242424242") -> Any:
    return await until_done(lambda: shop.pay(order, card(number), once(order.id)))


async def cancel(shop: Shop, order_id: str) -> None:
    await until_done(lambda: shop.orders.cancel(order_id, "changed my mind"))


async def walk(shop: Shop) -> dict[str, str]:
    """Everything that can happen to a payment; what each order should come to, and how much of it is kept."""
    partly, returned, never, refused, early, lost = [await shop.order() for _ in range(6)]
    paid = await pay(shop, partly)
    await pay(shop, returned)
    await pay(shop, refused, "4000000000009995")
    await shop.settle()
    await until_done(lambda: shop.payments.refund(paid.id, Decimal(10), "broken", once("refund 1")))
    await until_done(lambda: shop.payments.refund(paid.id, Decimal(20), "broken too", once("refund 2")))
    await cancel(shop, returned.id)
    await cancel(shop, never.id)
    await shop.settle()
    with pytest.raises(AlreadyPaid):
        await pay(shop, never)
    await pay(shop, early)
    await shop.hear_cancelled(early)
    await pay(shop, lost)
    async with shop.db.transaction() as tx:
        await tx.execute(delete(OutboxRow).where(OutboxRow.type == "PaymentRequested"))
    shop.clock.advance(61)
    await until_done(shop.processing.sweep)
    await shop.settle()
    return {
        partly.id: "partially_refunded 45.48",
        returned.id: "refunded 0.00",
        refused.id: "failed 0.00",
        early.id: "failed 0.00",
        lost.id: "completed 75.48",
    }


async def assert_all_is_well(shop: Shop, expected: dict[str, str]) -> None:
    found = {}
    for row in await shop.rows(PaymentRow):
        charges = await shop.ledger(CHARGE, f"ch_{row.id}")
        refunds = await shop.ledger(REFUND, f"ch_{row.id}")
        assert len(charges) <= 1
        kept = sum(each.amount for each in charges) - sum(each.amount for each in refunds)
        found[row.order_id] = f"{row.status} {Decimal(kept):.2f}"
    assert found == expected
    assert await shop.moved() == await shop.booked() == 2 * TOTAL - 30
    for order_id, end in expected.items():
        kept = end.startswith(("partially", "completed"))
        status = (await shop.orders.get_order(order_id)).status
        assert (status is OrderStatus.CONFIRMED) == kept, (order_id, end, status)


async def test_the_walk_comes_by_every_failpoint(sqlite_shop: Shop) -> None:
    with noted() as reached:
        await assert_all_is_well(sqlite_shop, await walk(sqlite_shop))
    assert sorted(point for point in reached if point.startswith("payments.")) == list(POINTS)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_a_failure_anywhere_is_recovered_from_and_charges_once(sqlite_shop: Shop, point: str, nth: int) -> None:
    failpoints.arm(f"{point}:raise:{nth}")
    await assert_all_is_well(sqlite_shop, await walk(sqlite_shop))
    assert nth > 1 or failpoints._armed.name == "", "it has failed there"


@pytest.mark.parametrize("db", ["postgresql", "redis"], indirect=True)
@pytest.mark.parametrize("point", POINTS)
async def test_a_failure_anywhere_is_recovered_from_on_every_engine(shop: Shop, point: str) -> None:
    failpoints.arm(f"{point}:raise")
    await assert_all_is_well(shop, await walk(shop))
    assert failpoints._armed.name == ""


@pytest.mark.parametrize("point", POINTS)
async def test_who_hangs_anywhere_is_given_up_and_recovered_from(
    sqlite_shop: Shop, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HANDLING_SECONDS", 0.5)
    failpoints.arm(f"{point}:hang")

    async def impatient(operation: Operation) -> Any:
        for _ in range(3):
            try:
                async with asyncio.timeout(0.5):
                    return await operation()
            except (FailpointReached, TimeoutError):
                continue
        raise AssertionError("it hangs again and again")

    monkeypatch.setitem(globals(), "until_done", impatient)
    await assert_all_is_well(sqlite_shop, await walk(sqlite_shop))
    assert failpoints._armed.name == ""


async def test_there_is_a_failpoint_before_and_after_every_effect(
    sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transaction and every call of the provider: a new one without a failpoint fails here."""
    steps: dict[int, list[str]] = defaultdict(list)

    def note(step: str) -> None:
        steps[id(asyncio.current_task())].append(step)

    async def reach(name: str) -> None:
        note(f"reach {name}")

    store = sqlite_shop.processing._store
    provider: Any = sqlite_shop.processing._provider
    begin = store.transaction

    @asynccontextmanager
    async def transaction() -> AsyncIterator[Transaction]:
        note("commit")
        async with begin() as tx:
            yield tx

    def noted(name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noting(*arguments: Any) -> Any:
            note(name)
            return await call(*arguments)

        return noting

    def bracketed(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def within(*arguments: Any) -> Any:
            note("begin")
            try:
                return await call(*arguments)
            finally:
                note("end")

        return within

    for owner, name in ((sqlite_shop.payments, "pay"), (sqlite_shop.payments, "refund"), (sqlite_shop, "hear")):
        monkeypatch.setattr(owner, name, bracketed(getattr(owner, name)))
    monkeypatch.setattr(sqlite_shop.processing, "sweep", bracketed(sqlite_shop.processing.sweep))
    monkeypatch.setattr(store, "transaction", transaction)
    for name in ("tokenize", "charge", "refund"):
        monkeypatch.setattr(provider, name, noted(name, getattr(provider, name)))
    with failpoints.watched(reach):
        await walk(sqlite_shop)
    for task in steps.values():
        # What an event does is a task of its own; what a client asks for stands between a beginning and an end.
        kinds = ["edge", *("reach" if step.startswith("reach") else step for step in task), "edge"]
        kinds = ["edge" if kind in ("begin", "end") else kind for kind in kinds]
        bare = [
            pair for pair in zip(kinds, kinds[1:], strict=False) if "reach" not in pair and pair != ("edge", "edge")
        ]
        assert bare == [], task
    effects = {step for task in steps.values() for step in task if not step.startswith("reach")}
    assert effects == {"commit", "tokenize", "charge", "refund", "begin", "end"}
    assert PaymentStatus.PROCESSING.value not in {row.status for row in await sqlite_shop.rows(PaymentRow)}
