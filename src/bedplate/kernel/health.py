"""Health and readiness: alive is the process itself, ready is everything that it needs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

PROBE_SECONDS = 2.0

Probe = Callable[[], Awaitable[None]]


async def probe(probes: Mapping[str, Probe]) -> dict[str, bool]:
    """Which of the named things answer within two seconds; all are asked at once."""

    async def answers(check: Probe) -> bool:
        try:
            await asyncio.wait_for(check(), PROBE_SECONDS)
        except Exception:  # a probe that fails in any way says no
            return False
        return True

    return dict(zip(probes, await asyncio.gather(*map(answers, probes.values())), strict=True))
