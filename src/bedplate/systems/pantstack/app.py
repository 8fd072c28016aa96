"""Pantstack API reference: Base Service Structure, Common Endpoints, Rate Limiting."""

from collections.abc import Mapping, Sequence

from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.errors import Problem
from bedplate.kernel.health import Probe
from bedplate.kernel.http import NOT_READY, Rule, System, application, metrics_page, ready_page
from bedplate.kernel.limits import Limit
from bedplate.kernel.settings import Settings
from bedplate.kernel.telemetry import Metrics
from bedplate.modules.ops.public import UnderMaintenance
from bedplate.systems.pantstack import admin, auth, users
from bedplate.systems.pantstack.deps import Facades
from bedplate.systems.pantstack.errors import PantstackEnvelope

NAME = "pantstack"
PORT = 8000
DOCS = "/api/docs"
VERSION = "1.0.0"  # of the documented API, not of the product

LISTS = {("GET", "/api/v1/users"), ("GET", "/api/v2/users"), ("GET", "/api/users")}
# Open during maintenance, so that whoever switched it on can switch it off.
OPEN = ("/api/v1/auth/", "/api/v1/admin/", "/api/docs", "/api/redoc")
RETRY_SECONDS = 60


def create(facades: Facades, probes: Mapping[str, Probe], settings: Settings, clock: Clock, tracing: object) -> System:
    """The system, ready to be served."""
    envelope = PantstackEnvelope(clock)
    metrics = Metrics(NAME, ("method", "endpoint"))
    app = application(
        envelope,
        tracing=tracing,
        docs_url=DOCS,
        redoc_url="/api/redoc",
        title="Pantstack API",
        description="Complete API for Pantstack services",
        version=VERSION,
        terms_of_service="https://pantstack.example.com/terms",
        contact={"name": "API Support", "email": "api@pantstack.example.com"},
        license_info={"name": "MIT", "url": "https://opensource.org/licenses/MIT"},
    )
    app.state.facades = facades
    app.add(users.router, auth.router, admin.router)
    app.get("/metrics", include_in_schema=False)(metrics_page(metrics))

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        return {"status": "healthy", "version": VERSION, "timestamp": iso(clock.now())}

    app.get("/ready", tags=["health"], responses=NOT_READY)(ready_page(probes))

    everything = Rule("api", Limit.parse(settings.pantstack_limit))
    lists = Rule("lists", Limit.parse(settings.pantstack_list_limit))

    def limits(method: str, path: str) -> Sequence[Rule]:
        if not path.startswith("/api/") or path in ("/api/docs", "/api/redoc"):
            return ()
        return (everything, lists) if (method, path) in LISTS else (everything,)

    async def maintenance(method: str, path: str) -> Problem | None:
        if not path.startswith("/api/") or path.startswith(OPEN):
            return None
        mode = await facades.operations.get_maintenance()
        return UnderMaintenance(notice=mode.message, retry_after=RETRY_SECONDS) if mode.enabled else None

    return System(
        NAME,
        app.title,
        app,
        envelope,
        metrics,
        DOCS,
        limits,
        maintenance,
    )
