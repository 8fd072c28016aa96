"""Time, as a dependency, so that windows and expiries can be tested without waiting."""

from datetime import UTC, datetime


class Clock:
    """The machine's clock. Everything that decides by time asks an instance of this class."""

    def now(self) -> datetime:
        """Aware UTC time."""
        return datetime.now(UTC)

    def timestamp(self) -> float:
        """Seconds since the epoch."""
        return self.now().timestamp()


def iso(moment: datetime) -> str:
    """RFC 3339 in UTC with Z, as all documents print times."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
