"""A campaign: shoppers on one side, a fault on the other, and a reconciliation when both are over."""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.faults.commerce.deployments import ONE_PROCESS, Deployment
from tests.faults.commerce.reconcile import Stores, settled
from tests.faults.commerce.shoppers import History, shop_until

SHOPPERS = 16
# What the product may take to recover by itself: its leases, its retries, a circuit that has opened, and the five
# minutes after which it revives an event about money that has failed four times (which the faults make one in 10,000).
SETTLE_SECONDS = float(os.environ.get("BEDPLATE_TEST_SETTLE_SECONDS", 400))
SHORTEST_LIFE, LONGEST_LIFE = 0.05, 0.6
# Between two kills of the only process, so that the kills are spread over the orders: so many, if they come in time.
MOST_ORDERS, PATIENCE_SECONDS = 20, 3.0


def seed_of(default: int) -> int:
    """BEDPLATE_TEST_SEED replays a schedule."""
    return int(os.environ.get("BEDPLATE_TEST_SEED", default))


@dataclass
class Killer:
    """Kills a random process, starts it again, waits until it answers, lets it live for a moment."""

    there: Deployment
    seed: int
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    async def kill_one(self, history: History) -> None:
        """The only process, at a moment that is drawn, after a number of orders that is drawn."""
        (service,) = self.there.services
        await asyncio.sleep(self._dice.uniform(SHORTEST_LIFE, LONGEST_LIFE))
        wanted = history.acknowledged + self._dice.randint(0, MOST_ORDERS)
        with contextlib.suppress(TimeoutError):
            await orders(history, wanted, PATIENCE_SECONDS)
        await service.restart()
        self.kills[service.name] += 1

    async def kill_each(self, life: float) -> None:
        """Every process once, in an order and at moments that are drawn; some at the same time, none waits for the
        others to be back. Then they live for `life` seconds: their circuits, which a dead neighbour opens for a
        minute, begin closed only when they do."""
        order = self._dice.sample(self.there.services, len(self.there.services))
        async with asyncio.TaskGroup() as group:
            for service in order:
                group.create_task(service.restart())
                self.kills[service.name] += 1
                await asyncio.sleep(self._dice.choice((0.0, self._dice.uniform(SHORTEST_LIFE, LONGEST_LIFE))))
        await asyncio.sleep(life * self._dice.uniform(0.5, 1.0))

    async def kill(self, history: History, times: int, life: float = 1.0) -> None:
        while self.kills.total() < times:
            if self.there.services[0].name == ONE_PROCESS:
                await self.kill_one(history)
            else:
                await self.kill_each(life)


@dataclass
class Outcome:
    """`settled`: seconds from the end of the shopping until nothing was violated."""

    violations: list[str]
    settled: float
    stores: Stores
    history: History
    seconds: float = 0.0

    def figures(self) -> str:
        history, stores = self.history, self.stores
        answered = history.statuses()
        return (
            f"{history.acknowledged} orders acknowledged, {len(stores.payments)} payments, "
            f"{len(stores.charges)} charges, {len(stores.refunds)} refunds, {len(stores.mails)} mails, "
            f"{len(stores.pushes)} push messages; "
            f"{history.count('invoke')} requests, {history.count('info')} of unknown outcome, answers "
            f"{dict(sorted(answered.items()))}; settled after {self.settled:.1f} s of {self.seconds:.0f} s"
        )


@asynccontextmanager
async def shopping(
    there: Deployment, seed: int, *, shoppers: int = SHOPPERS, per_second: float = 0.0
) -> AsyncIterator[History]:
    """Shoppers who shop while the block runs, and finish the flows that they are in."""
    history, enough = History(), asyncio.Event()
    # One that gives up ends the block, too.
    async with asyncio.TaskGroup() as group:
        group.create_task(shop_until(there, history, seed, shoppers=shoppers, enough=enough, per_second=per_second))
        try:
            yield history
        finally:
            enough.set()


async def orders(history: History, number: int, seconds: float) -> None:
    """Wait until so many are acknowledged."""
    async with asyncio.timeout(seconds):
        while history.acknowledged < number:  # noqa: ASYNC110  # it is a figure of many, not one event
            await asyncio.sleep(0.02)


async def outcome(there: Deployment, history: History, began: float, seconds: float = SETTLE_SECONDS) -> Outcome:
    found, took, stores = await settled(there, history, seconds)
    if defects := history.statuses()[500]:
        found = [*found, f"{defects} answers are 500: what is away is a 503"]
    return Outcome(found, took, stores, history, time.monotonic() - began)


def acknowledged(result: Outcome) -> int:
    """How many orders were. Not the history itself, which pytest would print."""
    return result.history.acknowledged


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
