"""Dev-PyNode monitoring: what is counted, under the document's names."""

from collections.abc import Callable

from bedplate.kernel.telemetry import Metrics
from bedplate.modules.chat.public import Answered

LABELS = ("method", "route", "status_code")
ANSWER_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class PynodeMetrics:
    """`sockets` and `connections`: how many are open now."""

    def __init__(self, name: str, sockets: Callable[[], int], connections: Callable[[], int]) -> None:
        self.metrics = Metrics(name, LABELS)
        self._sockets = sockets
        self._connections = connections
        self._active = self.metrics.gauge("active_connections", "Open WebSocket connections")
        self._database = self.metrics.gauge("database_connections_active", "Active database connections")
        self._requests = self.metrics.counter(
            "ai_requests", "Total requests to models", ["model", "provider", "status"]
        )
        self._seconds = self.metrics.histogram(
            "ai_request_duration_seconds", "Seconds from question to the end of the answer", ANSWER_SECONDS
        )
        self._tokens = self.metrics.counter(
            "ai_tokens_used", "Total tokens, as providers count them", ["model", "provider", "token_type"]
        )
        # A family with labels and no child is not on the page; everybody can ask the model that is the default.
        self._requests.labels("gpt-4", "offline", "completed")
        for token_type in ("prompt", "completion"):
            self._tokens.labels("gpt-4", "offline", token_type)
        self.metrics.refresh.append(self._count_connections)

    def answered(self, answer: Answered) -> None:
        """An answer is finished, well or badly."""
        self._requests.labels(answer.model, answer.provider, answer.status).inc()
        self._seconds.observe(answer.seconds)
        self._tokens.labels(answer.model, answer.provider, "prompt").inc(answer.prompt_tokens)
        self._tokens.labels(answer.model, answer.provider, "completion").inc(answer.completion_tokens)

    async def _count_connections(self) -> None:
        self._active.set(self._sockets())
        self._database.set(self._connections())
