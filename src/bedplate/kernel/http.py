"""The edge of a system: one pure-ASGI layer that does what every request needs, and what applications share.

Per request: the id (accepted or made), rate limits, gates, the system's own error for whatever escapes, headers,
metrics and one log line.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from pydantic import AfterValidator, BaseModel, ValidationError
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bedplate.kernel.envelope import Envelope
from bedplate.kernel.errors import Problem, TooLarge, TooMany
from bedplate.kernel.events import Event
from bedplate.kernel.health import Probe, probe
from bedplate.kernel.ids import new_id
from bedplate.kernel.limits import Limit, Limiter, address_key
from bedplate.kernel.pages import add_pages
from bedplate.kernel.settings import Settings
from bedplate.kernel.telemetry import REQUEST_ID, AccessLog, Metrics

log = logging.getLogger("bedplate.http")

M = TypeVar("M", bound=BaseModel)


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("Text must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("Text must be valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_plain)]
"""Text from a client: no NUL (PostgreSQL cannot store it) and no lone surrogates (nothing can)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rate limit of a document: requests that share a bucket share the count, per client address."""

    bucket: str
    limit: Limit
    problem: type[TooMany] = TooMany


@dataclass(frozen=True, slots=True)
class Counted:
    """Where whoever asks stands with his limit: what each answer says of it, and the refusal if it is used up."""

    headers: Sequence[tuple[bytes, bytes]]
    refusal: TooMany | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an API of a document with several is found: by its name and documented port with `bedplate serve`, under
    `mount` with `bedplate up`; `docs` is the path of its documentation, empty if it has none."""

    name: str
    mount: str
    port: int
    docs: str


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Of a request's body, in bytes, and what is said of a larger one."""

    size: int
    refusal: Callable[[], Problem] = TooLarge


@dataclass(frozen=True)
class System:
    """One documented API, ready to be served.

    `rules` limit by address. A system that limits by caller counts itself, in `count` (scope, path), which is asked
    only where limits are on.

    `body_limits`: of operations (method, path without parameters) whose bodies are larger than others may be.

    What it counts beside requests is fed from outside: `committed` is told what was said in each commit,
    `observe_statement` the seconds that each statement took, `delivered` each event that was handled, `notified` each
    message to somebody (type of the event, channel, seconds). `links`: further pages for people, path by name.
    """

    name: str
    title: str
    app: FastAPI
    envelope: Envelope
    metrics: Metrics
    docs_url: str
    rules: Callable[[str, str], Sequence[Rule]] = lambda method, path: ()
    gate: Callable[[str, str], Awaitable[Problem | None]] | None = None
    body_limits: Mapping[tuple[str, str], BodyLimit] = field(default_factory=dict)
    committed: Callable[[Sequence[Event]], None] | None = None
    observe_statement: Callable[[float], None] | None = None
    delivered: Callable[[Event], None] | None = None
    notified: Callable[[str, str, float], None] | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    count: Callable[[Scope, str], Awaitable[Counted | None]] | None = None


class Edge:
    """The ASGI application of a system, with everything around it. `limiter` None: no rate limits."""

    def __init__(self, system: System, limiter: Limiter | None, max_body_bytes: int) -> None:
        self._system = system
        self._limiter = limiter
        self._body_limit = BodyLimit(max_body_bytes)
        self._log = AccessLog()
        # Paths without parameters, by which refused requests are counted: the router has not seen them.
        self._plain_paths = frozenset(getattr(route, "path", "") for route in system.app.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._system.app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = _request_id(scope)
        scope["request_id"] = request_id
        token = REQUEST_ID.set(request_id)
        status = 0
        counted: Sequence[tuple[bytes, bytes]] = ()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    *counted,
                ]
                if not any(name == b"cache-control" for name, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        try:
            refusal: Problem | None = None
            if self._system.count is not None and self._limiter is not None:
                standing = await self._system.count(scope, _path(scope))
                if standing is not None:
                    counted, refusal = standing.headers, standing.refusal
            refusal = refusal or await self._refusal(scope)
            if refusal is None:
                await self._system.app(scope, self._bounded(receive, self._limit(scope).size), answer)
            else:
                await self._envelope(scope).of_problem(refusal, request_id)(scope, receive, answer)
        except Problem as problem:  # of a gate: what it asks may be away
            await self._envelope(scope).of_problem(problem, request_id)(scope, receive, answer)
        except Exception as error:
            log.error("unexpected error", extra={"request_id": request_id}, exc_info=error)
            if not status:
                await self._envelope(scope).defect(request_id)(scope, receive, answer)
        finally:
            REQUEST_ID.reset(token)
            self._record(scope, status, time.perf_counter() - began, request_id)

    def _envelope(self, scope: Scope) -> Envelope:
        return self._system.envelope.at(_path(scope))

    async def _refusal(self, scope: Scope) -> Problem | None:
        """The first reason not to let the request in: a rate limit, its size, a gate such as maintenance."""
        method = scope["method"]
        path = _path(scope)
        if self._limiter is not None:
            for rule in self._system.rules(method, path):
                client = scope["client"]
                key = f"{self._system.name}:{rule.bucket}:{address_key(client[0]) if client else '-'}"
                window = await self._limiter.hit(key, rule.limit)
                if not window.allowed:
                    return rule.problem(limit=rule.limit.text, retry_after=max(1, round(window.reset_after + 0.499)))
        limit = self._limit(scope)
        if any(name == b"content-length" and int(value) > limit.size for name, value in scope["headers"]):
            return limit.refusal()
        if self._system.gate is not None:
            return await self._system.gate(method, path)
        return None

    def _limit(self, scope: Scope) -> BodyLimit:
        return self._system.body_limits.get((scope["method"], _path(scope)), self._body_limit)

    def _bounded(self, receive: Receive, left: int) -> Receive:
        """A body without a declared length is counted as it comes."""

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413)
            return message

        return bounded

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = scope.get("route")
        template = getattr(route, "path", None)
        if not template:
            path = _path(scope)
            template = path if path in self._plain_paths else "unmatched"
        self._system.metrics.observe(scope["method"], template, status, seconds)
        self._log.add(
            system=self._system.name,
            method=scope["method"],
            path=scope["path"],
            status=status,
            duration_ms=round(seconds * 1000, 2),
            client=scope["client"][0] if scope["client"] else "",
            request_id=request_id,
        )


def edge(system: System, limiter: Limiter | None, settings: Settings) -> ASGIApp:
    """A system as a process serves it. Browsers of other origins get their headers on refusals too."""
    app = Edge(system, limiter, settings.max_body_bytes)
    if not settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[
            "X-Request-ID",
            "Retry-After",
            "X-RateLimit-Limit",
            "X-RateLimit-Remaining",
            "X-RateLimit-Reset",
        ],
    )


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            if 0 < len(text) <= 128 and text.isascii() and text.isprintable():
                return text
    return new_id()


class Application(FastAPI):
    """FastAPI without the layers that the edge makes superfluous (its own 500, body limit): a tenth of a request."""

    envelope: Envelope

    def openapi(self) -> dict[str, Any]:
        """As FastAPI makes it, with the system's error as every operation's other answer instead of FastAPI's own."""
        if self.openapi_schema is None:
            document = super().openapi()
            error = self.envelope.model
            schemas = document["components"]["schemas"]
            schemas[error.__name__] = error.model_json_schema()
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error.__name__}"}}}
            for operation in (each for path in document["paths"].values() for each in path.values()):
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = {"description": "Error", "content": content}
        return self.openapi_schema or {}

    def build_middleware_stack(self) -> ASGIApp:
        handlers: Any = self.exception_handlers
        return ExceptionMiddleware(AsyncExitStackMiddleware(_Dispatch(self.router)), handlers=handlers)

    def add(self, *routers: APIRouter) -> None:
        """Take over routes as they are. include_router() would match and wrap each request once more."""
        for router in routers:
            self.router.routes.extend(router.routes)


class _Dispatch:
    """Finds routes without parameters by their path. The router would try the pattern of each route before them."""

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._exact = {
            (method, route.path): route
            for route in reversed(router.routes)
            if isinstance(route, APIRoute) and "{" not in route.path
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._exact.get((scope.get("method", ""), get_route_path(scope)))
        if route is None or scope.get("fastapi.telemetry") is not None:  # traces are named by the router
            await self._router(scope, receive, send)
            return
        _, child_scope = route.matches(scope)
        scope.update(child_scope, router=self._router)
        await route.handle(scope, receive, send)


class Query(Generic[M]):
    """A dependency that reads all query parameters at once, as a model; in a tenth of the time that FastAPI takes for
    five of them. Document them with `openapi_extra=query.documented`."""

    def __init__(self, model: type[M]) -> None:
        self._model = model
        properties = model.model_json_schema()["properties"]
        parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]
        self.documented = {"parameters": parameters}

    async def __call__(self, request: Request) -> M:
        try:
            return self._model.model_validate(dict(request.query_params))
        except ValidationError as invalid:
            found = [{**error, "loc": ("query", *error["loc"])} for error in invalid.errors()]
            raise RequestValidationError(found) from None


def application(envelope: Envelope, *, docs_url: str, redoc_url: str, tracing: Any, **description: Any) -> Application:
    """A FastAPI application with the system's errors and with documentation pages that need no other host; without
    any if `docs_url` is empty.

    `tracing`: an OpenTelemetry tracer provider, or None: then nothing is measured for traces either.
    """
    app = Application(
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if docs_url else None,
        redirect_slashes=False,
        telemetry={"tracing": tracing is not None, "tracer_provider": tracing, "metrics": False, "logs": False},
        **description,
    )
    app.envelope = envelope
    envelope.install(app)
    if docs_url:
        add_pages(app, docs_url, redoc_url)
    return app


class BearerScheme(SecurityBase):
    """Base of the dependencies that read a bearer token: declares it in the OpenAPI document, costs nothing else."""

    def __init__(self, name: str = "Bearer") -> None:
        self.model = HTTPBearerModel(bearerFormat="JWT")
        self.scheme_name = name


def bearer_token(request: Request) -> str:
    """The token of `Authorization: Bearer <token>`; empty if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready", "model": dict[str, object]}}


def ready_page(probes: Mapping[str, Probe]) -> Callable[[Response], Awaitable[dict[str, object]]]:
    """A handler that answers whether everything the process needs is there: 200 or 503, with each check."""

    async def ready(response: Response) -> dict[str, object]:
        found = await probe(probes)
        response.status_code = 200 if all(found.values()) else 503
        return {"status": "ready" if all(found.values()) else "not ready", "checks": found}

    return ready


def metrics_page(metrics: Metrics) -> Callable[[], Awaitable[Response]]:
    """A handler that answers with the system's metrics."""

    async def page() -> Response:
        return Response(await metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return page
