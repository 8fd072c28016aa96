"""Ops' public face."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from bedplate.kernel.errors import Kind, Problem


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Whether the product is closed for maintenance, and what visitors are told."""

    enabled: bool
    message: str
    updated_at: datetime | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One running part. `uptime` in seconds, `memory` in bytes, `cpu` in percent of one core since the last look."""

    name: str
    status: str
    uptime: int
    memory: int
    cpu: float


@dataclass(frozen=True, slots=True)
class SystemStatus:
    services: list[ServiceStatus]
    database_connected: bool
    database_latency_ms: int
    cache_connected: bool
    cache_hit_rate: float


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Somebody with power did something. `actor_id` is None for the command line."""

    id: str
    at: datetime
    actor_id: str | None
    action: str
    subject: str
    details: dict[str, JsonValue]


class UnderMaintenance(Problem):
    """Details: retry_after (seconds), notice (the operator's own words)."""

    kind = Kind.UNAVAILABLE
    message = "{notice}"


class Operations(ABC):
    """Running the product."""

    @abstractmethod
    async def get_maintenance(self) -> Maintenance:
        """The mode as every process sees it now."""

    @abstractmethod
    async def set_maintenance(self, enabled: bool, message: str | None, actor_id: str) -> Maintenance:
        """Switch the mode; without a message the last one stays. Raises InvalidField."""

    @abstractmethod
    async def system_status(self) -> SystemStatus:
        """Figures of the process that answers."""

    @abstractmethod
    async def audit_log(self, limit: int = 100, offset: int = 0) -> list[AuditEntry]:
        """Newest first, at most 500 at once."""
