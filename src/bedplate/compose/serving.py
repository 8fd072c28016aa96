"""What a process serves: systems on the runtime's facades, each at its place, and the modules for other processes."""

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from bedplate.compose.databases import database_of
from bedplate.compose.runtime import Runtime, running
from bedplate.compose.shape import FACADES, HOSTS, NOTIFICATION_WORKER, ORDER_SERVICE, USER_SERVICE, Shape
from bedplate.kernel.blobs import FolderBlobs
from bedplate.kernel.breaker import MemoryCircuits
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Committed, Effects
from bedplate.kernel.events import Event
from bedplate.kernel.facade import InternalApi
from bedplate.kernel.front import Front
from bedplate.kernel.http import Place, System, edge
from bedplate.kernel.limits import MemoryLimiter
from bedplate.kernel.server import STOPPING_SINCE
from bedplate.kernel.settings import OperatorError, Settings, load
from bedplate.kernel.telemetry import configure_logging
from bedplate.modules.chat.public import Chat, Completions
from bedplate.modules.checkout.public import Checkout
from bedplate.modules.files.public import Files
from bedplate.modules.identity.public import Confirmations, Principals, ServiceKeys, Sessions, Users
from bedplate.modules.ops.public import Operations
from bedplate.modules.orders.public import Orders
from bedplate.modules.payments.public import Payments
from bedplate.systems.cobalt import app as cobalt_app
from bedplate.systems.cobalt import deps as cobalt_deps
from bedplate.systems.commerce import app as commerce_app
from bedplate.systems.commerce import deps as commerce_deps
from bedplate.systems.pantstack import app as pantstack_app
from bedplate.systems.pantstack import deps as pantstack_deps
from bedplate.systems.pynode import app as pynode_app
from bedplate.systems.pynode import deps as pynode_deps

PLACES: Mapping[str, Place] = {
    place.name: place
    for place in (
        Place(cobalt_app.NAME, cobalt_app.NAME, cobalt_app.PORT, cobalt_app.DOCS),
        Place(pantstack_app.NAME, pantstack_app.NAME, pantstack_app.PORT, pantstack_app.DOCS),
        Place(pynode_app.NAME, pynode_app.NAME, pynode_app.PORT, pynode_app.DOCS),
        commerce_app.USER_SERVICE,
        commerce_app.ORDER_SERVICE,
        commerce_app.PAYMENT_SERVICE,
        commerce_app.NOTIFICATION_WORKER,
    )
}
COMMERCE = "commerce"
INTERNAL = "internal"
INTERNAL_PORT = 8100
# The modules of one service are served to the others this far above its documented port.
INTERNAL_OFFSET = 100
NAMES = (*PLACES, COMMERCE, INTERNAL)
SERVE_VARIABLE = "_BEDPLATE_SERVE"


@dataclass(frozen=True, slots=True)
class Served:
    """One application of a process: `name` of a system, "internal", or "" for every system, and its port. `option`:
    with what another port is chosen."""

    name: str
    port: int
    option: str = "--port"


def served_by(name: str | None, settings: Settings, port: int | None = None) -> list[Served]:
    """What a process that serves `name` listens on. `port` replaces the documented one; 0 takes free ports.

    Raises:
        OperatorError: there is no such name, it has several ports and one is given, or two of its ports are one.
    """
    if name is None:
        return [Served("", 8000 if port is None else port)]
    if name == INTERNAL:
        return [Served(INTERNAL, INTERNAL_PORT if port is None else port)]
    if name == COMMERCE:
        if port:
            raise OperatorError("commerce has a documented port for each service; serve one of them to choose its port")
        taken = {PLACES[each].port: each for each in HOSTS if each != NOTIFICATION_WORKER}
        if port is None and settings.metrics_port in taken:
            raise OperatorError(
                f"METRICS_PORT={settings.metrics_port} is the port of the {taken[settings.metrics_port]}"
            )
        return [Served(each, _port(each, settings, port)) for each in HOSTS]
    if name not in PLACES:
        raise OperatorError(f"there is no system {name!r}; there are {', '.join(NAMES)}")
    served = [Served(name, _port(name, settings, port))]
    if name == pynode_app.NAME and port is None and settings.ws_port != pynode_app.PORT:
        # The document's address of the WebSocket: the same application once more.
        served.append(Served(name, settings.ws_port, "WS_PORT"))
    if name in HOSTS and name != NOTIFICATION_WORKER and settings.broker_url is not None:
        served.append(Served(INTERNAL, served[0].port and served[0].port + INTERNAL_OFFSET))
    return served


def another_port(name: str | None, served: str, option: str = "--port") -> str:
    """What to do where the port of `served`, one of those that `serve name` listens on, is taken."""
    if name != COMMERCE:
        return f"choose another with {option}"
    if served == NOTIFICATION_WORKER:
        return "choose another with METRICS_PORT"
    return f"it is the documented one; `bedplate serve {served}` alone can have another"


def _port(name: str, settings: Settings, port: int | None) -> int:
    if port is not None:
        return port
    return settings.metrics_port if name == NOTIFICATION_WORKER else PLACES[name].port


def system(name: str, runtime: Runtime) -> System:
    """One documented API on the runtime's facades."""
    settings, probes = runtime.settings, {**runtime.probes, **runtime.others}
    if name == cobalt_app.NAME:
        facades = cobalt_deps.Facades(
            runtime.get(Users),
            runtime.get(Sessions),
            runtime.get(Principals),
            runtime.get(Confirmations),
            secure_cookies=settings.is_production,
        )
        return cobalt_app.create(facades, probes, settings, runtime.tracing)
    if name == pantstack_app.NAME:
        return pantstack_app.create(
            pantstack_deps.Facades(
                runtime.get(Users),
                runtime.get(Sessions),
                runtime.get(Principals),
                runtime.get(ServiceKeys),
                runtime.get(Operations),
            ),
            probes,
            settings,
            runtime.clock,
            runtime.tracing,
        )
    if name == pynode_app.NAME:
        return _pynode(runtime)
    return _commerce(name, runtime)


def _pynode(runtime: Runtime) -> System:
    facades = pynode_deps.Facades(
        runtime.get(Users),
        runtime.get(Sessions),
        runtime.get(Principals),
        runtime.get(ServiceKeys),
        runtime.get(Chat),
        runtime.get(Completions),
        runtime.feeds,
        runtime.get(Files),
        runtime.uploads,
        runtime.blobs,
        runtime.links,
    )
    settings = runtime.settings
    around = pynode_app.Around(
        {**runtime.probes, **runtime.others, "storage": runtime.blobs.ping},
        runtime.connections,
        runtime.limiter if settings.rate_limit_enabled else None,
        runtime.clock,
        runtime.tracing,
    )
    served, metrics = pynode_app.create(facades, around, settings)
    runtime.answered.append(metrics.answered)
    return served


def _commerce(name: str, runtime: Runtime) -> System:
    probes = {**runtime.probes, **runtime.others}
    around = commerce_app.Around(
        probes, runtime.needed, runtime.connections, runtime.backlog, runtime.clock, runtime.tracing
    )
    if name == NOTIFICATION_WORKER:
        return commerce_app.create_notification_worker(around)
    settings = runtime.settings
    access = commerce_deps.Access(
        runtime.get(Principals), runtime.get(ServiceKeys), settings.auth_required, runtime.secret
    )
    if name == USER_SERVICE:
        users = commerce_deps.UserFacades(runtime.get(Users), runtime.get(Sessions), runtime.get(Confirmations))
        return commerce_app.create_user_service(users, access, around, settings)
    if name == ORDER_SERVICE:
        orders = commerce_deps.OrderFacades(runtime.get(Orders), runtime.get(Checkout))
        return commerce_app.create_order_service(orders, access, around)
    payments = commerce_deps.PaymentFacades(runtime.get(Payments), runtime.breakers)
    return commerce_app.create_payment_service(payments, access, around, settings)


def application(name: str | None, runtime: Runtime) -> ASGIApp:
    """One system at its documented paths, all of them under their names (None), or the modules that run here for
    other processes ("internal")."""
    settings = runtime.settings
    if name == INTERNAL:
        served = {facade: runtime.get(facade) for unit in runtime.shape.here for facade in FACADES[unit]}
        return InternalApi(served, runtime.credentials, runtime.probes)
    limiter = runtime.limiter if settings.rate_limit_enabled else None
    systems = [_counting(system(each, runtime), runtime) for each in ([name] if name else PLACES)]
    if name is not None:
        return edge(systems[0], limiter, settings)
    return Front({PLACES[each.name]: (each, edge(each, limiter, settings)) for each in systems})


class _Heard(Committed):
    """Tells a system what was said in each commit."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def committed(self, effects: Effects) -> None:
        if effects.emitted and self._system.committed is not None:
            self._system.committed(effects.emitted)


def _counting(system: System, runtime: Runtime) -> System:
    """Hooks what a system counts to the databases of this process; statements to those of its own modules alone."""
    own = {database_of(unit, runtime.settings) for unit in HOSTS.get(system.name, runtime.shape.here)}
    for url, database in runtime.databases.items():
        if system.committed is not None:
            database.listeners.append(_Heard(system))
        if system.observe_statement is not None and url in own:
            database.observers.append(system.observe_statement)
    if system.delivered is not None:
        for relay in runtime.relays:
            relay.delivered.append(_only_of("mail", system.delivered))
    if system.notified is not None:
        runtime.notified.append(system.notified)
    return system


def _only_of(consumer: str, tell: Callable[[Event], None]) -> Callable[[str, Event], None]:
    def delivered(to: str, event: Event) -> None:
        if to == consumer:
            tell(event)

    return delivered


class Process:
    """The ASGI application of one server process: opens the modules when the server starts, closes them when it
    ends, and finds by the port what a request is for."""

    def __init__(self, name: str | None, served: Sequence[Served], settings: Settings) -> None:
        self._name = name
        self._served = served
        self._settings = settings
        self._by_port: dict[int, ASGIApp] = {}
        self._only: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await (self._only or self._by_port[scope["server"][1]])(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with running(self._settings, Clock(), name=self._name) as runtime:
            names = {each.name for each in self._served}
            by_name = {name: application(name or None, runtime) for name in names}
            self._by_port = {each.port: by_name[each.name] for each in self._served}
            self._only = next(iter(by_name.values())) if len(by_name) == 1 else None
            # What there is by now stays: to look through it for garbage, as Python does now and then, takes a tenth of
            # a second, in which nobody is served.
            gc.freeze()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            runtime.stopping_since = scope["state"].get(STOPPING_SINCE)
        await send({"type": "lifespan.shutdown.complete"})


def to_environment(name: str | None, served: Sequence[Served]) -> None:
    """What server processes are to serve, for `from_environment`."""
    os.environ[SERVE_VARIABLE] = json.dumps([name, [[each.name, each.port] for each in served]])


def from_environment() -> Process:
    """The factory that server processes call."""
    settings = load()
    configure_logging(settings.log_level)
    name, served = json.loads(os.environ[SERVE_VARIABLE])
    return Process(name, [Served(*each) for each in served], settings)


def blueprint(settings: Settings, clock: Clock) -> list[System]:
    """Every system with its routes, over facades that are not to be called."""
    from bedplate.kernel.remote import RemoteCaller, remote  # noqa: PLC0415  # an HTTP client, needed only here

    shape = Shape(frozenset(), {})
    blobs = FolderBlobs(settings.data / "files", clock)
    runtime = Runtime(settings, clock, shape, "0" * 32, MemoryLimiter(clock), MemoryCircuits(clock), blobs)
    caller = RemoteCaller("http://nowhere", runtime.credentials)
    for facades in FACADES.values():
        runtime.facades |= {facade: remote(facade, caller) for facade in facades}
    return [system(name, runtime) for name in PLACES]
