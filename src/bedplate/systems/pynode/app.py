"""Dev-PyNode API reference: the application, its limits, its documentation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import Response

from bedplate.kernel.clock import Clock
from bedplate.kernel.health import Probe
from bedplate.kernel.http import Application, System, application, metrics_page
from bedplate.kernel.limits import Limit, Limiter
from bedplate.kernel.settings import Settings
from bedplate.kernel.sockets import Sockets
from bedplate.systems.pynode import auth, chat, files, openai, socket, users
from bedplate.systems.pynode.callers import Callers, Regimes
from bedplate.systems.pynode.deps import Facades
from bedplate.systems.pynode.errors import PynodeEnvelope
from bedplate.systems.pynode.health import VERSION, health_routes
from bedplate.systems.pynode.metrics import PynodeMetrics

NAME = "pynode"
PORT = 3000
DOCS = "/docs"
TITLE = "Dev-PyNode API"


@dataclass(frozen=True, slots=True)
class Around:
    """What the system stands in, beside its facades. `limiter` None: no rate limits. `connections`: how many are in
    use to databases now."""

    probes: Mapping[str, Probe]
    connections: Callable[[], int]
    limiter: Limiter | None
    clock: Clock
    tracing: object


def create(facades: Facades, around: Around, settings: Settings) -> tuple[System, PynodeMetrics]:
    """The system, ready to be served, and what wants to be told of finished answers."""
    envelope = PynodeEnvelope()
    sockets = Sockets(settings.ws_origins, around.clock, ports=(PORT, settings.ws_port))
    metrics = PynodeMetrics(NAME, sockets.count, around.connections)
    regimes = Regimes(Limit.parse(settings.pynode_limit), Limit.parse(settings.pynode_anonymous_limit))
    callers = Callers(facades.principals, facades.keys, around.limiter, around.clock, regimes)
    app = application(
        envelope,
        tracing=around.tracing,
        docs_url=DOCS,
        redoc_url="/redoc",
        title=TITLE,
        version=VERSION,
        description="Chat with models over HTTP and WebSocket, and files. `/v1` speaks OpenAI's API.",
    )
    app.state.facades = facades
    app.state.callers = callers
    app.state.public_url = settings.storage_public_url
    app.state.link_seconds = settings.file_link_seconds
    app.state.talk = socket.Talk(facades, callers, sockets, required=settings.ws_auth_required)
    app.add(auth.router, users.router, chat.router, files.router, openai.router, socket.router)
    app.add(health_routes(TITLE, DOCS, around.probes, around.clock))
    app.get("/metrics", include_in_schema=False)(metrics_page(metrics.metrics))
    _add_yaml(app)
    served = System(
        NAME,
        app.title,
        app,
        envelope,
        metrics.metrics,
        DOCS,
        count=callers.count,
        body_limits=files.body_limits(settings),
    )
    return served, metrics


def _add_yaml(app: Application) -> None:
    page = b""

    @app.get("/openapi.yaml", include_in_schema=False)
    async def openapi_yaml() -> Response:
        nonlocal page
        if not page:
            import yaml  # noqa: PLC0415  # for the few who ask

            page = yaml.safe_dump(app.openapi(), sort_keys=False, allow_unicode=True).encode()
        return Response(page, media_type="application/yaml")
