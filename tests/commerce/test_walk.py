"""The documented walk, unchanged, in real processes: all in one on SQLite, and four with a database each."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.commerce.walk import answered
from tests.faults.commerce import deployments
from tests.faults.commerce.deployments import Deployment
from tests.processes import command

SECONDS = 20.0
USER = {
    "email": "user@example.com",
    "username": "username",
    "password": "secure_password",
    "first_name": "John",
    "last_name": "Doe",
    "phone": "+1234567890",
}
ITEMS = [{"productId": "prod-1", "quantity": 2, "price": 29.99}, {"productId": "prod-2", "quantity": 1, "price": 15.50}]
CARD = {
    "type": "credit_card",
    "cardNumber": "4111111111111111",
    "expiryMonth": "12",
    "expiryYear": "2025",
    "cvv": "123",
}
# The provider of the product itself, as a newcomer has it.
SANDBOX = {"STRIPE_SECRET_KEY": ""}


async def test_the_documented_walk_in_one_process(tmp_path: Path) -> None:
    async with deployments.one_process(tmp_path, "", **SANDBOX) as there:
        await walk(there, tmp_path)


@pytest.mark.timeout(120)
async def test_the_documented_walk_through_four_processes(tmp_path: Path, postgres_url: str) -> None:
    async with deployments.split(tmp_path, "", **SANDBOX) as there:
        await walk(there, tmp_path)


async def walk(there: Deployment, folder: Path) -> None:
    """From the first request of the document to the last."""
    await there.start()
    async with httpx2.AsyncClient(timeout=10) as client:

        async def ask(method: str, url: str, body: Any = None, status: int = 200) -> dict[str, Any]:
            return answered(await client.request(method, url, json=body), status)

        user = await ask("POST", f"{there.users_url}/api/users", USER, 201)
        assert (user["email"], user["username"], user["is_verified"]) == ("user@example.com", "username", False)
        mine = f"{there.users_url}/api/users/{user['id']}"
        token = await eventually(lambda: token_of(mails(there, folder)))
        verified = await ask("POST", f"{mine}/verify", {"verification_token": token})
        assert verified["is_verified"] is True
        login = {"email": "user@example.com", "password": "secure_password"}
        signed_in = await ask("POST", f"{there.users_url}/api/auth/login", login)
        client.headers["authorization"] = f"Bearer {signed_in['access_token']}"
        told = [event["event_type"] for event in (await ask("GET", f"{mine}/events"))["events"]]
        assert told == ["user_created", "user_verified"]

        paid, payment = await pay(ask, there, user["id"])
        assert (payment["status"], payment["transactionId"][:4]) == ("completed", "txn-")
        assert (paid["status"], paid["paymentId"], paid["totalAmount"]) == ("confirmed", payment["id"], 75.48)
        back = {"amount": 75.48, "reason": "Order cancelled"}
        refunded = await ask("POST", f"{there.payments_url}/api/payments/{payment['id']}/refund", back)
        assert refunded["status"] == "refunded"

        second, its_payment = await pay(ask, there, user["id"])
        cancelled = await ask("POST", f"{there.orders_url}/api/orders/{second['id']}/cancel")
        assert (cancelled["id"], cancelled["status"]) == (second["id"], "cancelled")
        url = f"{there.payments_url}/api/payments/{its_payment['id']}"
        await until(lambda: ask("GET", url), lambda payment: payment["status"] == "refunded")

        listed = await ask("GET", f"{there.orders_url}/api/orders/user/{user['id']}?status=confirmed&limit=10&offset=0")
        assert [order["id"] for order in listed["orders"]] == [paid["id"]]
        breakers = await ask("GET", f"{there.payments_url}/api/circuit-breaker/status")
        assert breakers["order_service"] == {"state": "closed", "failure_count": 0, "last_failure": None}
        await figures_agree(client, there)
    of_orders = [
        f"{kind} - {order['id']}" for kind in ("Order Received", "Order Confirmation") for order in (paid, second)
    ]
    of_orders += [f"Payment Confirmation - Order {order['id']}" for order in (paid, second)]
    due = [
        "Verify your email address",
        "Account Verified Successfully",
        *of_orders,
        f"Order Cancelled - {second['id']}",
    ]
    sent = await eventually(lambda: subjects(mails(there, folder), len(due)))
    assert sent == sorted(due)


async def pay(ask: Callable[..., Any], there: Deployment, user_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An order that is paid and confirmed, and its payment."""
    order = await ask("POST", f"{there.orders_url}/api/orders", {"userId": user_id, "items": ITEMS}, 201)
    assert (order["status"], order["totalAmount"]) == ("pending", 75.48)
    ids = {"orderId": order["id"], "userId": user_id}
    body = {**ids, "amount": 75.48, "currency": "USD", "paymentMethod": CARD}
    payment = await ask("POST", f"{there.payments_url}/api/payments", body, 201)
    assert payment["status"] == "processing"
    url = f"{there.orders_url}/api/orders/{order['id']}"
    confirmed = await until(lambda: ask("GET", url), lambda order: order["status"] == "confirmed")
    return confirmed, await ask("GET", f"{there.payments_url}/api/payments/{payment['id']}")


async def figures_agree(client: httpx2.AsyncClient, there: Deployment) -> None:
    wanted = {
        there.users_url: {"user_registrations_total": 1.0, "user_verifications_total": 1.0},
        there.orders_url: {"orders_created_total": 2.0, "order_value_histogram_sum": 150.96},
        there.payments_url: {"payment_success_rate": 1.0, 'circuit_breaker_state{service="order_service"}': 0.0},
    }
    for url, figures in wanted.items():
        page = (await client.get(f"{url}/metrics")).text
        lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, _, value in lines}
        assert {name: round(found[name], 2) for name in figures} == figures


def mails(there: Deployment, folder: Path) -> list[dict[str, Any]]:
    """The mailbox, as an operator sees it."""
    printed = command(folder, "mail", "list", "--json", DATABASE_URL=there.databases["mail"])
    assert printed.returncode == 0, printed.stderr
    listed: list[dict[str, Any]] = json.loads(printed.stdout)
    return listed


def token_of(listed: list[dict[str, Any]]) -> str | None:
    texts = [mail["text"] for mail in listed if "token=" in mail["text"]]
    return texts[0].partition("token=")[2].split("&")[0] if texts else None


def subjects(listed: list[dict[str, Any]], number: int) -> list[str] | None:
    """Of what was sent, once there is so much of it."""
    return sorted(mail["subject"] for mail in listed) if len(listed) >= number else None


async def eventually(found: Callable[[], Any]) -> Any:
    """What it finds, asked again while it finds nothing."""
    deadline = time.monotonic() + SECONDS
    while (value := await asyncio.to_thread(found)) is None:
        assert time.monotonic() < deadline, "it never came"
    return value


async def until(ask: Callable[[], Any], true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first answer of which this is true."""
    deadline = time.monotonic() + SECONDS
    while not true(answer := await ask()):
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.02)
    found: dict[str, Any] = answer
    return found
