"""The broker away: frozen, or killed and come back without its data. Nobody who writes notices; nothing is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.commerce import deployments
from tests.faults.commerce.deployments import Deployment
from tests.faults.commerce.harness import Outcome, acknowledged, outcome, seed_of, shopping
from tests.faults.commerce.shoppers import History

WRITES_PER_SECOND = 20.0
# A flow writes an order and a payment, and one in five something more.
FLOWS_PER_SECOND = WRITES_PER_SECOND / 2.2
DRAIN_SECONDS = 60.0


async def frozen(there: Deployment, seconds: float) -> None:
    """It takes connections and answers nothing: SIGSTOP."""
    assert there.broker is not None
    there.broker.freeze()
    await asyncio.sleep(seconds)
    there.broker.thaw()


async def wiped(there: Deployment, seconds: float) -> None:
    """kill -9, and when it comes back all that it knew is gone."""
    assert there.broker is not None
    await asyncio.to_thread(there.broker.kill)
    await asyncio.sleep(seconds)
    there.broker.wipe()
    await asyncio.to_thread(there.broker.start)


@asynccontextmanager
async def written_at(there: Deployment, seed: int) -> AsyncIterator[History]:
    async with shopping(there, seed, per_second=FLOWS_PER_SECOND) as history:
        await asyncio.sleep(3)
        yield history


async def away(folder: Path, seconds: float, seed: int) -> Outcome:
    """Frozen, and after some seconds of rest wiped, for so long each."""
    with deployments.stripe(folder, seed) as stripe:
        async with deployments.split(folder, stripe) as there:
            await there.start()
            began = time.monotonic()
            async with written_at(there, seed) as history:
                await frozen(there, seconds)
                await asyncio.sleep(5)
                await wiped(there, seconds)
            took = time.monotonic() - began
            result = await outcome(there, history, began)
            writes = history.count("ok", "order") + history.count("ok", "payment")
            print(
                f"\nbroker frozen {seconds:.0f} s and wiped after {seconds:.0f} s, seed {seed}: "
                f"{writes / took:.1f} writes/s; {result.figures()}"
            )
            assert result.violations == []
            assert result.settled < DRAIN_SECONDS
            bad = {status: number for status, number in history.statuses().items() if status >= 500}
            assert (bad, history.count("info")) == ({}, 0), "of this nobody who writes may notice anything"
            return result


@pytest.mark.timeout(150)
async def test_a_broker_that_is_away_for_seconds_is_not_missed(tmp_path: Path, postgres_url: str) -> None:
    await away(tmp_path, 4, seed_of(1))


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_a_broker_that_is_away_for_half_a_minute_is_not_missed(tmp_path: Path, postgres_url: str) -> None:
    result = await away(tmp_path, 30, seed_of(2))
    assert acknowledged(result) > 400
