"""Every crash point: at each `reach` in the source the process ends, fails or hangs, and afterwards nothing is wrong.

In this process, with a clock that is advanced, for every point; and with a real process that really dies.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import delete, select, update

from bedplate import models
from bedplate.compose.chosen import database_at
from bedplate.kernel import failpoints
from bedplate.kernel.db import Database
from bedplate.modules.payments.sandbox import CHARGE, REFUND, SUCCEEDED
from tests.failpoints import of_modules
from tests.faults.commerce import deployments
from tests.faults.commerce.deployments import Deployment
from tests.faults.commerce.harness import SETTLE_SECONDS
from tests.faults.commerce.reconcile import Charge, Stores, settled, violations
from tests.faults.commerce.shoppers import LOTS, History, Shopper
from tests.world import World

POINTS = of_modules("checkout", "mail", "orders", "payments")
SWEEPS = tuple(point for point in POINTS if point.startswith("payments.sweep."))
CHARGING = "payments.charge.before_start"
AT_ONCE = 6


@pytest.fixture(autouse=True)
def disarmed() -> Any:
    yield
    failpoints.arm("")


async def forget_charge(database: Database, two_minutes_ago: bool = True) -> None:
    """As if a payment had been left behind: nothing is on its way for it, and it is older than the sweeper waits."""
    async with database.transaction() as tx:
        assert await tx.execute(delete(models.OutboxRow).where(models.OutboxRow.type == "PaymentRequested"))
        for row in await tx.all(select(models.PaymentRow.id, models.PaymentRow.created_at)):
            older = row.created_at - timedelta(minutes=2)
            await tx.execute(update(models.PaymentRow).where(models.PaymentRow.id == row.id).values(created_at=older))


# In this process


async def stores_of(database: Database) -> Stores:
    """Everything that one database holds, the ledger of the sandbox included."""

    async def all_of(table: Any) -> Any:
        return await database.all(select(table.__table__))

    entries = [row for row in await all_of(models.SandboxEntryRow) if row.outcome == SUCCEEDED]
    charges = {row.reference: Charge(row.reference, row.key, row.amount) for row in entries if row.kind == CHARGE}
    for row in entries:
        if row.kind == REFUND:
            charges[row.reference].refunds.append((row.key, row.amount))
    return Stores(
        await all_of(models.OrderRow),
        await all_of(models.PaymentRow),
        await all_of(models.RefundRow),
        await all_of(models.MailRow),
        await all_of(models.PushRow),
        await all_of(models.UserRow),
        list(charges.values()),
        [f"{row.consumer}: {row.type}" for row in await all_of(models.OutboxRow)],
        [f"{row.consumer}: {row.type}: {row.error}" for row in await all_of(models.DeadLetterRow)],
    )


@asynccontextmanager
async def in_process(world: World) -> AsyncIterator[tuple[Deployment, httpx2.AsyncClient]]:
    """The world's services, each at an address of its own."""
    names = ("user-service", "order-service", "payment-service")
    mounts = {
        f"http://{name}": httpx2.ASGITransport(app=world.served(name), raise_app_exceptions=False) for name in names
    }
    urls = list(mounts)
    there = Deployment("in this process", [], urls[0], urls[1], urls[2], {}, Path(), "")
    async with httpx2.AsyncClient(mounts=mounts) as client:
        yield there, client


async def pump(world: World, ended: asyncio.Event) -> None:
    """Deliver, and let time pass for whoever waits."""
    while not ended.is_set():
        await world.deliver()
        world.clock.advance(2)
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("point", [point for point in POINTS if point not in SWEEPS])
async def test_a_failure_at_any_point_leaves_nothing_undone_and_nothing_done_twice(world: World, point: str) -> None:
    database = world.runtime.database
    assert database is not None
    history, ended = History(), asyncio.Event()
    failpoints.arm(f"{point}:raise")
    async with in_process(world) as (there, client):
        shopper = Shopper(0, there, history, 1, client)
        pumping = asyncio.create_task(pump(world, ended))
        try:
            async with asyncio.timeout(40):
                for lot in LOTS:
                    await shopper.shop(lot)
        finally:
            ended.set()
            await pumping
    assert failpoints._armed.name == "", f"no flow comes by {point}"
    for _ in range(12):
        world.clock.advance(61)
        await world.deliver()
        if not (found := violations(await stores_of(database), history)):
            break
    assert found == []


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
@pytest.mark.parametrize("point", SWEEPS)
async def test_a_sweeper_that_fails_sweeps_again(world: World, point: str) -> None:
    database = world.runtime.database
    assert database is not None
    history = History()
    async with in_process(world) as (there, client):
        shopper = Shopper(0, there, history, 1, client)
        await shopper.shop(0.5)
    await forget_charge(database)
    failpoints.arm(f"{point}:raise")
    for _ in range(3):
        for mend in world.runtime.mends:
            with contextlib.suppress(failpoints.FailpointReached):
                await mend()
        await world.deliver()
        world.clock.advance(61)
    assert failpoints._armed.name == "", f"the sweeper does not come by {point}"
    assert violations(await stores_of(database), history) == []


# Real processes


async def walk(there: Deployment, history: History, times: int) -> None:
    shopper = Shopper(0, there, history, 1)
    try:
        for lot in LOTS * times:
            await shopper.shop(lot)
    finally:
        await shopper.close()


async def keep_up(there: Deployment, ended: asyncio.Event) -> int:
    """Start the process again whenever it ends. How often it did, at a failpoint."""
    (service,) = there.services
    deaths = 0
    while not ended.is_set():
        if service.exit_code is not None:
            assert service.exit_code == failpoints.KILLED, service.log[-3000:]
            deaths += 1
            service.start()
            await service.ready()
        await asyncio.sleep(0.02)
    return deaths


async def survive(there: Deployment, armed: str) -> int:
    """A walk by the armed failpoint; how often the process died. AssertionError for what is wrong afterwards."""
    point, action, nth = (*armed.split(":"), "1")[:3]
    history, ended = History(), asyncio.Event()
    (service,) = there.services
    if point in SWEEPS:
        await leave_one_behind(there, history)
    service.start(BEDPLATE_TEST_FAILPOINT=armed)
    keeping = asyncio.create_task(keep_up(there, ended))
    try:
        # Each walk comes by every point, but at some of them only if a race has the one end and not the other.
        await walk(there, history, 2 * int(nth) - 1)
        found, _, _ = await settled(there, history, SETTLE_SECONDS)
    finally:
        ended.set()
    deaths = await keeping
    assert found == [], armed
    assert action != "exit" or deaths == 1, f"no flow comes by {armed}"
    return deaths


async def leave_one_behind(there: Deployment, history: History) -> None:
    (service,) = there.services
    service.start(BEDPLATE_TEST_FAILPOINT=f"{CHARGING}:exit")
    await service.ready()
    shopper = Shopper(9, there, history, 1)
    shopping = asyncio.create_task(shopper.shop(0.5))
    async with asyncio.timeout(30):
        while service.exit_code is None:  # noqa: ASYNC110  # a process, not an event
            await asyncio.sleep(0.02)
    shopping.cancel()
    await asyncio.wait([shopping])
    await shopper.close()
    database = database_at(there.databases["payments"])
    try:
        await forget_charge(database)
    finally:
        await database.close()


async def case(folder: Path, armed: str, turns: asyncio.Semaphore) -> int:
    async with turns:
        folder.mkdir()  # noqa: ASYNC240
        with deployments.stripe(folder, 1) as stripe:
            async with deployments.one_process(folder, stripe) as there:
                return await survive(there, armed)


@pytest.mark.timeout(300)
async def test_a_process_that_ends_in_the_middle_of_a_charge_goes_on_where_it_was(tmp_path: Path) -> None:
    chosen = ["payments.charge.after_provider:exit", "orders.place.after_commit:exit", f"{SWEEPS[0]}:exit"]
    turns = asyncio.Semaphore(2)
    deaths = await asyncio.gather(*(case(tmp_path / str(i), armed, turns) for i, armed in enumerate(chosen)))
    assert deaths == [1] * len(chosen)


@pytest.mark.faults
@pytest.mark.timeout(2400)
async def test_every_crash_point_in_a_real_process_ended_failed_and_hung(tmp_path: Path) -> None:
    cases = [f"{point}:{action}" for point in POINTS for action in failpoints.ACTIONS]
    cases += [f"{point}:exit:2" for point in POINTS if point not in SWEEPS]
    random.Random(1).shuffle(cases)
    turns = asyncio.Semaphore(AT_ONCE)
    ended = await asyncio.gather(
        *(case(tmp_path / str(number), armed, turns) for number, armed in enumerate(cases)), return_exceptions=True
    )
    wrong = {armed: repr(end)[:500] for armed, end in zip(cases, ended, strict=True) if isinstance(end, BaseException)}
    died = sum(end for end in ended if isinstance(end, int))
    print(f"\n{len(POINTS)} failpoints, {len(cases)} cases, {died} processes died at theirs, {len(wrong)} went wrong")
    assert wrong == {}
