"""Dependencies that lie: every answer of the database, the broker and the provider may be an error, may never come, or
may be lost after what was asked has been done."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import POSTGRES
from tests.faults.commerce import deployments
from tests.faults.commerce.harness import Outcome, outcome, seed_of, shopping
from tests.faults.commerce.proxy import FaultProxy

FLOWS_PER_SECOND = 10.0  # two writes each
SHARE_WITHIN_THREE_RETRIES = 0.99


async def lied_to(folder: Path, seed: int, *, seconds: float, of_database: float, of_others: float) -> Outcome:
    """`of_database`, `of_others`: the chance of each of the three kinds of fault, for each request to them."""
    async with AsyncExitStack() as stack:
        stripe = stack.enter_context(deployments.stripe(folder, seed))
        database, provider = [await stack.enter_async_context(FaultProxy(url, seed)) for url in (POSTGRES, stripe)]
        # Where the broker is, is known when it is there.
        broker = await stack.enter_async_context(FaultProxy(stripe, seed))

        def broker_at(url: str) -> str:
            broker.lead_to(url)
            return broker.at(url)

        opening = deployments.split(folder, stripe, database_at=database.at, broker_at=broker_at, stripe_at=provider.at)
        there = await stack.enter_async_context(opening)
        await there.start()
        began = time.monotonic()
        database.chance, provider.chance, broker.chance = of_database, of_others, of_others
        async with shopping(there, seed, per_second=FLOWS_PER_SECOND) as history:
            await asyncio.sleep(seconds)
            for proxy in (database, provider, broker):
                proxy.chance = 0.0
        result = await outcome(there, history, began)
        done = {"database": database, "provider": provider, "broker": broker}
        faults = {name: f"{sum(each.done.values())} of {each.requests}" for name, each in done.items()}
        soon = sum(number for attempts, number in history.attempts.items() if attempts <= 4)
        share = soon / history.attempts.total()
        print(f"\nfaults {faults}, seed {seed}: {share:.2%} within three retries; {result.figures()}")
        assert all(each.done.total() for each in done.values()), "each has lied"
        assert result.violations == []
        assert share >= SHARE_WITHIN_THREE_RETRIES
        return result


@pytest.mark.faults
@pytest.mark.timeout(150)
async def test_lies_for_seconds_leave_nothing_wrong(tmp_path: Path, postgres_url: str) -> None:
    await lied_to(tmp_path, seed_of(1), seconds=12, of_database=0.001, of_others=0.01)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_lies_for_minutes_leave_nothing_wrong(tmp_path: Path, postgres_url: str) -> None:
    await lied_to(tmp_path, seed_of(2), seconds=120, of_database=0.001, of_others=0.01)
