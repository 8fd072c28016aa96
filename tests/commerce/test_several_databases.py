"""One process whose modules have databases of their own: the same walk, and each service counts what is its own."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from bedplate.kernel.outbox import backlog
from tests import world as worlds
from tests.commerce import walk
from tests.world import World


@pytest.fixture
async def apart(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    """Accounts and mail in one file, orders in another, payments in a third."""
    urls = {}
    for name in ("orders", "payments"):
        shutil.copy(sqlite_template, tmp_path / f"{name}.db")
        urls[f"{name}_database_url"] = SecretStr(f"sqlite:///{tmp_path / f'{name}.db'}")
    async with worlds.embedded(tmp_path, sqlite_template, rate_limit_enabled=False, **urls) as world:
        yield world


async def test_the_walk_crosses_the_databases(apart: World) -> None:
    user = await walk.create_user(apart)
    paid, unpaid = await walk.create_order(apart, user["id"]), await walk.create_order(apart, user["id"])
    await walk.pay(apart, paid)
    await walk.pay(apart, unpaid, walk.WITHOUT_FUNDS)
    subjects = [mail.subject.partition(" - ")[0] for mail in await apart.mails(user["email"])]
    orders = apart.client("order-service")
    assert walk.answered(await orders.get(f"/api/orders/{paid['id']}"))["status"] == "confirmed"
    assert walk.answered(await orders.get(f"/api/orders/{unpaid['id']}"))["status"] == "cancelled"
    assert sorted(subjects) == [
        "Order Cancelled",
        "Order Confirmation",
        "Order Received",
        "Order Received",
        "Payment Confirmation",
        "Payment Failed",
        "Verify your email address",
    ]
    assert [await backlog(database) for database in apart.runtime.databases.values()] == [(0, 0)] * 3


async def test_a_service_measures_the_statements_of_its_own_database(apart: World) -> None:
    for service in ("user-service", "order-service"):
        apart.served(service)
    before = await _measured(apart)
    for url, database in apart.runtime.databases.items():
        for _ in range({"bedplate.db": 3, "orders.db": 5, "payments.db": 7}[Path(url).name]):
            await database.first(text("SELECT 1"))
    # Between two looks at a page two pages are made, and each counts what waits in every database.
    assert [after - there for after, there in zip(await _measured(apart), before, strict=True)] == [3 + 2, 5 + 2]


async def _measured(world: World) -> list[float]:
    users, orders = await walk.metrics(world, "user-service"), await walk.metrics(world, "order-service")
    return [users["database_queries_duration_seconds_count"], orders["mongo_operations_duration_seconds_count"]]
