"""Pantstack API reference: Admin Module, System Management."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, StrictBool

from bedplate.kernel.http import Text
from bedplate.modules.ops.public import Maintenance
from bedplate.systems.pantstack.deps import Admin, OperationsDep

router = APIRouter(tags=["admin"])


class ServiceOut(BaseModel):
    """`uptime`: seconds."""

    name: str
    status: str
    uptime: int
    memory_usage: str
    cpu_usage: str


class DatabaseOut(BaseModel):
    status: str
    latency_ms: int


class CacheOut(BaseModel):
    """`hit_rate`: 0 to 1."""

    status: str
    hit_rate: float


class SystemStatusOut(BaseModel):
    services: list[ServiceOut]
    database: DatabaseOut
    cache: CacheOut


class MaintenanceIn(BaseModel):
    enabled: StrictBool
    message: Text | None = None

    model_config = ConfigDict(
        json_schema_extra={"example": {"enabled": True, "message": "System maintenance in progress"}}
    )


class MaintenanceOut(BaseModel):
    enabled: bool
    message: str
    updated_at: datetime

    model_config = ConfigDict(from_attributes=True)


@router.get("/api/v1/admin/system/status", response_model=SystemStatusOut)
async def system_status(admin: Admin, operations: OperationsDep) -> SystemStatusOut:
    status = await operations.system_status()
    return SystemStatusOut(
        services=[
            ServiceOut(
                name=service.name,
                status=service.status,
                uptime=service.uptime,
                memory_usage=f"{service.memory // 2**20}MB",
                cpu_usage=f"{round(service.cpu)}%",
            )
            for service in status.services
        ],
        database=DatabaseOut(status=_word(status.database_connected), latency_ms=status.database_latency_ms),
        cache=CacheOut(status=_word(status.cache_connected), hit_rate=round(status.cache_hit_rate, 4)),
    )


@router.post("/api/v1/admin/maintenance", response_model=MaintenanceOut)
async def set_maintenance(body: MaintenanceIn, admin: Admin, operations: OperationsDep) -> Maintenance:
    return await operations.set_maintenance(body.enabled, body.message, actor_id=admin.user.id)


def _word(connected: bool) -> str:
    return "connected" if connected else "disconnected"
