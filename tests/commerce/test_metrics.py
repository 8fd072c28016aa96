"""What the services count: every documented name from the first page, figures that follow what was committed."""

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from bedplate.modules.orders.public import EmptyOrder, Orders
from tests import factories
from tests.commerce import walk
from tests.factories import PASSWORD
from tests.processes import Server
from tests.world import World

COMMON = (
    'http_requests_total{method="',
    'http_request_duration_seconds_count{method="',
    "database_connections_active ",
)
NAMES = {
    "user-service": (
        *COMMON,
        'events_published_total{event_type="user_created"} 0.0',
        'events_published_total{event_type="user_verified"} 0.0',
        "user_registrations_total 0.0",
        "user_verifications_total 0.0",
        "database_queries_duration_seconds_count ",
    ),
    "order-service": (
        *COMMON,
        'events_published_total{event_type="order_created"} 0.0',
        'events_published_total{event_type="order_confirmed"} 0.0',
        "orders_created_total 0.0",
        "order_value_histogram_count 0.0",
        "mongo_operations_duration_seconds_count ",
    ),
    "payment-service": (
        *COMMON,
        'events_published_total{event_type="payment_completed"} 0.0',
        'events_published_total{event_type="payment_failed"} 0.0',
        'payments_processed_total{status="completed"} 0.0',
        'payments_processed_total{status="failed"} 0.0',
        "payment_success_rate 1.0",
        'circuit_breaker_state{service="user_service"} 0.0',
        'circuit_breaker_state{service="order_service"} 0.0',
    ),
    "notification-worker": (
        *COMMON,
        'notifications_sent_total{type="order_confirmed",channel="email"} 0.0',
        'notifications_sent_total{type="order_confirmed",channel="push"} 0.0',
        "notification_processing_seconds_count 0.0",
        'events_processed_total{event_type="payment_completed"} 0.0',
    ),
}
in_one_process = pytest.mark.parametrize("world", ["sqlite"], indirect=True)


@in_one_process
@pytest.mark.parametrize("service", NAMES)
async def test_every_documented_name_is_on_the_first_page(world: World, service: str) -> None:
    page = (await world.client(service).get("/metrics")).text
    assert [name for name in NAMES[service] if f"\n{name}" not in page] == []


@pytest.mark.parametrize("service", NAMES)
def test_every_documented_name_is_on_the_first_page_of_several_workers(tmp_path: Path, service: str) -> None:
    with Server(tmp_path, "serve", service, "--workers", "2", BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
        page = httpx2.get(f"{server.url}/metrics").text
        assert [name for name in NAMES[service] if f"\n{name}" not in page] == []
        assert page.count("# TYPE http_requests_total counter\n") == 1


def test_workers_add_up_and_one_that_was_killed_has_no_connections(tmp_path: Path) -> None:
    def figures(server: Server) -> dict[str, float]:
        lines = [line.rpartition(" ") for line in httpx2.get(f"{server.url}/metrics").text.splitlines()]
        return {name: float(value) for name, _, value in lines if not name.startswith("#")}

    with Server(tmp_path, "serve", "user-service", "--workers", "2", BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
        for _ in range(12):
            body = {"email": factories.email(), "username": factories.username(), "password": PASSWORD}
            assert httpx2.post(f"{server.url}/api/users", json=body).status_code == 201
        assert figures(server)["user_registrations_total"] == 12.0
        before = figures(server)["database_connections_active"]
        workers = [int(child) for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        for worker in workers[-1:]:
            os.kill(worker, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{workers[-1]}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        deadline = time.monotonic() + 20
        while True:  # one connection may have waited for the worker that is gone
            try:
                after = figures(server)
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
        assert after["user_registrations_total"] == 12.0, "what it had counted has happened"
        assert after["database_connections_active"] <= before


@in_one_process
async def test_figures_follow_the_walk(world: World) -> None:
    for service in ("user-service", "order-service", "payment-service", "notification-worker"):
        world.served(service)
    user = await walk.create_user(world)
    paid, unpaid = await walk.create_order(world, user["id"]), await walk.create_order(world, user["id"])
    await walk.pay(world, paid)
    await walk.pay(world, unpaid, walk.WITHOUT_FUNDS)
    await world.deliver()
    users, orders = await walk.metrics(world, "user-service"), await walk.metrics(world, "order-service")
    payments = await walk.metrics(world, "payment-service")
    assert users["user_registrations_total"] == 1.0
    assert users['events_published_total{event_type="user_created"}'] == 1.0
    assert users["database_queries_duration_seconds_count"] > 0
    assert orders["orders_created_total"] == orders["order_value_histogram_count"] == 2.0
    assert orders["order_value_histogram_sum"] == pytest.approx(150.96)
    assert orders['events_published_total{event_type="order_confirmed"}'] == 1.0
    assert orders['events_published_total{event_type="order_cancelled"}'] == 1.0
    assert orders["mongo_operations_duration_seconds_count"] > 0
    assert payments['payments_processed_total{status="completed"}'] == 1.0
    assert payments['payments_processed_total{status="failed"}'] == 1.0
    assert payments["payment_success_rate"] == 0.5
    assert not any("user_created" in name for name in (*orders, *payments)), "each service counts what is its own"


@in_one_process
async def test_the_worker_counts_what_it_has_told_people(world: World) -> None:
    world.served("notification-worker")
    user = await walk.create_user(world)
    await walk.pay(world, await walk.create_order(world, user["id"]))
    await world.deliver()
    worker = await walk.metrics(world, "notification-worker")
    for kind in ("order_created", "payment_completed", "order_confirmed"):
        assert worker[f'events_processed_total{{event_type="{kind}"}}'] == 1.0
        for channel in ("email", "push"):
            assert worker[f'notifications_sent_total{{type="{kind}",channel="{channel}"}}'] == 1.0
    assert worker['events_processed_total{event_type="user_created"}'] == 1.0
    # Welcome and token go out in one mail.
    assert worker['notifications_sent_total{type="user_created",channel="email"}'] == 1.0
    assert worker["notification_processing_seconds_count"] == 8.0


@in_one_process
async def test_what_was_refused_is_not_counted(world: World) -> None:
    world.served("order-service")
    user = await walk.create_user(world)
    with pytest.raises(EmptyOrder):
        await world.runtime.get(Orders).place(user["id"], [])
    assert (await walk.metrics(world, "order-service"))["orders_created_total"] == 0.0
