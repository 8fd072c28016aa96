"""Flows a second: orders placed and paid by shoppers until they are confirmed, in one process and in four.

The shoppers send two requests for a flow. When it is confirmed is read afterwards from the order's row, so that nobody
has to ask again and again; the clock is the same.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
from sqlalchemy import select

from bedplate.compose.chosen import database_at
from bedplate.models import OrderRow
from benchmarks import deployments, servers
from benchmarks.deployments import PASSWORD, POSTGRES
from benchmarks.servers import Server
from benchmarks.shoppers import Shopping, shop

SHOPPERS = 24
USERS = 16
SETTLE_SECONDS = 20.0
NAMES = ("sqlite-1", "postgres-1", "split")
BROKER = os.environ.get("BEDPLATE_BENCH_BROKER_URL", "redis://127.0.0.1:6379/15")
SECRET = {"API_SECRET_KEY": "a-secret-of-the-benchmarks-alone"}


@dataclass(frozen=True)
class Shop:
    """Where the services answer, and where the orders lie."""

    users_url: str
    order_port: int
    payment_port: int
    order_prefix: str
    payment_prefix: str
    orders_database: str
    servers: list[Server]


def measure(name: str, folder: Path, seconds: float, step: Callable[[str], None]) -> dict[str, Any]:
    """Full load, then half of what that gave. Raises deployments.Absent if a server that it needs does not answer."""
    folder.mkdir()
    with _open(name, folder) as there:
        users = _users(there)
        step(f"{name}: warm up")
        _flows(there, users, min(2.0, seconds), 0.0)
        step(f"{name}: full load")
        full = _flows(there, users, seconds, 0.0)
        step(f"{name}: half load")
        half = _flows(there, users, seconds, full["per_second"] / 2)
    return {"full": full, "half": half}


def _flows(there: Shop, users: list[list[str]], seconds: float, per_second: float) -> dict[str, Any]:
    used = sum(server.used() for server in there.servers)
    shopped = shop(
        Shopping(
            there.order_port,
            there.payment_port,
            there.order_prefix,
            there.payment_prefix,
            users,
            SHOPPERS,
            seconds,
            per_second,
        )
    )
    began = min(shopped.paid.values(), default=0.0)
    confirmed = asyncio.run(_confirmed(there.orders_database, shopped.paid))
    used = sum(server.used() for server in there.servers) - used
    waited = sorted((confirmed[order] - paid) * 1000 for order, paid in shopped.paid.items() if order in confirmed)
    took = max(confirmed.values(), default=began + seconds) - began
    return {
        "per_second": len(waited) / max(took, 1e-9),
        "flows": len(shopped.paid),
        "unconfirmed": len(shopped.paid) - len(waited),
        "p50_ms": _share(waited, 0.5),
        "p99_ms": _share(waited, 0.99),
        "post_p50_ms": _share(sorted(shopped.post_ms), 0.5),
        "server_us": used / max(len(waited), 1) * 1e6,
        "shopper_us": shopped.cost_us,
        "errors": shopped.errors,
    }


async def _confirmed(url: str, paid: Mapping[str, float]) -> dict[str, float]:
    """When each of these orders was confirmed, as soon as all are or after twenty seconds."""
    database = database_at(url)
    since = select(OrderRow.id, OrderRow.updated_at).where(OrderRow.status == "confirmed")
    deadline = time.monotonic() + SETTLE_SECONDS
    try:
        while True:
            rows = await database.all(since)
            found = {row.id: row.updated_at.timestamp() for row in rows if row.id in paid}
            if len(found) == len(paid) or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.2)
    finally:
        await database.close()


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("inf")


def _users(there: Shop) -> list[list[str]]:
    found = []
    with httpx2.Client(base_url=there.users_url, timeout=10) as http:
        for number in range(USERS):
            email = f"shopper{number}-{time.time_ns()}@example.com"
            body = {"email": email, "username": f"shopper{number}-{time.time_ns() % 10**9}", "password": PASSWORD}
            made = http.post("/api/users", json=body)
            made.raise_for_status()
            login = http.post("/api/auth/login", json={"email": email, "password": PASSWORD})
            login.raise_for_status()
            found.append([made.json()["id"], login.json()["access_token"]])
    return found


@contextmanager
def _open(name: str, folder: Path) -> Iterator[Shop]:
    if name == "split":
        with _split(folder) as there:
            yield there
        return
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'bedplate.db'}" if name == "sqlite-1" else stack.enter_context(_postgres("one"))
        environment = {"BEDPLATE_RATE_LIMIT_ENABLED": "false", "DATABASE_URL": url, **SECRET}
        server = stack.enter_context(servers.bedplate(folder, environment, 1))
        yield Shop(
            f"http://127.0.0.1:{server.port}/commerce/users",
            server.port,
            server.port,
            "/commerce/orders",
            "/commerce/payments",
            url,
            [server],
        )


@contextmanager
def _split(folder: Path) -> Iterator[Shop]:
    ports = servers.free_ports(3)
    addresses = {
        f"BEDPLATE_ELSEWHERE__{unit}": f"http://127.0.0.1:{port + 100}"
        for unit, port in zip(("IDENTITY", "ORDERS", "PAYMENTS"), ports, strict=True)
    }
    hosted = {"user-service": "IDENTITY", "order-service": "ORDERS", "payment-service": "PAYMENTS"}
    with ExitStack() as stack:
        common = {
            "BEDPLATE_RATE_LIMIT_ENABLED": "false",
            "REDIS_URL": deployments.redis_url(),
            "BROKER_URL": BROKER,
            **SECRET,
        }
        started, urls = [], {}
        for service, port in zip((*hosted, "notification-worker"), (*ports, *servers.free_ports(1)), strict=True):
            urls[service] = stack.enter_context(_postgres(service.partition("-")[0]))
            elsewhere = {key: value for key, value in addresses.items() if not key.endswith(hosted.get(service, "-"))}
            environment = {**common, **elsewhere, "DATABASE_URL": urls[service]}
            started.append(stack.enter_context(servers.service(service, port, folder, environment)))
        yield Shop(f"http://127.0.0.1:{ports[0]}", ports[1], ports[2], "", "", urls["order-service"], started)


@contextmanager
def _postgres(name: str) -> Iterator[str]:
    database = f"bedplate_bench_{os.getpid()}_{name}"
    deployments.execute(f'CREATE DATABASE "{database}"')
    try:
        yield urlunsplit(urlsplit(POSTGRES)._replace(path=f"/{database}"))
    finally:
        deployments.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
