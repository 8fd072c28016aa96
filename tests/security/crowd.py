"""Many requests at the same moment, so many times."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import httpx2
import pytest

T = TypeVar("T")

CROWD = 50

on_both_engines = pytest.mark.parametrize("world", ["sqlite", "postgres+redis"], indirect=True)


def rounds(normal: int, full: int = 100) -> pytest.MarkDecorator:
    """So many rounds in each run of the tests, and the full number in `make faults`."""
    at_full_size = pytest.param(full, marks=(pytest.mark.faults, pytest.mark.timeout(1800)))
    return pytest.mark.parametrize("rounds", [normal, at_full_size])


async def at_once(act: Callable[[int], Awaitable[T]], number: int = CROWD) -> list[T]:
    """The results of `act(0)`, `act(1)`, …, none of which begins before all are ready."""
    barrier = asyncio.Barrier(number)

    async def one(index: int) -> T:
        await barrier.wait()
        return await act(index)

    return list(await asyncio.gather(*(one(index) for index in range(number))))


def statuses(answers: Iterable[httpx2.Response]) -> dict[int, int]:
    """How often each status was answered."""
    return dict(Counter(answer.status_code for answer in answers))
