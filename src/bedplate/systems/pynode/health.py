"""Dev-PyNode API reference: Health & Status."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from bedplate.kernel.clock import Clock
from bedplate.kernel.health import Probe, probe

VERSION = "1.0.0"  # of the documented API, not of the product

State = Literal["connected", "disconnected"]


class RootOut(BaseModel):
    message: str
    version: str
    status: Literal["running"]
    docs: str


class HealthOut(BaseModel):
    """`uptime`: seconds."""

    status: Literal["healthy"]
    timestamp: datetime
    version: str
    uptime: int


class ServicesOut(BaseModel):
    """What is not configured is part of the process, and so connected."""

    database: State
    redis: State
    storage: State


class ReadyOut(BaseModel):
    status: Literal["ready", "not_ready"]
    services: ServicesOut


NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "A service is away", "model": ReadyOut}}


def health_routes(title: str, docs: str, probes: Mapping[str, Probe], clock: Clock) -> APIRouter:
    """`probes`: of what the process needs, by name. Those that are neither Redis nor storage stand for the database:
    where the modules are in another process it is reached through them."""
    router = APIRouter(tags=["health"])
    began = time.monotonic()

    @router.get("/", response_model=RootOut)
    async def root(request: Request) -> RootOut:
        here = f"{request.scope.get('root_path', '')}{docs}"
        return RootOut(message=title, version=VERSION, status="running", docs=here)

    @router.get("/health", response_model=HealthOut)
    async def health() -> HealthOut:
        uptime = int(time.monotonic() - began)
        return HealthOut(status="healthy", timestamp=clock.now(), version=VERSION, uptime=uptime)

    @router.get("/ready", response_model=ReadyOut, responses=NOT_READY)
    async def ready(response: Response) -> ReadyOut:
        found = await probe(probes)
        response.status_code = 200 if all(found.values()) else 503
        database = all(answers for name, answers in found.items() if name not in ("redis", "storage"))
        services = ServicesOut(
            database=_state(database),
            redis=_state(found.get("redis", True)),
            storage=_state(found.get("storage", True)),
        )
        return ReadyOut(status="ready" if all(found.values()) else "not_ready", services=services)

    return router


def _state(answers: bool) -> State:
    return "connected" if answers else "disconnected"
