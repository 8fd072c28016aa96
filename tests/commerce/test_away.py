"""While something that a service needs is away: 503 in the document's words, health, breakers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bedplate import compose, migrations
from bedplate.kernel.ids import new_id
from bedplate.kernel.settings import Settings
from tests.commerce import walk
from tests.factories import TurnableClock
from tests.world import SECRET, World

NOWHERE = "http://127.0.0.1:1"
WORDS = {"code": "SERVICE_UNAVAILABLE", "message": "Service unavailable", "error": "Service unavailable"}


@asynccontextmanager
async def alone(name: str, settings: Settings) -> AsyncIterator[World]:
    """One service, as its own process has it."""
    clock = TurnableClock()
    async with compose.running(settings, clock, name=name, deliver=False) as runtime:
        world = World(settings, clock, runtime, runtime)
        yield world
        await world.aclose()


def split(folder: Path, broker: str, *elsewhere: str) -> Settings:
    """A database and a broker of its own; the other services are nowhere."""
    migrations.upgrade(f"sqlite:///{folder / 'bedplate.db'}")
    places = dict.fromkeys(elsewhere, NOWHERE)
    return Settings(_env_file=None, secret=SECRET, data=folder, broker_url=broker, elsewhere=places)


async def test_while_users_cannot_be_asked_no_order_is_placed(tmp_path: Path, empty_redis: str) -> None:
    settings = split(tmp_path, empty_redis, "identity", "payments")
    async with alone("order-service", settings) as world:
        body = {"userId": new_id(), "items": walk.ITEMS}
        for _ in range(6):
            answer = await world.client("order-service").post("/api/orders", json=body)
            assert_unavailable(answer)
        figures = await walk.metrics(world, "order-service")
        assert figures["orders_created_total"] == 0.0


async def test_while_orders_cannot_be_asked_no_payment_is_made_and_the_breaker_tells(
    tmp_path: Path, empty_redis: str
) -> None:
    settings = split(tmp_path, empty_redis, "identity", "orders")
    async with alone("payment-service", settings) as world:
        client = world.client("payment-service")
        body = walk.payment_of({"id": f"order-{new_id()}", "userId": new_id(), "totalAmount": 75.48})
        for failures in range(1, 6):
            assert_unavailable(await client.post("/api/payments", json=body))
            status = walk.answered(await client.get("/api/circuit-breaker/status"))
            assert status["order_service"]["failure_count"] == failures
            assert status["order_service"]["state"] == ("open" if failures == 5 else "closed")
            assert status["order_service"]["last_failure"].endswith("Z")
            assert status["user_service"] == {"state": "closed", "failure_count": 0, "last_failure": None}
        figures = await walk.metrics(world, "payment-service")
        assert figures['circuit_breaker_state{service="order_service"}'] == 2.0
        assert figures['circuit_breaker_state{service="user_service"}'] == 0.0
        at_once = await client.post("/api/payments", json=body)
        assert_unavailable(at_once)
        assert 1 <= int(at_once.headers["retry-after"]) <= 60
        assert at_once.json()["details"] == {"retry_after": int(at_once.headers["retry-after"])}
        world.clock.advance(61)
        status = walk.answered(await client.get("/api/circuit-breaker/status"))
        assert status["order_service"]["state"] == "half_open"
        figures = await walk.metrics(world, "payment-service")
        assert figures['circuit_breaker_state{service="order_service"}'] == 1.0


async def test_health_names_what_is_away(tmp_path: Path, empty_redis: str) -> None:
    settings = split(tmp_path, empty_redis, "identity", "orders")
    async with alone("payment-service", settings) as world:
        body = walk.answered(await world.client("payment-service").get("/health"), 503)
        assert body["status"] == "unhealthy"
        assert body["service"] == "payment-service"
        assert body["timestamp"].endswith("Z")
        dependencies = body["dependencies"]
        assert dependencies["database"] == "healthy"
        assert dependencies["user_service"] == dependencies["order_service"] == "unhealthy"
        ready = walk.answered(await world.client("payment-service").get("/ready"))
        assert "user_service" not in ready["checks"], "services that call each other must not wait for each other"


@pytest.mark.parametrize("service", ["user-service", "order-service", "payment-service", "notification-worker"])
async def test_without_its_database_a_service_is_neither_well_nor_ready(tmp_path: Path, service: str) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    settings = Settings(_env_file=None, secret=SECRET, data=tmp_path, database_url=nowhere)
    async with alone(service, settings) as world:
        client = world.client(service)
        health = walk.answered(await client.get("/health"), 503)
        assert (health["status"], health["dependencies"]) == ("unhealthy", {"database": "unhealthy"})
        ready = walk.answered(await client.get("/ready"), 503)
        assert ready == {"status": "not ready", "checks": {"database": False}}
        assert (await client.get("/metrics")).status_code == 200
        for request in requests(service):
            assert_unavailable(await client.request(**request))


def requests(service: str) -> list[dict[str, Any]]:
    user = {"email": "a@example.com", "username": "alice", "password": "password123"}
    order = {"userId": new_id(), "items": walk.ITEMS}
    payment = walk.payment_of({"id": f"order-{new_id()}", "userId": new_id(), "totalAmount": 75.48})
    return {
        "user-service": [{"method": "POST", "url": "/api/users", "json": user}],
        "order-service": [
            {"method": "POST", "url": "/api/orders", "json": order},
            {"method": "POST", "url": "/api/orders", "json": order, "headers": {"Idempotency-Key": "key-1"}},
            {"method": "GET", "url": f"/api/orders/order-{new_id()}"},
        ],
        "payment-service": [
            {"method": "POST", "url": "/api/payments", "json": payment},
            {"method": "GET", "url": f"/api/payments/user/{new_id()}"},
        ],
        "notification-worker": [],
    }[service]


def assert_unavailable(answer: httpx2.Response) -> None:
    body = walk.answered(answer, 503)
    del body["details"]
    assert body == WORDS
    assert int(answer.headers["retry-after"]) > 0
