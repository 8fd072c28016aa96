"""Rate limits: fixed windows that begin with the first request, counted in this process or in Redis (redis.py).

Own code, 100 lines, because each request pays for it: one dictionary look-up or one round trip, with a clock that
tests can turn and the remaining time in the answer (docs/adr records the comparison with a library).
"""

import ipaddress
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

from bedplate.kernel.clock import Clock

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
MAXIMUM_KEYS = 100_000


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests in so many seconds. `text` as the documents word it: "10 per 1 minute"."""

    amount: int
    seconds: int
    text: str

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """From a setting: "5/15 minutes", "100/minute". Raises ValueError for anything else."""
        match = re.fullmatch(r"([1-9]\d{0,6})/(?:([1-9]\d{0,4}) ?)?(second|minute|hour|day)s?", text)
        if match is None:
            raise ValueError('write a limit as "5/15 minutes" or "100/minute"')
        amount, times, unit = int(match[1]), int(match[2] or 1), match[3]
        return cls(amount, times * SECONDS[unit], f"{amount} per {times} {unit}{'s' if times > 1 else ''}")


@dataclass(frozen=True, slots=True)
class Window:
    """Where a caller stands: requests left, and seconds until the window ends."""

    allowed: bool
    remaining: int
    reset_after: float


class Limiter(ABC):
    """Counts one request under a key."""

    @abstractmethod
    async def hit(self, key: str, limit: Limit) -> Window:
        """Count it, whether or not it is allowed."""


class MemoryLimiter(Limiter):
    """Counts in this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[str, tuple[int, float]] = {}

    async def hit(self, key: str, limit: Limit) -> Window:
        now = self._clock.timestamp()
        count, ends = self._windows.get(key, (0, 0.0))
        if now >= ends:
            self._make_room(now)
            count, ends = 0, now + limit.seconds
        self._windows[key] = (count + 1, ends)
        return Window(count < limit.amount, max(0, limit.amount - count - 1), ends - now)

    def _make_room(self, now: float) -> None:
        if len(self._windows) < MAXIMUM_KEYS:
            return
        live = [item for item in self._windows.items() if item[1][1] > now]
        # A tenth is free afterwards, so that the next look at all keys is far away: the oldest live ones may go for it.
        self._windows = dict(live[-(MAXIMUM_KEYS * 9 // 10) :])


@lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """The client that a limit counts: an IPv4 address, or the /64 network that one IPv6 subscriber has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
    return address
