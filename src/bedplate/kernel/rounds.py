"""Rounds: work that goes on in the background, turn after turn, through outages, until it is told to stop."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from bedplate.kernel.errors import Problem

log = logging.getLogger("bedplate.rounds")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
STOP_SECONDS = 0.7


class Rounds:
    """Calls `turn` again and again. It does some of the work and says how many seconds the next turn may wait, unless
    `wake` is set meanwhile. After a turn that failed the next one waits, up to five seconds; `outage` is logged once,
    when the first of them fails.
    """

    def __init__(self, turn: Callable[[], Awaitable[float]], outage: str) -> None:
        self._turn = turn
        self._outage = outage
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends within a second: a turn that takes longer is cancelled."""
        self._stopping.set()
        self.wake.set()
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=STOP_SECONDS)
        while not self._task.done():
            # Again if need be: a cancellation can be lost in a library that meets it in its clean-up.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.2)

    async def _run(self) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            self.wake.clear()
            try:
                rest = await self._turn()
            except Exception as error:
                if not pause:
                    self._log(error)
                pause = min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)
                await _until(self._stopping, pause * random.uniform(0.8, 1.0))
                continue
            if pause:
                log.info("over: %s", self._outage)
            pause = 0.0
            if rest and not self._stopping.is_set():
                await _until(self.wake, rest)

    def _log(self, error: Exception) -> None:
        if isinstance(error, Problem):
            log.warning(self._outage, extra={"reason": type(error).__name__})
        else:
            log.error(self._outage, exc_info=error)


async def _until(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
