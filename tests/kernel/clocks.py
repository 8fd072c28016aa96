"""A clock that stands still."""

from datetime import UTC, datetime, timedelta

from bedplate.kernel.clock import Clock

# In milliseconds exactly: what is computed from it must not hang on the last bit of a float.
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class StillClock(Clock):
    """Only `advance` moves it."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
