"""The run: rounds over all deployments, so that drift of the machine hits all alike, and the medians of the rounds."""

import asyncio
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bedplate import __version__
from bedplate.kernel.security import Passwords
from benchmarks import servers
from benchmarks.deployments import Absent, Deployment, prepared
from benchmarks.load import Load, Measured, Traffic, measure
from benchmarks.points import BARE, POINTS, Client
from benchmarks.servers import PeakMemory, Server

CONNECTIONS = 32
SETTLE_SECONDS = 0.5
STORM = "storm"
CHOICES = [*(point.name for point in POINTS), STORM]

Step = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """`seconds`: measured for each point and round, after a quarter of that to warm up."""

    seconds: float
    rounds: int
    users: int
    deployments: Sequence[str]
    points: Sequence[str]

    @property
    def steps(self) -> int:
        """How many measurements there will be if every server is there."""
        return self.rounds * len(self.deployments) * (len(self.points) + 2)


@dataclass(frozen=True)
class Sample(Measured):
    """`server_us`: processor time of the server for one answer; other work on the machine hardly changes it."""

    server_us: float


@dataclass
class Figures:
    """One deployment in one round. `bare`: the bare route before and after; megabytes of all its processes."""

    ready_seconds: float
    idle_mb: float
    loaded_mb: float = 0.0
    bare: list[Sample] = field(default_factory=list)
    points: dict[str, Sample] = field(default_factory=dict)
    quiet: Sample | None = None
    stormy: Sample | None = None
    added_mb: float = 0.0

    @property
    def bare_rate(self) -> float:
        return sum(each.rate for each in self.bare) / len(self.bare)


def run(plan: Plan, folder: Path, step: Step) -> dict[str, Any]:
    """Measure everything in the plan; `step` is told of each measurement."""
    skipped: dict[str, str] = {}
    rounds: dict[str, list[Figures]] = {}
    with ExitStack() as stack:
        ready = []
        for name in plan.deployments:
            try:
                ready.append(stack.enter_context(prepared(name, folder / name, plan.users)))
            except Absent as reason:
                skipped[name] = str(reason)
        for number in range(plan.rounds):
            for deployment in ready:
                about = f"{deployment.name} {number + 1}/{plan.rounds}"
                figures = _round(plan, deployment, lambda point, about=about: step(f"{about} {point}"))  # type: ignore[misc]
                rounds.setdefault(deployment.name, []).append(figures)
    results = {name: _medians(name, each) for name, each in rounds.items()}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "bedplate": __version__}
    argon2 = asyncio.run(_hashes_per_second(plan.seconds)) if "login" in plan.points else None
    settings = {"seconds": plan.seconds, "rounds": plan.rounds, "users": plan.users, "connections": CONNECTIONS}
    return {
        "machine": machine,
        "settings": settings,
        "argon2_per_second": argon2,
        "deployments": results,
        "skipped": skipped,
        "failed": any(result["errors"] for result in results.values()),
    }


def _round(plan: Plan, deployment: Deployment, step: Step) -> Figures:
    with servers.bare(deployment.folder, deployment.workers) as bare:
        with servers.bedplate(deployment.folder, deployment.environment, deployment.workers) as server:
            time.sleep(SETTLE_SECONDS)
            figures = Figures(server.ready_seconds, server.memory())
            step("bare")
            figures.bare.append(_measure(plan, bare, BARE))
            client = Client(server, deployment)
            # The storm comes before the sign-ins of the last point, which leave memory behind.
            for point in sorted(plan.points, key=lambda name: (name == "login", name == STORM)):
                step(point)
                if point == STORM:
                    _storm(plan, server, client, figures)
                else:
                    figures.points[point] = _measure(plan, server, client.traffic(point))
            figures.loaded_mb = server.memory()
        step("bare")
        figures.bare.append(_measure(plan, bare, BARE))
    return figures


def _measure(plan: Plan, server: Server, traffic: Traffic, burst: Traffic | None = None) -> Sample:
    before = server.used()
    measured = measure(Load(server.port, traffic, CONNECTIONS, plan.seconds / 4, plan.seconds, burst))
    return Sample(**asdict(measured), server_us=(server.used() - before) / max(measured.total, 1) * 1e6)


def _storm(plan: Plan, server: Server, client: Client, figures: Figures) -> None:
    reads, logins = client.traffic("read"), client.traffic("login")
    figures.quiet = _measure(plan, server, reads)
    with PeakMemory(server) as peak:
        figures.stormy = _measure(plan, server, reads, burst=logins)
    figures.added_mb = peak.added


def _medians(name: str, rounds: Sequence[Figures]) -> dict[str, Any]:
    points = {}
    for point in rounds[0].points:
        measured = [each.points[point] for each in rounds]
        ratios = [each.points[point].rate / each.bare_rate for each in rounds]
        points[point] = _summary(measured) | {"ratio": median(ratios)}
    everything = [measured for each in rounds for measured in _all(each)]
    result = {
        "workers": int(name[-1]),
        "ready_seconds": median(each.ready_seconds for each in rounds),
        "idle_mb": median(each.idle_mb for each in rounds),
        "loaded_mb": median(each.loaded_mb for each in rounds),
        "bare": _summary([measured for each in rounds for measured in each.bare]),
        "points": points,
        "errors": dict(sum((Counter(each.errors) for each in everything), Counter())),
    }
    storms = [(each.quiet, each.stormy) for each in rounds if each.quiet and each.stormy]
    if storms:
        result["storm"] = {
            "added_mb": median(each.added_mb for each in rounds),
            "quiet_p99_ms": median(quiet.p99_ms for quiet, _ in storms),
            "p99_ms": median(stormy.p99_ms for _, stormy in storms),
            "ratio": median(stormy.p99_ms / quiet.p99_ms for quiet, stormy in storms),
            "seconds": median(stormy.seconds for _, stormy in storms),
        }
    return result


def _all(figures: Figures) -> list[Sample]:
    found = [*figures.bare, *figures.points.values(), figures.quiet, figures.stormy]
    return [each for each in found if each is not None]


def _summary(measured: Sequence[Sample]) -> dict[str, Any]:
    return {
        "rate": median(each.rate for each in measured),
        "server_us": median(each.server_us for each in measured),
        "p50_ms": median(each.p50_ms for each in measured),
        "p99_ms": median(each.p99_ms for each in measured),
        "errors": sum(sum(each.errors.values()) for each in measured),
    }


async def _hashes_per_second(seconds: float) -> float:
    """What the cores can do of the work that a login cannot avoid, with nothing else running."""
    passwords = Passwords()
    stored = await passwords.hash("a password")
    began = time.perf_counter()

    async def verify() -> int:
        count = 0
        while time.perf_counter() - began < seconds:
            await passwords.verify(stored, "a password")
            count += 1
        return count

    counts = await asyncio.gather(*(verify() for _ in range(os.cpu_count() or 1)))
    passwords.close()
    return sum(counts) / (time.perf_counter() - began)
