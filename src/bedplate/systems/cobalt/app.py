"""Cobalt API reference: the application, its limits and its health."""

from collections.abc import Mapping, Sequence

from bedplate import __version__
from bedplate.kernel.health import Probe
from bedplate.kernel.http import NOT_READY, Rule, System, application, metrics_page, ready_page
from bedplate.kernel.limits import Limit
from bedplate.kernel.settings import Settings
from bedplate.kernel.telemetry import Metrics
from bedplate.systems.cobalt import admin, auth
from bedplate.systems.cobalt.deps import Facades
from bedplate.systems.cobalt.errors import CobaltEnvelope, TooManyLogins, TooManyRegistrations, TooManyResets

NAME = "cobalt"
PORT = 8000
DOCS = "/docs"


def create(facades: Facades, probes: Mapping[str, Probe], settings: Settings, tracing: object) -> System:
    """The system, ready to be served."""
    envelope = CobaltEnvelope()
    metrics = Metrics(NAME, ("method", "endpoint", "status"))
    app = application(
        envelope,
        tracing=tracing,
        docs_url=DOCS,
        redoc_url="/redoc",
        title="Cobalt API",
        version=__version__,
        description="Sign-in by username or e-mail, refresh by HTTP-only cookie, administration of users.",
    )
    app.state.facades = facades
    app.add(auth.router, admin.router)
    app.get("/metrics", include_in_schema=False)(metrics_page(metrics))

    @app.get("/health", tags=["health"])
    @app.get("/api/health", tags=["health"])
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    app.get("/ready", tags=["health"], responses=NOT_READY)(ready_page(probes))

    rules = {
        ("POST", "/api/auth/login"): [Rule("login", Limit.parse(settings.cobalt_login_limit), TooManyLogins)],
        ("POST", "/api/auth/register"): [
            Rule("register", Limit.parse(settings.cobalt_register_limit), TooManyRegistrations)
        ],
        ("POST", "/api/auth/forgot-password"): [Rule("reset", Limit.parse(settings.cobalt_reset_limit), TooManyResets)],
    }

    def limits(method: str, path: str) -> Sequence[Rule]:
        return rules.get((method, path), ())

    return System(NAME, app.title, app, envelope, metrics, DOCS, limits)
