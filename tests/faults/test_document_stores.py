"""The whole product with orders in MongoDB and payments in Redis, in processes that die."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bedplate.kernel.failpoints import KILLED, VARIABLE
from tests import factories
from tests.commerce.walk import ITEMS, payment_of
from tests.factories import PASSWORD
from tests.failpoints import of_module
from tests.processes import Server, command

PATIENCE = 40.0


class Shopper:
    """Asks again, with the same key, until there is an answer. `bedplate`: the process that serves at present."""

    def __init__(self, bedplate: Server) -> None:
        self.bedplate = bedplate

    async def ask(self, method: str, path: str, body: Any = None, key: str = "") -> Any:
        """Raises httpx2.TransportError if nobody serves."""
        async with asyncio.timeout(PATIENCE), self.bedplate.client() as client:
            while True:
                headers = {"Idempotency-Key": key} if key else {}
                answer = await client.request(method, path, json=body, headers=headers)
                if answer.status_code < 300:
                    return answer.json()
                assert answer.headers.get("Retry-After"), answer.text
                await asyncio.sleep(float(answer.headers["Retry-After"]))

    async def user(self) -> str:
        account = {"email": factories.email(), "username": factories.username(), "password": PASSWORD}
        return str((await self.ask("POST", "/commerce/users/api/users", account))["id"])

    async def order(self, user_id: str) -> Any:
        return await self.ask("POST", "/commerce/orders/api/orders", {"userId": user_id, "items": ITEMS}, "an order")

    async def pay(self, order: Any) -> Any:
        return await self.ask("POST", "/commerce/payments/api/payments", payment_of(order), "a payment")

    async def confirmed(self, order: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.ask("GET", f"/commerce/orders/api/orders/{order['id']}")
                if found["status"] == "confirmed":
                    return found
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("point", [point for point in of_module("documents") if ".move." in point])
async def test_a_process_that_dies_between_a_change_and_its_event_leaves_nothing_undone(
    tmp_path: Path, empty_mongo: str, empty_store: str, point: str
) -> None:
    where = {"ORDERS_DATABASE_URL": empty_mongo, "PAYMENTS_DATABASE_URL": empty_store}
    with Server(tmp_path, "up", **where, **{VARIABLE: f"{point}:exit"}) as dying:
        shopper = Shopper(dying)
        user = await shopper.user()
        with pytest.raises(httpx2.TransportError):
            await shopper.order(user)
        assert dying.wait() == KILLED
    with Server(tmp_path, "up", **where) as bedplate:
        shopper = Shopper(bedplate)
        order = await shopper.order(user)
        payment = await shopper.pay(order)
        assert (await shopper.confirmed(order))["paymentId"] == payment["id"]
        listed = await shopper.ask("GET", f"/commerce/orders/api/orders/user/{user}")
        assert [each["id"] for each in listed["orders"]] == [order["id"]]
        paid = await shopper.ask("GET", f"/commerce/payments/api/payments/user/{user}")
        assert [(each["id"], each["status"]) for each in paid["payments"]] == [(payment["id"], "completed")]
    log = command(tmp_path, "doctor", **where)
    assert log.returncode == 0, log.stdout + log.stderr
    assert "kept in MongoDB, which answers" in log.stdout
    assert "kept in Redis, which answers" in log.stdout
