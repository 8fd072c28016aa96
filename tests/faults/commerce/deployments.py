"""Commerce in real processes: all in one on SQLite or PostgreSQL, or four with a database each and a broker between.

Each process keeps its port, so that it can be killed and started again. The cards are charged at a server that speaks
Stripe's API and has a ledger of its own; it outlives every process of the product.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx2

from tests.conftest import POSTGRES
from tests.kernel.servers import RedisServer, free_port
from tests.processes import environment

ROOT = Path(__file__).parent.parent.parent.parent
READY_SECONDS = 60.0
STATEMENT_SECONDS = 120.0  # to create or drop a database takes a checkpoint, for which a busy disk needs a while
ONE_PROCESS = "commerce"
HOSTED = {"user-service": "IDENTITY", "order-service": "ORDERS", "payment-service": "PAYMENTS"}
WORKER = "notification-worker"
Rewrite = Callable[[str], str]


def unchanged(url: str) -> str:
    return url


class Service:
    """One process at one port, started again and again on the same data. Ends with the block it is used in."""

    def __init__(self, name: str, folder: Path, port: int, line: list[str], ready: str, **settings: str) -> None:
        self.name = name
        self.port = port
        self.settings = settings
        self.starts: list[float] = []
        self._line = [sys.executable, *line, "--port", str(port), "--data", str(folder / name)]
        self._folder = folder
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What all processes of this service have logged."""
        return self._log.read_text(errors="replace")

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.name}.log"

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    def start(self, **once: str) -> None:
        """`once`: settings of this start alone."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._line,
                cwd=self._folder,
                env=environment(**{**self.settings, **once}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self) -> float:
        """Seconds until it answers. AssertionError if it ended, or never does."""
        began = time.monotonic()
        async with httpx2.AsyncClient(timeout=5) as client:
            while time.monotonic() - began < READY_SECONDS:
                with contextlib.suppress(httpx2.TransportError):
                    if (await client.get(f"{self.url}{self._ready}")).status_code == 200:
                        self.starts.append(time.monotonic() - began)
                        return self.starts[-1]
                assert self.exit_code is None, f"{self.name} ended: {self.log[-3000:]}"
                await asyncio.sleep(0.02)
        raise AssertionError(f"{self.name} is not ready: {self.log[-3000:]}")

    async def restart(self, **once: str) -> None:
        self.kill()
        self.start(**once)
        await self.ready()

    def kill(self) -> None:
        """SIGKILL, and everything that it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Deployment:
    """`databases`: the URLs of identity, orders, payments and mail, the same one four times if there is one."""

    name: str
    services: list[Service]
    users_url: str
    orders_url: str
    payments_url: str
    databases: dict[str, str]
    ledger: Path
    stripe_url: str
    broker: RedisServer | None = None
    urls_at: dict[str, str] = field(default_factory=dict)

    def service(self, name: str) -> Service:
        return next(each for each in self.services if each.name == name)

    async def start(self) -> None:
        for each in self.services:
            each.start()
        await self.ready()

    async def ready(self) -> None:
        await asyncio.gather(*(each.ready() for each in self.services))

    def kill(self) -> None:
        for each in self.services:
            each.kill()


@contextmanager
def stripe(folder: Path, seed: int, drop: float = 0.0) -> Iterator[str]:
    """The fake Stripe in a process of its own; its address."""
    line = ["-m", "tests.fakes.stripe_server", "--ledger", str(folder / "stripe.db")]
    process = subprocess.Popen(
        [sys.executable, *line, "--seed", str(seed), "--drop", str(drop)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@asynccontextmanager
async def postgres(name: str) -> AsyncIterator[str]:
    """A database of its own, dropped in the end."""
    database = f"bedplate_faults_{os.getpid()}_{free_port()}_{name}"
    await execute(f'CREATE DATABASE "{database}"')
    try:
        yield urlunsplit(urlsplit(POSTGRES)._replace(path=f"/{database}"))
    finally:
        await execute(f'DROP DATABASE "{database}" WITH (FORCE)')


async def execute(statement: str) -> None:
    """As the administrator of PostgreSQL."""
    connection = await asyncpg.connect(POSTGRES, timeout=5)
    try:
        await connection.execute(statement, timeout=STATEMENT_SECONDS)
    finally:
        await connection.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and nobody a hundred above them."""
    found: list[int] = []
    while len(found) < count:
        port = free_port()
        if port < 65_000 and not any(abs(port - other) in (0, 100) for other in found):
            found.append(port)
    return found


COMMON = {
    "BEDPLATE_RATE_LIMIT_ENABLED": "false",
    "BEDPLATE_UNCONFIRMED_MAILS": "100000",
    "STRIPE_SECRET_KEY": "sk_test_of_the_fault_suite",
}


@asynccontextmanager
async def one_process(
    folder: Path,
    stripe_url: str,
    *,
    on_postgres: bool = False,
    database_at: Rewrite = unchanged,
    stripe_at: Rewrite = unchanged,
    **settings: str,
) -> AsyncIterator[Deployment]:
    """`bedplate up`. `database_at` and `stripe_at`: how the product is told to reach them, by way of a proxy."""
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{folder / 'commerce.db'}"
        if on_postgres:
            url = await stack.enter_async_context(postgres("one"))
        given = {**COMMON, "DATABASE_URL": database_at(url), "STRIPE_API_BASE": stripe_at(stripe_url), **settings}
        service = Service(
            ONE_PROCESS, folder, free_port(), ["-m", "bedplate", "up"], "/commerce/orders/health", **given
        )
        stack.callback(service.kill)
        at = f"{service.url}/commerce"
        databases = dict.fromkeys(("identity", "orders", "payments", "mail"), url)
        name = "one process on PostgreSQL" if on_postgres else "one process on SQLite"
        yield Deployment(
            name,
            [service],
            f"{at}/users",
            f"{at}/orders",
            f"{at}/payments",
            databases,
            folder / "stripe.db",
            stripe_url,
        )


@asynccontextmanager
async def split(
    folder: Path,
    stripe_url: str,
    *,
    database_at: Rewrite = unchanged,
    broker_at: Rewrite = unchanged,
    stripe_at: Rewrite = unchanged,
    **settings: str,
) -> AsyncIterator[Deployment]:
    """Four processes, a PostgreSQL database each, Redis Streams between them."""
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(RedisServer(folder / "redis"))
        ports = dict(zip((*HOSTED, WORKER), free_ports(4), strict=True))
        addresses = {
            f"BEDPLATE_ELSEWHERE__{unit}": f"http://127.0.0.1:{ports[name] + 100}" for name, unit in HOSTED.items()
        }
        common = {**COMMON, "BROKER_URL": broker_at(broker.url), "STRIPE_API_BASE": stripe_at(stripe_url), **settings}
        services, databases = [], {}
        for name, port in ports.items():
            elsewhere = {key: url for key, url in addresses.items() if not key.endswith(HOSTED.get(name, "-"))}
            url = await stack.enter_async_context(postgres(name.replace("-", "_")))
            databases[HOSTED.get(name, "MAIL").lower()] = url
            given = {**common, **elsewhere, "DATABASE_URL": database_at(url)}
            services.append(Service(name, folder, port, ["-m", "bedplate", "serve", name], "/health", **given))
            stack.callback(services[-1].kill)
        users, orders, payments, _ = (each.url for each in services)
        yield Deployment(
            "four processes", services, users, orders, payments, databases, folder / "stripe.db", stripe_url, broker
        )
