"""Commerce API documentation: Service Overview. Four applications of one document."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request
from pydantic.alias_generators import to_camel

from bedplate import __version__
from bedplate.kernel.clock import Clock
from bedplate.kernel.events import Event
from bedplate.kernel.health import Probe
from bedplate.kernel.http import Application, Place, Rule, System, application, metrics_page
from bedplate.kernel.limits import Limit
from bedplate.kernel.settings import Settings
from bedplate.modules.identity.events import UserCreated, UserVerified
from bedplate.modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed
from bedplate.systems.commerce import asyncapi, auth, orders, payments, users
from bedplate.systems.commerce.asyncapi import ORDER_EVENTS, PAYMENT_EVENTS, USER_EVENTS, event_routes
from bedplate.systems.commerce.deps import Access, OrderFacades, PaymentFacades, UserFacades
from bedplate.systems.commerce.errors import CommerceEnvelope
from bedplate.systems.commerce.health import health_routes
from bedplate.systems.commerce.metrics import OrderMetrics, PaymentMetrics, ServiceMetrics, UserMetrics, WorkerMetrics

USER_SERVICE = Place("user-service", "commerce/users", 3002, "/docs")
ORDER_SERVICE = Place("order-service", "commerce/orders", 3001, "/docs")
PAYMENT_SERVICE = Place("payment-service", "commerce/payments", 3003, "/docs")
# Its port is METRICS_PORT, which this is the default of.
NOTIFICATION_WORKER = Place("notification-worker", "commerce/notifications", 8000, "")

OPEN = (
    "Who sends credentials reaches what is his own, an administrator or a service key everything. Requests without any "
    "are answered as well, unless REQUIRE_AUTH is on; then only administrators and service keys change a status or "
    "give money back."
)
TOLD: Sequence[type[Event]] = (
    UserCreated,
    UserVerified,
    OrderCreated,
    OrderConfirmed,
    OrderCancelled,
    PaymentCompleted,
    PaymentFailed,
)


@dataclass(frozen=True, slots=True)
class Around:
    """What a service is surrounded by. `needed`: those of the probes without which nothing can be answered.
    `connections`: how many of its database are in use now. `backlog`: how many deliveries are still to be made, and how
    many were given up. `tracing`: an OpenTelemetry tracer provider, or None."""

    probes: Mapping[str, Probe]
    needed: Mapping[str, Probe]
    connections: Callable[[], int]
    backlog: Callable[[], Awaitable[tuple[int, int]]]
    clock: Clock
    tracing: object


def create_user_service(facades: UserFacades, access: Access, around: Around, settings: Settings) -> System:
    """The User Service, ready to be served. Its accounts are those of all systems: a password that may be tried without
    limit here would be limited nowhere."""
    counts = UserMetrics(USER_SERVICE.name, USER_EVENTS, around.connections)
    envelope = CommerceEnvelope()
    app = _application(USER_SERVICE, "Accounts, and how they sign in to all services.", envelope, counts, around)
    app.state.facades, app.state.access = facades, access
    app.add(users.router, auth.router, event_routes(USER_SERVICE.name, USER_EVENTS))
    system = _system(USER_SERVICE, app, envelope, counts)
    limits = _limits(
        {
            ("POST", "/api/auth/login"): Rule("login", Limit.parse(settings.commerce_login_limit)),
            ("POST", "/api/users"): Rule("register", Limit.parse(settings.commerce_register_limit)),
            ("POST", "/api/auth/resend-verification"): Rule("mail", Limit.parse(settings.commerce_mail_limit)),
            ("POST", "/api/auth/forgot-password"): Rule("mail", Limit.parse(settings.commerce_mail_limit)),
        }
    )
    return replace(system, observe_statement=counts.observe_statement, rules=limits)


def create_order_service(facades: OrderFacades, access: Access, around: Around) -> System:
    """The Order Service, ready to be served."""
    counts = OrderMetrics(ORDER_SERVICE.name, ORDER_EVENTS, around.connections)
    envelope = CommerceEnvelope(to_camel)
    app = _application(ORDER_SERVICE, f"Orders and how far they have come. {OPEN}", envelope, counts, around)
    app.state.facades, app.state.access = facades, access
    app.add(orders.router, event_routes(ORDER_SERVICE.name, ORDER_EVENTS))
    system = _system(ORDER_SERVICE, app, envelope, counts)
    return replace(system, observe_statement=counts.observe_statement)


def create_payment_service(facades: PaymentFacades, access: Access, around: Around, settings: Settings) -> System:
    """The Payment Service, ready to be served. Payments are limited for those who try out cards that are not theirs."""
    breakers = {name: facades.breakers[name] for name in payments.BREAKERS}
    counts = PaymentMetrics(PAYMENT_SERVICE.name, PAYMENT_EVENTS, around.connections, breakers)
    envelope = CommerceEnvelope(to_camel)
    app = _application(PAYMENT_SERVICE, f"Payments of orders, and refunds. {OPEN}", envelope, counts, around)
    app.state.facades, app.state.access = facades, access
    app.add(payments.router, event_routes(PAYMENT_SERVICE.name, PAYMENT_EVENTS))
    limits = _limits({("POST", "/api/payments"): Rule("payment", Limit.parse(settings.commerce_payment_limit))})
    return replace(_system(PAYMENT_SERVICE, app, envelope, counts), rules=limits)


def create_notification_worker(around: Around) -> System:
    """The notification worker's health and metrics; what it does is the module mail."""
    counts = WorkerMetrics(NOTIFICATION_WORKER.name, TOLD, around.connections)
    envelope = CommerceEnvelope()
    app = _application(NOTIFICATION_WORKER, "Tells users what has happened.", envelope, counts, around)
    system = _system(NOTIFICATION_WORKER, app, envelope, counts)
    return replace(system, delivered=counts.delivered, notified=counts.notified)


def _limits(rules: Mapping[tuple[str, str], Rule]) -> Callable[[str, str], Sequence[Rule]]:
    """By method and path."""
    lists = {operation: (rule,) for operation, rule in rules.items()}
    return lambda method, path: lists.get((method, path), ())


def _application(
    place: Place, description: str, envelope: CommerceEnvelope, counts: ServiceMetrics, around: Around
) -> Application:
    """What the services have in common."""
    app = application(
        envelope,
        tracing=around.tracing,
        docs_url=place.docs,
        redoc_url="/redoc",
        title=f"Commerce {place.name.replace('-', ' ').title()}",
        version=__version__,
        description=description,
    )
    if place.docs:
        app.add(_root(place))
    app.add(health_routes(place.name, around.probes, around.needed, around.clock))
    counts.watch(around.backlog)
    app.get("/metrics", include_in_schema=False)(metrics_page(counts.metrics))
    return app


def _root(place: Place) -> APIRouter:
    """Says to whoever asks for the service itself where to read on."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> dict[str, str]:
        base = request.scope.get("root_path", "")
        pages = {"documentation": place.docs, "events": asyncapi.PATH, "health": "/health"}
        return {"service": place.name, "version": __version__, **{name: base + path for name, path in pages.items()}}

    return router


def _system(place: Place, app: Application, envelope: CommerceEnvelope, counts: ServiceMetrics) -> System:
    links = {"events": asyncapi.PATH} if place.docs else {}
    return System(
        place.name, app.title, app, envelope, counts.metrics, place.docs, committed=counts.committed, links=links
    )
