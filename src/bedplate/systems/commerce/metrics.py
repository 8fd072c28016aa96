"""Commerce API documentation: Monitoring Endpoints. What each service counts, and from what.

Figures of the domain are read off the events that a commit has said: nothing that was rolled back is counted, and no
module knows of metrics. Every documented name is on the first page.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bedplate.kernel.breaker import Breaker
from bedplate.kernel.events import Event
from bedplate.kernel.telemetry import Metrics
from bedplate.modules.identity.events import UserCreated, UserVerified
from bedplate.modules.orders.events import OrderCreated
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed

LABELS = ("method", "endpoint", "status_code")
STATEMENT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PROCESSING_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ORDER_VALUES = (10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0)
CHANNELS = ("email", "push")
BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}


class ServiceMetrics:
    """What every service counts. `says`: the events that are its own. `connections`: how many are in use now."""

    def __init__(self, service: str, says: Sequence[type[Event]], connections: Callable[[], int]) -> None:
        self.metrics = Metrics(service, LABELS)
        self._connections = connections
        self._active = self.metrics.gauge("database_connections_active", "Active database connections")
        published = self.metrics.counter("events_published", "Total events published", ["event_type"])
        self._published = {kind: published.labels(kind.event_type()) for kind in says}
        self._counts: dict[type[Event], Callable[[Any], None]] = {}
        self.metrics.refresh.append(self._count_connections)

    def committed(self, events: Sequence[Event]) -> None:
        """Count what was said in a commit; what others say is for them to count."""
        for event in events:
            kind = type(event)
            published = self._published.get(kind)
            if published is not None:
                published.inc()
            count = self._counts.get(kind)
            if count is not None:
                count(event)

    def watch(self, backlog: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        """Show on each page what waits in the outbox and what died there. Additions: something to alert on."""
        waiting = self.metrics.gauge("outbox_waiting", "Deliveries of events still to be made", mode="mostrecent")
        dead = self.metrics.gauge("outbox_dead_letters", "Events that could not be delivered", mode="mostrecent")

        async def count() -> None:
            found = await backlog()
            waiting.set(found[0])
            dead.set(found[1])

        self.metrics.refresh.append(count)

    async def _count_connections(self) -> None:
        self._active.set(self._connections())


class UserMetrics(ServiceMetrics):
    def __init__(self, service: str, says: Sequence[type[Event]], connections: Callable[[], int]) -> None:
        super().__init__(service, says, connections)
        registrations = self.metrics.counter("user_registrations", "Total user registrations")
        verifications = self.metrics.counter("user_verifications", "Total user verifications")
        self._counts[UserCreated] = lambda event: registrations.inc()
        self._counts[UserVerified] = lambda event: verifications.inc()
        queries = self.metrics.histogram(
            "database_queries_duration_seconds", "Database query duration", STATEMENT_SECONDS
        )
        self.observe_statement: Callable[[float], None] = queries.observe


class OrderMetrics(ServiceMetrics):
    """`mongo_operations_duration_seconds` has the document's name whatever the orders are kept in."""

    def __init__(self, service: str, says: Sequence[type[Event]], connections: Callable[[], int]) -> None:
        super().__init__(service, says, connections)
        created = self.metrics.counter("orders_created", "Total orders created")
        values = self.metrics.histogram("order_value_histogram", "Order value distribution", ORDER_VALUES)

        def count(event: OrderCreated) -> None:
            created.inc()
            values.observe(event.total_amount)

        self._counts[OrderCreated] = count
        operations = self.metrics.histogram(
            "mongo_operations_duration_seconds", "Duration of operations on the order store", STATEMENT_SECONDS
        )
        self.observe_statement: Callable[[float], None] = operations.observe


class PaymentMetrics(ServiceMetrics):
    def __init__(
        self,
        service: str,
        says: Sequence[type[Event]],
        connections: Callable[[], int],
        breakers: Mapping[str, Breaker],
    ) -> None:
        super().__init__(service, says, connections)
        self._breakers = breakers
        processed = self.metrics.counter("payments_processed", "Total payments processed", ["status"])
        completed, failed = processed.labels("completed"), processed.labels("failed")
        self._counts[PaymentCompleted] = lambda event: completed.inc()
        self._counts[PaymentFailed] = lambda event: failed.inc()
        self.metrics.share(
            "payment_success_rate", "Payment success rate, 1 before the first", "payments_processed", status="completed"
        )
        self._states = self.metrics.gauge(
            "circuit_breaker_state", "Circuit breaker states: 0 closed, 1 half-open, 2 open", ["service"], "mostrecent"
        )
        for name in breakers:
            self._states.labels(name).set(0)
        self.metrics.refresh.append(self._read_breakers)

    async def _read_breakers(self) -> None:
        for name, breaker in self._breakers.items():
            self._states.labels(name).set(BREAKER_STATES[(await breaker.snapshot()).state])


class WorkerMetrics(ServiceMetrics):
    """`hears`: the events that it tells people of."""

    def __init__(self, service: str, hears: Sequence[type[Event]], connections: Callable[[], int]) -> None:
        super().__init__(service, (), connections)
        self._sent = self.metrics.counter("notifications_sent", "Total notifications sent", ["type", "channel"])
        self._processed = self.metrics.counter("events_processed", "Total events processed", ["event_type"])
        self._seconds = self.metrics.histogram(
            "notification_processing_seconds", "Notification processing duration", PROCESSING_SECONDS
        )
        for kind in hears:
            self._processed.labels(kind.event_type())
            for channel in CHANNELS:
                self._sent.labels(kind.event_type(), channel)

    def delivered(self, event: Event) -> None:
        """An event has been handled."""
        self._processed.labels(event.event_type()).inc()

    def notified(self, event_type: str, channel: str, seconds: float) -> None:
        """A message has gone out, so many seconds after its event was taken up."""
        self._sent.labels(event_type, channel).inc()
        self._seconds.observe(seconds)
