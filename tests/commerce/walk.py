"""The documented walk through Commerce, step by step, over HTTP."""

from typing import Any

import httpx2

from tests import factories
from tests.factories import PASSWORD
from tests.world import World

CARD = "4111111111111111"
WITHOUT_FUNDS = "4000000000009995"
ITEMS = [{"productId": "prod-1", "quantity": 2, "price": 29.99}, {"productId": "prod-2", "quantity": 1, "price": 15.50}]


async def create_user(world: World) -> dict[str, Any]:
    body = {"email": factories.email(), "username": factories.username(), "password": PASSWORD}
    return answered(await world.client("user-service").post("/api/users", json=body), 201)


async def create_order(world: World, user_id: str, **headers: str) -> dict[str, Any]:
    body = {"userId": user_id, "items": ITEMS}
    return answered(await world.client("order-service").post("/api/orders", json=body, headers=headers), 201)


def payment_of(order: dict[str, Any], card: str = CARD) -> dict[str, Any]:
    """The body that pays for an order."""
    method = {"type": "credit_card", "cardNumber": card, "expiryMonth": "12", "expiryYear": "2025", "cvv": "123"}
    ids = {"orderId": order["id"], "userId": order["userId"]}
    return {**ids, "amount": order["totalAmount"], "currency": "USD", "paymentMethod": method}


async def pay(world: World, order: dict[str, Any], card: str = CARD) -> dict[str, Any]:
    return answered(await world.client("payment-service").post("/api/payments", json=payment_of(order, card)), 201)


async def metrics(world: World, service: str) -> dict[str, float]:
    """Every sample of a service's page, by name and labels."""
    page = await world.client(service).get("/metrics")
    lines = [line.rpartition(" ") for line in page.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def answered(answer: httpx2.Response, status: int = 200) -> dict[str, Any]:
    """The body of an answer that must have this status."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body
