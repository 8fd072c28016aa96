"""Commerce API documentation: Health Check Endpoints."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from bedplate import __version__
from bedplate.kernel.clock import Clock
from bedplate.kernel.health import Probe, probe
from bedplate.kernel.http import NOT_READY, ready_page

State = Literal["healthy", "unhealthy"]


class HealthOut(BaseModel):
    """`dependencies`: what the service stands on, by name."""

    status: State
    timestamp: datetime
    service: str
    version: str
    dependencies: dict[str, State]


UNHEALTHY: dict[int | str, dict[str, Any]] = {503: {"description": "A dependency is away", "model": HealthOut}}


def health_routes(service: str, probes: Mapping[str, Probe], needed: Mapping[str, Probe], clock: Clock) -> APIRouter:
    """`/health` tells of every dependency and is 503 if one is away, so it is nothing to restart a process by. `/ready`
    asks for `needed` alone, what nothing can be answered without: services that call each other must not wait for
    each other, and a broker that restarts must not take all of them out of service."""
    router = APIRouter(tags=["health"])

    @router.get("/health", responses=UNHEALTHY)
    async def health(response: Response) -> HealthOut:
        found = await probe(probes)
        response.status_code = 200 if all(found.values()) else 503
        return HealthOut(
            status=_state(all(found.values())),
            timestamp=clock.now(),
            service=service,
            version=__version__,
            dependencies={name: _state(answers) for name, answers in found.items()},
        )

    router.get("/ready", responses=NOT_READY)(ready_page(needed))
    return router


def _state(answers: bool) -> State:
    return "healthy" if answers else "unhealthy"
