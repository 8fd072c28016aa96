"""The database cut off: its connections ended by the server, by the network, or not made at all."""

import asyncio
import random
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import POSTGRES
from tests.faults.commerce import deployments
from tests.faults.commerce.harness import Outcome, acknowledged, outcome, seed_of, shopping
from tests.faults.commerce.proxy import FaultProxy


async def terminate(url: str) -> None:
    """As an administrator does who restarts it: every connection to this database ends."""
    name = urlsplit(url).path[1:]
    await deployments.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )


async def cut_off(folder: Path, seed: int, *, cuts: int, outages: int, outage_seconds: float) -> Outcome:
    """So many cuts, half by the server and half on the way, and so many times in which it cannot be reached."""
    dice = random.Random(seed)
    with deployments.stripe(folder, seed) as stripe:
        async with (
            FaultProxy(POSTGRES, seed) as proxy,
            deployments.one_process(folder, stripe, on_postgres=True, database_at=proxy.at) as there,
        ):
            await there.start()
            began = time.monotonic()
            ended = 0
            async with shopping(there, seed) as history:
                await asyncio.sleep(1)
                for number in range(cuts):
                    await asyncio.sleep(dice.uniform(0.2, 1.0))
                    if number % 2:
                        await terminate(there.databases["orders"])
                    else:
                        ended += proxy.cut()
                for _ in range(outages):
                    proxy.refusing = True
                    ended += proxy.cut()
                    await asyncio.sleep(outage_seconds)
                    proxy.refusing = False
                    await asyncio.sleep(3)
            result = await outcome(there, history, began)
            print(
                f"\ndatabase cut {cuts} times, out of reach {outages} times for {outage_seconds} s, {ended} "
                f"connections ended on the way, seed {seed}: {result.figures()}"
            )
            assert there.services[0].exit_code is None, "it recovers without being started again"
            assert result.violations == []
            unfinished = [seen.flow for seen in history.flows.values() if not seen.finished]
            assert unfinished == []
            return result


@pytest.mark.timeout(150)
async def test_connections_that_are_cut_lose_nothing(tmp_path: Path, postgres_url: str) -> None:
    await cut_off(tmp_path, seed_of(1), cuts=4, outages=1, outage_seconds=2.0)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_forty_cuts_and_five_outages_lose_nothing(tmp_path: Path, postgres_url: str) -> None:
    result = await cut_off(tmp_path, seed_of(2), cuts=40, outages=5, outage_seconds=8.0)
    assert acknowledged(result) > 50
