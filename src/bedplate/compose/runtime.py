"""The modules of one process and what they stand on. With its neighbours the only importer of implementations."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from bedplate.compose.chosen import blobs_of, broker_at, database_at, redis_of
from bedplate.compose.databases import database_of, database_urls
from bedplate.compose.local import Local
from bedplate.compose.shape import CIRCUITS, FACADES, GROUPS, LISTENS, Shape, shape_of, topics_of
from bedplate.kernel.blobs import Blobs
from bedplate.kernel.breaker import Breaker, Circuits, MemoryCircuits
from bedplate.kernel.broker import Broker, with_broker
from bedplate.kernel.cache import Cache, Signals
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.documents import Documents
from bedplate.kernel.events import Event
from bedplate.kernel.facade import Credentials
from bedplate.kernel.feeds import Feeds, MemoryFeeds
from bedplate.kernel.health import Probe
from bedplate.kernel.limits import Limiter, MemoryLimiter
from bedplate.kernel.links import Links
from bedplate.kernel.outbox import Listener, backlog, revive
from bedplate.kernel.relay import Relay
from bedplate.kernel.security import Tokens, signing_secret
from bedplate.kernel.settings import Settings
from bedplate.kernel.tails import TailRoutes
from bedplate.kernel.telemetry import stop_tracing, tracer_provider
from bedplate.modules.chat.listening import FarFeeds
from bedplate.modules.chat.public import Answered, Listening
from bedplate.modules.files.public import Files, Uploads
from bedplate.modules.files.uploads import StreamUploads
from bedplate.modules.identity.principals import CachedPrincipals
from bedplate.modules.identity.public import Principals
from bedplate.modules.mail.transport import Transport
from bedplate.modules.payments.provider import Provider
from bedplate.modules.payments.unconfigured import NoProvider

if TYPE_CHECKING:
    from bedplate.kernel.intake import Intake
    from bedplate.kernel.publisher import Publisher

log = logging.getLogger("bedplate")

F = TypeVar("F")
Work = Callable[[], Awaitable[Any]]

SWEEP_SECONDS = 3600.0
MEND_SECONDS = 15.0
# What has died for these is tried again: an outage may have lasted longer than the relay's patience.
REVIVED = ("orders", "payments", "mail", "files", "chat")


@dataclass
class Runtime:
    """`probes`: of what this process needs for itself. `others`: of the processes that it calls. `models`: of the
    servers that answer chat, without which the rest is well."""

    settings: Settings
    clock: Clock
    shape: Shape
    secret: str = field(repr=False)
    limiter: Limiter
    circuits: Circuits
    blobs: Blobs
    facades: dict[type[Any], Any] = field(default_factory=dict)
    databases: dict[str, Database] = field(default_factory=dict)
    documents: dict[str, Documents] = field(default_factory=dict)
    caches: dict[str, Cache] = field(default_factory=dict)
    relays: list[Relay] = field(default_factory=list)
    probes: dict[str, Probe] = field(default_factory=dict)
    others: dict[str, Probe] = field(default_factory=dict)
    models: dict[str, Probe] = field(default_factory=dict)
    listeners: list[Listener] = field(default_factory=list)
    sweeps: list[Work] = field(default_factory=list)
    mends: list[Work] = field(default_factory=list)
    publishers: "list[Publisher]" = field(default_factory=list)
    intakes: "list[Intake]" = field(default_factory=list)
    broker: Broker | None = None
    transport: Transport | None = None
    provider: Provider | None = None
    notified: list[Callable[[str, str, float], None]] = field(default_factory=list)
    answered: list[Callable[[Answered], None]] = field(default_factory=list)
    tracing: Any = None
    stopping_since: float | None = None

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.secret)
        self.credentials = Credentials(self.tokens, self.clock)
        self.links = Links(self.secret, "files", self.clock)
        self.feeds: Feeds = MemoryFeeds(self.clock)

    @property
    def database(self) -> Database | None:
        """The common database, or the only one."""
        return self.databases.get(self.settings.database) or next(iter(self.databases.values()), None)

    def connections(self) -> int:
        """How many connections to databases are in use now."""
        return sum(database.connections() for database in self.databases.values())

    @property
    def needed(self) -> dict[str, Probe]:
        """Those of `probes` without which nothing can be answered: the databases."""
        return {name: probe for name, probe in self.probes.items() if name.endswith("database")}

    async def backlog(self) -> tuple[int, int]:
        """How many deliveries are still to be made in this process's databases, and how many were given up."""
        found = [await backlog(database) for database in self.databases.values()]
        return sum(waiting for waiting, _ in found), sum(dead for _, dead in found)

    @property
    def uploads(self) -> Uploads:
        """From the clients of this process to the storage."""
        return StreamUploads(self.get(Files), self.blobs)

    @property
    def breakers(self) -> dict[str, Breaker]:
        """Of every service that could be called, by the names of the Commerce document."""
        return {circuit: Breaker(circuit, self.circuits) for circuit in CIRCUITS.values()}

    def get(self, facade: type[F]) -> F:
        """The object behind a facade, wherever it runs."""
        found: F = self.facades[facade]
        return found

    def drain_seconds_left(self) -> float:
        """How long what is under way may still take, if the process stops now or has begun to."""
        waited = time.monotonic() - self.stopping_since if self.stopping_since is not None else 0.0
        return max(0.0, self.settings.drain_seconds - waited)

    async def deliver(self) -> int:
        """Deliver whatever is due in this process. The number of deliveries."""
        total = 0
        while handled := sum([await relay.drain() for relay in self.relays]):
            total += handled
        return total


@asynccontextmanager
async def running(
    settings: Settings, clock: Clock, *, name: str | None = None, deliver: bool = True
) -> AsyncIterator[Runtime]:
    """The modules of a process that serves `name`, open. `deliver`: also deliver events and sweep; commands that end
    at once leave that to servers."""
    shape = shape_of(name, settings)
    blobs = blobs_of(settings, clock)
    runtime = Runtime(
        settings, clock, shape, signing_secret(settings), MemoryLimiter(clock), MemoryCircuits(clock), blobs
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(blobs.close)
        shared = redis_of(settings)
        if shared is not None:
            stack.push_async_callback(shared.close)
            runtime.limiter = shared.limiter(clock)
            runtime.circuits = shared.circuits(clock)
            runtime.feeds = feeds = shared.feeds(clock)
            await feeds.start()
            stack.push_async_callback(feeds.stop)
            runtime.probes["redis"] = shared.ping
        if settings.otlp_endpoint is not None:
            runtime.tracing = tracer_provider(settings.otlp_endpoint)
            stack.callback(stop_tracing, runtime.tracing)
        signals = shared.signals if shared is not None else None
        await _call_others(runtime, signals, stack)
        if shared is None and Listening in runtime.facades:
            runtime.feeds = FarFeeds(runtime.get(Listening))
        _open_databases(runtime, signals, stack)
        Local(runtime, shared, stack).build()
        _connect(runtime, stack)
        if signals is not None:
            await signals.start()
            stack.push_async_callback(signals.stop)
        if deliver:
            await _start(runtime, stack)
        yield runtime


async def _call_others(runtime: Runtime, signals: Signals | None, stack: AsyncExitStack) -> None:
    elsewhere = runtime.shape.elsewhere
    if not elsewhere:
        return
    from bedplate.kernel.remote import RemoteCaller, remote  # noqa: PLC0415  # an HTTP client, needed only here

    for unit, url in elsewhere.items():
        breaker = runtime.breakers[CIRCUITS[unit]]
        caller = await stack.enter_async_context(RemoteCaller(url, runtime.credentials, breaker))
        runtime.facades |= {facade: remote(facade, caller) for facade in FACADES[unit]}
        # Without a broker all of them are one process, which is asked once.
        runtime.others[CIRCUITS[unit] if runtime.settings.broker_url else "modules"] = caller.ping
    if Principals in runtime.facades:
        # Remembering who calls is worth most here, where asking is a request; it needs Redis to hear of changes.
        cache = Cache(runtime.clock, signals=signals)
        runtime.facades[Principals] = CachedPrincipals(runtime.get(Principals), cache, runtime.clock)


def _open_databases(runtime: Runtime, signals: Signals | None, stack: AsyncExitStack) -> None:
    for url, name in database_urls(runtime.settings, runtime.shape).items():
        database = database_at(url)
        stack.push_async_callback(database.close)
        runtime.databases[url] = database
        runtime.caches[url] = cache = Cache(runtime.clock, database, signals)
        database.listeners.append(cache)
        runtime.probes[name] = database.ping


def _connect(runtime: Runtime, stack: AsyncExitStack) -> None:
    """Whoever says something to those who hear it: in each database a relay, between processes the broker."""
    settings, clock, shape = runtime.settings, runtime.clock, runtime.shape
    for database in runtime.databases.values():
        relay = Relay(database, runtime.listeners, clock)
        runtime.relays.append(relay)
        database.listeners.append(relay)
        runtime.sweeps.append(relay.forget_old)
        runtime.mends.append(lambda database=database: revive(database, clock, REVIVED))  # type: ignore[misc]
    if settings.broker_url is None or not runtime.databases:
        return
    from bedplate.kernel.intake import Intake  # noqa: PLC0415  # needed only where there is a broker
    from bedplate.kernel.publisher import Publisher  # noqa: PLC0415

    runtime.broker = broker = broker_at(settings.broker_url.get_secret_value())
    stack.push_async_callback(broker.close)
    runtime.probes["broker"] = broker.ping
    groups = {topic: shape.groups(topic) for topic in topics_of(Event.known.values())}
    for database in runtime.databases.values():
        database.routes = with_broker(database.routes)
        publisher = Publisher(database, broker, clock, groups)
        database.listeners.append(publisher)
        runtime.publishers.append(publisher)
    for unit in sorted(shape.here):
        database = runtime.databases[database_of(unit, settings)]
        relay = runtime.relays[list(runtime.databases.values()).index(database)]
        if wanted := shape.from_afar(unit):
            runtime.intakes.append(Intake(database, broker, GROUPS[unit], unit, wanted, clock, relay.look))


async def _start(runtime: Runtime, stack: AsyncExitStack) -> None:
    for missing in _missing(runtime):
        log.warning(missing)
    workers: list[Relay | Publisher | Intake | Documents] = [*runtime.relays, *runtime.publishers, *runtime.intakes]
    workers += runtime.documents.values()
    for worker in workers:
        await worker.start()
        stack.push_async_callback(worker.stop)
    for database in runtime.databases.values():
        tails = TailRoutes(database, runtime.clock)
        await tails.start()
        stack.push_async_callback(tails.stop)
    # Each by itself: one that waits for a server that does not answer delays no other.
    for works, seconds in ((runtime.sweeps, SWEEP_SECONDS), (runtime.mends, MEND_SECONDS)):
        for work in works:
            stack.push_async_callback(_cancel, asyncio.create_task(_repeat(work, seconds)))


def _missing(runtime: Runtime) -> Iterator[str]:
    """What production should have and can start without."""
    if not runtime.settings.is_production:
        return
    if isinstance(runtime.provider, NoProvider):
        yield "payments are refused until STRIPE_SECRET_KEY is set"
    if runtime.transport is not None and runtime.settings.smtp_url is None:
        yield "mail is kept in the database and not sent until SMTP_URL is set"
    if "chat" in runtime.shape.here and not runtime.models:
        yield "chat is answered by no model until OPENAI_API_KEY, OLLAMA_BASE_URL or BEDPLATE_CHAT_PROVIDERS is set"


def listens(runtime: Runtime) -> dict[str, set[type[Event]]]:
    """What the modules that run here really listen to."""
    found: dict[str, set[type[Event]]] = {unit: set() for unit in LISTENS}
    for listener in runtime.listeners:
        found[listener.consumer].add(listener.event)
    return found


async def _repeat(work: Work, seconds: float) -> None:
    while True:
        try:
            await work()
        except Exception as error:  # the next time tries again
            log.warning("a sweep failed", extra={"reason": type(error).__name__})
        await asyncio.sleep(seconds)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
