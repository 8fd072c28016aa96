"""kill -9: whatever process dies, whenever, no order is lost, no card is charged twice, everybody is told once."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.faults.commerce import deployments
from tests.faults.commerce.deployments import Deployment
from tests.faults.commerce.harness import Killer, Outcome, acknowledged, orders, outcome, percentile, seed_of, shopping

DROPPED = 0.1  # of what the provider executes, it loses the answer


async def campaign(
    opening: AbstractAsyncContextManager[Deployment],
    seed: int,
    *,
    kills: int,
    placed: int,
    life: float = 1.0,
    shoppers: int = 16,
) -> Outcome:
    """So many kills while at least so many orders are placed, and what is left of it."""
    async with opening as there:
        await there.start()
        began = time.monotonic()
        killer = Killer(there, seed)
        async with shopping(there, seed, shoppers=shoppers) as history:
            await asyncio.sleep(1)
            await killer.kill(history, kills, life)
            during = history.acknowledged
            await orders(history, placed, seconds=300)
        result = await outcome(there, history, began)
        starts = [seconds for service in there.services for seconds in service.starts]
        print(
            f"\n{there.name}, seed {seed}: kills {dict(killer.kills)} during {during} orders; "
            f"{result.figures()}; "
            f"ready after p50 {percentile(starts, 0.5):.2f} s, p99 {percentile(starts, 0.99):.2f} s"
        )
        assert result.violations == []
        return result


@pytest.mark.timeout(500)
async def test_eight_kills_of_the_one_process_lose_nothing(tmp_path: Path) -> None:
    seed = seed_of(3)
    with deployments.stripe(tmp_path, seed, DROPPED) as stripe:
        await campaign(deployments.one_process(tmp_path, stripe), seed, kills=8, placed=60)


@pytest.mark.timeout(500)
async def test_four_kills_of_four_processes_lose_nothing(tmp_path: Path, postgres_url: str) -> None:
    seed = seed_of(4)
    with deployments.stripe(tmp_path, seed, DROPPED) as stripe:
        await campaign(deployments.split(tmp_path, stripe), seed, kills=4, placed=30, life=4.0)


@pytest.mark.faults
@pytest.mark.timeout(1800)
async def test_two_hundred_kills_of_the_one_process_during_two_thousand_orders(tmp_path: Path) -> None:
    seed = seed_of(1)
    with deployments.stripe(tmp_path, seed, DROPPED) as stripe:
        opening = deployments.one_process(tmp_path, stripe)
        result = await campaign(opening, seed, kills=200, placed=2_000, shoppers=48)
    assert acknowledged(result) >= 2_000


@pytest.mark.faults
@pytest.mark.timeout(1800)
async def test_fifty_kills_of_one_process_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    seed = seed_of(5)
    with deployments.stripe(tmp_path, seed, DROPPED) as stripe:
        opening = deployments.one_process(tmp_path, stripe, on_postgres=True)
        result = await campaign(opening, seed, kills=50, placed=500, shoppers=48)
    assert acknowledged(result) >= 500


@pytest.mark.faults
@pytest.mark.timeout(1800)
async def test_fifty_kills_of_each_of_four_processes_during_two_thousand_orders(
    tmp_path: Path, postgres_url: str
) -> None:
    seed = seed_of(2)
    with deployments.stripe(tmp_path, seed, DROPPED) as stripe:
        result = await campaign(deployments.split(tmp_path, stripe), seed, kills=200, placed=2_000, life=4.0)
    assert acknowledged(result) >= 2_000
