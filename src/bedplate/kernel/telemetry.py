"""What a process tells about itself: a JSON line and metrics for each request, traces where an exporter is set."""

import asyncio
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from bedplate.kernel.clock import iso
from bedplate.kernel.settings import OperatorError

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# Folders of the files in which workers count, by the process that started them.
FILES = "bedplate-metrics-"
FILES_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # the library's
# Health checks and Prometheus wait for the page: a server that hangs must not hold it up for longer.
REFRESH_SECONDS = 1.0
SECRET = re.compile(r"password|secret|token|authorization|cookie|api_?key|cvv|card", re.IGNORECASE)


def configure_logging(level: str) -> None:
    """JSON lines on standard error, secrets masked; the libraries' warnings too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("bedplate").setLevel(level)


class AccessLog:
    """One line for each finished request. No detour through records and formatters, and one write for all lines of a
    turn of the loop: requests wait for it."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, **fields: str | float) -> None:
        """Write it at the end of this turn."""
        if _ours.isEnabledFor(logging.INFO):
            if not self._lines:
                asyncio.get_running_loop().call_soon(self._flush)
            line = {"message": "request", "level": "info", "timestamp": iso(datetime.now(UTC)), **fields}
            self._lines.append(orjson.dumps(line) + b"\n")

    def _flush(self) -> None:
        lines = b"".join(self._lines)
        self._lines.clear()
        sys.stderr.buffer.write(lines)
        sys.stderr.buffer.flush()


class JsonLines(logging.Formatter):
    """One JSON object a line; what a call gives as `extra` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "message": record.getMessage(),
            "level": record.levelname.lower(),
            "timestamp": iso(datetime.fromtimestamp(record.created, UTC)),
            "logger": record.name,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[name] = "***" if SECRET.search(name) else value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


_ours = logging.getLogger("bedplate")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def stop_tracing(provider: Any) -> None:
    """Send what is left, for a second at the most: a collector that is away must not hold up the stop."""
    flushing = threading.Thread(target=provider.shutdown, daemon=True)
    flushing.start()
    flushing.join(1.0)


def tracer_provider(endpoint: str) -> Any:
    """Sends spans to an OpenTelemetry collector (OTLP over HTTP); how many is OTEL_TRACES_SAMPLER's matter.

    Raises:
        OperatorError: the `otel` extra is not installed.
    """
    # Half a second of imports, for those who trace.
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise OperatorError("OTEL_EXPORTER_OTLP_ENDPOINT needs the otel extra: pip install 'bedplate[otel]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "bedplate"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return provider


class Metrics:
    """One system's metrics. Names are the documented ones on its page; inside they carry the system's name, because
    the files that several worker processes share know no registries.

    `labels` are the label names that the system's document gives, out of: method, endpoint, status, status_code,
    route.
    """

    def __init__(self, system: str, labels: Sequence[str]) -> None:
        self._prefix = f"{system.replace('-', '_')}__"
        self.registry = CollectorRegistry()
        self._labels = tuple(labels)
        self._order = dict.fromkeys(labels)  # shared files sort them
        self._requests = Counter(
            f"{self._prefix}http_requests", "Total HTTP requests", self._labels, registry=self.registry
        )
        self._seconds = Histogram(
            f"{self._prefix}http_request_duration_seconds",
            "Seconds from request to answer",
            self._labels,
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
        )
        # Looking a labelled child up in the library costs more than counting: remember it.
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._shares: list[Share] = []
        self.refresh: list[Callable[[], Awaitable[None]]] = []
        """Called before each page, to set gauges. What they cannot find out keeps its last value."""
        self._child("GET", "/metrics", 200)  # shared files know no family without a value: the first page has this one

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter; its page adds "_total" to the name. One with labels is on the first page if a child of it
        is made at once."""
        self._order |= dict.fromkeys(labels)
        return Counter(self._prefix + name, documentation, labels, registry=self.registry)

    def histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
        """Declare a histogram. `buckets`: their upper bounds."""
        return Histogram(self._prefix + name, documentation, registry=self.registry, buckets=buckets)

    def gauge(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        mode: Literal["livesum", "mostrecent"] = "livesum",
    ) -> Gauge:
        """Declare a gauge. `mode` says what several worker processes show: the sum of theirs, or what was set last."""
        self._order |= dict.fromkeys(labels)
        return Gauge(self._prefix + name, documentation, labels, registry=self.registry, multiprocess_mode=mode)

    def share(self, name: str, documentation: str, of: str, **labels: str) -> None:
        """Declare a gauge that is worked out on each page: which part of the counter `of` has these labels. It is 1
        while nothing is counted."""
        self._shares.append(Share(name, documentation, self._prefix + of, labels))

    def observe(self, method: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request. `endpoint` is the route's template, never a raw path."""
        child = self._children.get((method, endpoint, status)) or self._child(method, endpoint, status)
        child[0].inc()
        child[1].observe(seconds)

    def _child(self, method: str, endpoint: str, status: int) -> tuple[Any, Any]:
        known = {
            "method": method,
            "endpoint": endpoint,
            "route": endpoint,
            "status": str(status),
            "status_code": str(status),
        }
        values = [known[label] for label in self._labels]
        child = (self._requests.labels(*values), self._seconds.labels(*values))
        self._children[method, endpoint, status] = child
        return child

    async def page(self) -> bytes:
        """The page that Prometheus reads (text format 0.0.4), with labels in the order in which they were declared."""
        for refresh in self.refresh:
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await refresh()
            except Exception as error:  # a server that is away must not hide every other figure
                _ours.warning("a metric could not be read", extra={"reason": type(error).__name__})
        source: Collector = self.registry
        if folder := os.environ.get(FILES_VARIABLE):
            forget_the_dead(Path(folder))
            source = MultiProcessCollector(CollectorRegistry())  # type: ignore[no-untyped-call]
        families = [family for family in source.collect() if family.name.startswith(self._prefix)]
        shares = [line for share in self._shares for line in share.lines(families)]
        return "".join([*self._lines(families), *shares]).encode()

    def _lines(self, families: Iterable[Metric]) -> Iterator[str]:
        for family in families:
            name = family.name.removeprefix(self._prefix) + ("_total" if family.type == "counter" else "")
            yield f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n"
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    labels = ",".join(f'{key}="{_escaped(sample.labels[key])}"' for key in self._ordered(sample.labels))
                    braces = f"{{{labels}}}" if labels else ""
                    yield f"{sample.name.removeprefix(self._prefix)}{braces} {_number(sample.value)}\n"

    def _ordered(self, labels: Mapping[str, str]) -> list[str]:
        return [*(key for key in self._order if key in labels), *(key for key in labels if key not in self._order)]


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a counter, from 0 to 1."""

    name: str
    documentation: str
    counter: str
    labels: Mapping[str, str]

    def lines(self, families: Iterable[Metric]) -> Iterator[str]:
        part = whole = 0.0
        for family in families:
            for sample in family.samples if family.name == self.counter else ():
                if sample.name.endswith("_total"):
                    whole += sample.value
                    part += sample.value if self.labels.items() <= sample.labels.items() else 0.0
        yield f"# HELP {self.name} {self.documentation}\n# TYPE {self.name} gauge\n"
        yield f"{self.name} {_number(part / whole if whole else 1.0)}\n"


@contextmanager
def shared_files() -> Iterator[None]:
    """Worker processes that are started inside count in files that each one's page adds up."""
    # Where a server was killed nobody has removed them.
    for left in Path(tempfile.gettempdir()).glob(f"{FILES}*-*"):
        pid = left.name.removeprefix(FILES).partition("-")[0]
        if pid.isdecimal() and _has_ended(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{FILES}{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        os.environ[FILES_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[FILES_VARIABLE]


def forget_the_dead(folder: Path) -> None:
    """Take the gauges of worker processes that have ended out of the sums."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}:
        if _has_ended(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # alive, and somebody else's; or no process's number
        return False
    return False


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(float(value))
