"""Circuit breaker: who calls a service that has failed five times in a row is refused at once for a minute.

Then one call goes through as a probe, and its outcome decides. The circuits are kept in this process or in Redis
(redis.py). Own code because a probe must be one over all processes, must not hold its place for ever, and because the
count of failures is shown while the circuit is open (docs/adr/0015-own-circuit-breaker.md).
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.ids import new_id

log = logging.getLogger("bedplate.breaker")

THRESHOLD_FAILURES = 5
OPEN_SECONDS = 60.0
# The time-out of one call, attempts and all. A probe that has not ended by then will not: its place is free again.
CALL_SECONDS = 3.0


class CircuitOpen(Unavailable):
    """The service has failed too often to be asked now; nothing was sent. Details: retry_after (whole seconds)."""


class Outcome(StrEnum):
    """How a call ended. What was abandoned by its caller says nothing about the service."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class BreakerState:
    """`failure_count`: failures since the last success, kept while open. `last_failure`: aware UTC, None for never."""

    state: Literal["closed", "open", "half_open"]
    failure_count: int
    last_failure: datetime | None


@dataclass(frozen=True, slots=True)
class Admission:
    """`wait`: seconds until it is worth asking again, 0 for a call that may go. `probe`: it goes as the probe."""

    wait: float
    probe: bool


@dataclass(slots=True)
class Circuit:
    """One service, and the rules; the scripts in redis.py say the same. Times are seconds since the epoch.

    Closed below the threshold of failures. From there on nobody is admitted before `until`, which is the end of the
    open time or, while `probe` names a call, the end of that call's time.
    """

    failures: int = 0
    last_failure: float | None = None
    until: float = 0.0
    probe: str = ""
    call_seconds: float = CALL_SECONDS

    def admit(self, ticket: str, now: float) -> Admission:
        if self.failures < THRESHOLD_FAILURES:
            return Admission(0.0, probe=False)
        # A clock that was put back must not keep it open for longer than the rule says.
        self.until = min(self.until, now + (self.call_seconds if self.probe else OPEN_SECONDS))
        if now < self.until:
            return Admission(self.until - now, probe=False)
        self.probe, self.until = ticket, now + self.call_seconds
        return Admission(0.0, probe=True)

    def settle(self, ticket: str, outcome: Outcome, now: float) -> bool:
        was_open = self.failures >= THRESHOLD_FAILURES
        if was_open and self.probe != ticket:
            return False  # it began before the circuit opened, or its place as the probe was given to another
        self.probe = ""
        if outcome is Outcome.SUCCEEDED:
            self.failures = 0
            return was_open
        if outcome is Outcome.FAILED:
            self.failures, self.last_failure, self.until = self.failures + 1, now, now + OPEN_SECONDS
            return self.failures >= THRESHOLD_FAILURES
        self.until = now
        return False

    def state(self, now: float) -> BreakerState:
        last_failure = None if self.last_failure is None else datetime.fromtimestamp(self.last_failure, UTC)
        if self.failures < THRESHOLD_FAILURES:
            return BreakerState("closed", self.failures, last_failure)
        probing = self.probe != "" or now >= self.until
        return BreakerState("half_open" if probing else "open", self.failures, last_failure)


class Circuits(ABC):
    """Where the circuits are kept, by name of the service. Each step is one, whoever else takes one at the time."""

    @abstractmethod
    async def admit(self, service: str, ticket: str) -> Admission:
        """Whether a call may go now. `ticket` names the call, here and when it ends."""

    @abstractmethod
    async def settle(self, service: str, ticket: str, outcome: Outcome) -> bool:
        """An admitted call has ended. Returns whether that opened the circuit, or closed it."""

    @abstractmethod
    async def read(self, service: str) -> BreakerState: ...


class MemoryCircuits(Circuits):
    """Kept in this process. As many as there are names in the code. `call_seconds`: the time-out of one call."""

    def __init__(self, clock: Clock, call_seconds: float = CALL_SECONDS) -> None:
        self._clock = clock
        self._call_seconds = call_seconds
        self._circuits: dict[str, Circuit] = {}

    async def admit(self, service: str, ticket: str) -> Admission:
        return self._circuit(service).admit(ticket, self._clock.timestamp())

    async def settle(self, service: str, ticket: str, outcome: Outcome) -> bool:
        return self._circuit(service).settle(ticket, outcome, self._clock.timestamp())

    async def read(self, service: str) -> BreakerState:
        return self._circuits.get(service, Circuit()).state(self._clock.timestamp())

    def _circuit(self, service: str) -> Circuit:
        found = self._circuits.get(service)
        if found is None:
            found = self._circuits[service] = Circuit(call_seconds=self._call_seconds)
        return found


class Breaker:
    """Guards the calls to one service, named as its document does: "user_service"."""

    def __init__(self, service: str, circuits: Circuits) -> None:
        self.service = service
        self._circuits = circuits

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Around one call. Unavailable from inside is its failure, an end without an exception its success;
        cancellation and anything else are neither.

        Raises:
            CircuitOpen: the call must not be made.
        """
        ticket = new_id()
        admission = await self._circuits.admit(self.service, ticket)
        if admission.wait > 0:
            raise CircuitOpen(retry_after=math.ceil(admission.wait))
        try:
            yield
        except Unavailable:
            if await self._circuits.settle(self.service, ticket, Outcome.FAILED):
                log.warning("a service failed too often and is left alone", extra={"service": self.service})
            raise
        except BaseException:
            if admission.probe:  # else there is no place to be freed, and no reason to wait for Redis
                await self._circuits.settle(self.service, ticket, Outcome.ABANDONED)
            raise
        if await self._circuits.settle(self.service, ticket, Outcome.SUCCEEDED):
            log.warning("a service that had failed is well again", extra={"service": self.service})

    async def snapshot(self) -> BreakerState:
        """Where it stands. Open, but with its time over, is half_open: the next call will be the probe."""
        return await self._circuits.read(self.service)
