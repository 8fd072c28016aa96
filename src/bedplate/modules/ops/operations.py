"""Maintenance mode, status and the audit log."""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import psutil
from sqlalchemy import insert, select, update

from bedplate.kernel.cache import Cache
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, Transaction, UniqueViolation
from bedplate.kernel.errors import InvalidField, Problem
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import Delivery, Listener
from bedplate.modules.identity.events import AdminAppointed, UserDeleted, UserDisabled, UserEnabled
from bedplate.modules.ops.models import AuditRow, MaintenanceRow
from bedplate.modules.ops.public import AuditEntry, Maintenance, Operations, ServiceStatus, SystemStatus

MAXIMUM_LISTED = 500
MAXIMUM_MESSAGE = 500
DEFAULT_MESSAGE = "System maintenance in progress"
TAG = "maintenance"

_ENTRIES = select(
    AuditRow.id, AuditRow.at, AuditRow.actor_id, AuditRow.action, AuditRow.subject, AuditRow.details
).order_by(AuditRow.at.desc(), AuditRow.id.desc())
_AUDIT = insert(AuditRow)
_MODE = select(MaintenanceRow.enabled, MaintenanceRow.message, MaintenanceRow.updated_at)
ACTIONS = {
    UserDisabled: "user.disable",
    UserEnabled: "user.enable",
    UserDeleted: "user.delete",
    AdminAppointed: "user.appoint-admin",
}


class OperationsService(Operations):
    """`ping_cache` raises a Problem if the shared cache does not answer."""

    def __init__(self, db: Database, cache: Cache, clock: Clock, ping_cache: Callable[[], Awaitable[None]]) -> None:
        self._db = db
        self._cache = cache
        self._clock = clock
        self._ping_cache = ping_cache
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the measurement

    def listeners(self) -> list[Listener]:
        """What this module wants to hear: acts of administrators."""
        return [Listener("ops.audit", event, self._note) for event in ACTIONS]

    async def get_maintenance(self) -> Maintenance:
        async def load() -> Maintenance:
            row = await self._db.first(_MODE)
            return Maintenance(*row) if row else Maintenance(False, DEFAULT_MESSAGE, None)

        return await self._cache.get("ops:maintenance", load, lambda _: (TAG,))

    async def set_maintenance(self, enabled: bool, message: str | None, actor_id: str) -> Maintenance:
        if message is not None and not 0 < len(message.strip()) <= MAXIMUM_MESSAGE:
            raise InvalidField(field="message", reason="Message must be between 1 and 500 characters")
        now = self._clock.now()
        values = {"enabled": enabled, "updated_at": now} | ({"message": message.strip()} if message else {})
        try:
            async with self._db.transaction() as tx:
                if not await tx.execute(update(MaintenanceRow).values(values)):
                    await tx.execute(insert(MaintenanceRow), {"id": 1, "message": DEFAULT_MESSAGE, **values})
                row = await tx.first(_MODE)
                assert row is not None
                action = "maintenance.start" if enabled else "maintenance.end"
                await _write(tx, now, actor_id, action, "system", {"message": row.message})
                tx.invalidate(TAG)
        except UniqueViolation:  # two made the very first switch at once: now there is a row to update
            return await self.set_maintenance(enabled, message, actor_id)
        return Maintenance(*row)

    async def system_status(self) -> SystemStatus:
        began = time.perf_counter()
        database = await _works(self._db.ping)
        latency = round((time.perf_counter() - began) * 1000)
        with self._process.oneshot():
            service = ServiceStatus(
                name="api",
                status="running",
                uptime=int(time.time() - self._process.create_time()),
                memory=self._process.memory_info().rss,
                cpu=self._process.cpu_percent(),
            )
        return SystemStatus([service], database, latency, await _works(self._ping_cache), self._cache.hit_rate)

    async def audit_log(self, limit: int = 100, offset: int = 0) -> list[AuditEntry]:
        part = _ENTRIES.limit(min(max(limit, 1), MAXIMUM_LISTED)).offset(max(offset, 0))
        return [AuditEntry(*row) for row in await self._db.all(part)]

    async def _note(self, delivery: Delivery) -> None:
        event = delivery.event
        async with self._db.transaction() as tx:
            if await delivery.first_time(tx):
                actor = getattr(event, "actor_id", None)
                await _write(tx, delivery.created_at, actor, ACTIONS[type(event)], event.user_id, {})


async def _write(
    tx: Transaction, at: datetime, actor_id: str | None, action: str, subject: str, details: dict[str, Any]
) -> None:
    row = {"id": new_id(), "at": at, "actor_id": actor_id, "action": action, "subject": subject}
    await tx.execute(_AUDIT, {**row, "details": details})


async def _works(ping: Callable[[], Awaitable[None]]) -> bool:
    try:
        await ping()
    except Problem:
        return False
    return True
