"""Who may do what in Commerce: every operation, asked by everybody, with and without REQUIRE_AUTH."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from bedplate.kernel.errors import NotAllowed
from bedplate.kernel.ids import new_id
from bedplate.modules.identity.public import ServiceKeys, Users
from bedplate.modules.orders.public import OrderItem, Orders
from bedplate.modules.payments.public import PaymentMethod, PaymentRequest, Payments
from tests import world as worlds
from tests.factories import Account
from tests.world import World

CALLERS = ("owner", "other", "admin", "service", "nobody", "refresh", "disabled", "expired")
# What each caller is answered; "open/closed" where REQUIRE_AUTH makes a difference. `refresh`, `disabled` and
# `expired` are the owner with a token of the wrong kind, of an account that was disabled, and that has run out.
TABLE = """
operation                                owner    other  admin  service  nobody   refresh  disabled  expired
GET /api/users/{user_id}                 200      403    200    200      401      401      401       401
PUT /api/users/{user_id}                 200      403    200    403      401      401      401       401
GET /api/users/{user_id}/events          200      403    200    403      401      401      401       401
POST /api/orders                         201      403    201    201      201/401  401      401       401
GET /api/orders/{order_id}               200      403    200    200      200/401  401      401       401
GET /api/orders/user/{user_id}           200      403    200    200      200/401  401      401       401
PUT /api/orders/{order_id}/status        200/403  403    200    200      200/401  401      401       401
POST /api/orders/{order_id}/cancel       200      403    200    200      200/401  401      401       401
POST /api/payments                       201      403    201    201      201/401  401      401       401
GET /api/payments/{payment_id}           200      403    200    200      200/401  401      401       401
GET /api/payments/user/{user_id}         200      403    200    200      200/401  401      401       401
POST /api/payments/{payment_id}/refund   200/403  403    200    200      200/401  401      401       401
"""
# Nobody has to say who he is: what is shown is everybody's, or the body is the proof.
FOR_EVERYBODY = {
    "POST /api/users",
    "POST /api/users/{user_id}/verify",
    "POST /api/auth/login",
    "POST /api/auth/refresh",
    "POST /api/auth/logout",
    "POST /api/auth/forgot-password",
    "POST /api/auth/reset-password",
    "GET /api/circuit-breaker/status",
    *(f"GET {path}" for path in ("/", "/health", "/ready", "/metrics", "/docs", "/redoc", "/openapi.json")),
    *(f"GET {path}" for path in ("/asyncapi", "/asyncapi.json", "/docs/assets/{path}")),
}
# Of nobody but whoever asks; the contract says who is refused.
FOR_ONESELF = {"POST /api/auth/resend-verification"}
SERVICES = ("user-service", "order-service", "payment-service", "notification-worker")


def rows() -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Each operation with what each caller is answered: open, closed."""
    for line in TABLE.strip().splitlines()[1:]:
        method, path, *cells = line.split()
        pairs = [cell.partition("/") for cell in cells]
        answers = [(int(first), int(second or first)) for first, _, second in pairs]
        yield f"{method} {path}", dict(zip(CALLERS, answers, strict=True))


@dataclass(frozen=True)
class Scene:
    """What belongs to one account: an order that is paid, its payment, and an order that is not."""

    user_id: str
    order_id: str
    payment_id: str
    unpaid_id: str

    def request(self, operation: str) -> tuple[str, str, dict[str, Any]]:
        """The operation on these things: service, path, body."""
        path = operation.partition(" ")[2]
        service = (
            "user-service"
            if path.startswith(("/api/users", "/api/auth"))
            else "order-service"
            if "/orders" in path
            else "payment-service"
        )
        if path.startswith("/api/payments"):
            service = "payment-service"
        if path.startswith("/api/orders"):
            service = "order-service"
        ids = {"user_id": self.user_id, "order_id": self.order_id, "payment_id": self.payment_id}
        return service, path.format(**ids), self.bodies().get(operation, {})

    def bodies(self) -> dict[str, dict[str, Any]]:
        item = {"productId": "p", "quantity": 1, "price": 10.00}
        payment = {"orderId": self.unpaid_id, "userId": self.user_id, "amount": 10.00, "currency": "USD"}
        return {
            "PUT /api/users/{user_id}": {"json": {"first_name": "Mallory"}},
            "POST /api/orders": {"json": {"userId": self.user_id, "items": [item]}},
            "PUT /api/orders/{order_id}/status": {"json": {"status": "processing"}},
            "POST /api/payments": {"json": {**payment, "paymentMethod": {"type": "paypal"}}},
            "POST /api/payments/{payment_id}/refund": {"json": {"amount": 1.00, "reason": "Test"}},
        }


def of_nobody() -> Scene:
    """Ids of the right form that do not exist."""
    return Scene(new_id(), f"order-{new_id()}", f"pay-{new_id()}", f"order-{new_id()}")


async def scene_of(world: World, user_id: str) -> Scene:
    orders, payments = world.runtime.get(Orders), world.runtime.get(Payments)
    items = [OrderItem("p", 1, Decimal("10.00"))]
    paid, unpaid = await orders.place(user_id, items), await orders.place(user_id, items)
    request = PaymentRequest(paid.id, user_id, Decimal("10.00"), "USD", PaymentMethod("paypal"))
    payment = await payments.pay(request)
    await world.deliver()
    return Scene(user_id, paid.id, payment.id, unpaid.id)


@pytest.fixture(params=["open", "closed"])
async def mode(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path
) -> AsyncIterator[tuple[World, int]]:
    """A world, and which of two answers holds in it."""
    closed = request.param == "closed"
    async with worlds.embedded(tmp_path, sqlite_template, rate_limit_enabled=False, require_auth=closed) as world:
        yield world, int(closed)


async def bearer(world: World, role: str = "user") -> dict[str, str]:
    return {"Authorization": f"Bearer {(await world.user('order-service', role=role)).access_token}"}


async def credentials(world: World, caller: str, owner: Account) -> dict[str, str]:
    """What the caller sends. Disables the owner, or lets the hour pass, if it comes to that."""
    if caller == "nobody":
        return {}
    if caller == "service":
        return {"X-API-Key": (await world.runtime.get(ServiceKeys).create_key("shop")).key}
    if caller in ("other", "admin"):
        return await bearer(world, "admin" if caller == "admin" else "user")
    if caller == "disabled":
        await world.runtime.get(Users).disable_user(owner.id, actor_id=new_id())
    if caller == "expired":
        world.clock.advance(3601)
    return {"Authorization": f"Bearer {owner.refresh_token if caller == 'refresh' else owner.access_token}"}


async def ask(world: World, operation: str, scene: Scene, headers: dict[str, str]) -> httpx2.Response:
    service, path, body = scene.request(operation)
    return await world.client(service).request(operation.split()[0], path, headers=headers, **body)


def told(answer: httpx2.Response) -> tuple[int, str, tuple[str, ...]]:
    """Everything that an answer tells."""
    return answer.status_code, answer.text, tuple(sorted(answer.headers))


@pytest.mark.parametrize(("operation", "expected"), list(rows()), ids=lambda value: value if type(value) is str else "")
async def test_everybody_is_answered_as_the_table_says(
    mode: tuple[World, int], operation: str, expected: dict[str, tuple[int, int]]
) -> None:
    world, which = mode
    found = {}
    owner, victim = await world.user("order-service"), await world.user("order-service")
    for caller in CALLERS:
        asking = victim if caller == "disabled" else owner
        scene = await scene_of(world, asking.id)
        answer = await ask(world, operation, scene, await credentials(world, caller, asking))
        found[caller] = answer.status_code
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["code"] == "UNAUTHORIZED"
    assert found == {caller: answers[which] for caller, answers in expected.items()}


@pytest.mark.parametrize("operation", [operation for operation, _ in rows()])
async def test_what_is_somebody_elses_is_as_good_as_not_there(mode: tuple[World, int], operation: str) -> None:
    world, _ = mode
    owner, headers = await world.user("order-service"), await bearer(world)
    theirs = await ask(world, operation, await scene_of(world, owner.id), headers)
    unknown = await ask(world, operation, of_nobody(), headers)
    assert told(theirs) == told(unknown)
    words = NotAllowed.message
    assert theirs.json() == {"code": "FORBIDDEN", "message": words, "error": words, "details": None}


@pytest.mark.parametrize("paid", [True, False], ids=["paid", "unpaid"])
@pytest.mark.parametrize("amount", [10.00, 9.99])
async def test_paying_tells_nothing_of_somebody_elses_order(mode: tuple[World, int], paid: bool, amount: float) -> None:
    world, _ = mode
    owner, other = await world.user("order-service"), await world.user("order-service")
    scene = await scene_of(world, owner.id)
    headers = {"Authorization": f"Bearer {other.access_token}"}
    order_id = scene.order_id if paid else scene.unpaid_id
    answers = []
    for each in (order_id, f"order-{new_id()}", "order-123"):
        body = replace(scene, user_id=other.id, unpaid_id=each).bodies()["POST /api/payments"]
        body["json"]["amount"] = amount
        answers.append(await world.client("payment-service").post("/api/payments", headers=headers, **body))
    assert {told(answer)[:2] for answer in answers} == {(403, answers[0].text)}


async def test_a_service_key_does_not_count_beside_a_bad_token(mode: tuple[World, int]) -> None:
    world, _ = mode
    owner = await world.user("order-service")
    scene = await scene_of(world, owner.id)
    headers = await credentials(world, "service", owner) | {"Authorization": "Bearer nonsense"}
    assert (await ask(world, "GET /api/orders/{order_id}", scene, headers)).status_code == 401


async def test_a_revoked_service_key_is_refused(mode: tuple[World, int]) -> None:
    world, _ = mode
    keys = world.runtime.get(ServiceKeys)
    scene = await scene_of(world, (await world.user("order-service")).id)
    made = await keys.create_key("shop")
    headers = {"X-API-Key": made.key}
    assert (await ask(world, "GET /api/orders/{order_id}", scene, headers)).status_code == 200
    await keys.revoke_key(made.id)
    assert (await ask(world, "GET /api/orders/{order_id}", scene, headers)).status_code == 401


async def test_nobody_confirms_an_order_that_is_not_paid(mode: tuple[World, int]) -> None:
    world, which = mode
    owner = await world.user("order-service")
    scene = await scene_of(world, owner.id)
    path = f"/api/orders/{scene.unpaid_id}/status"
    for caller in ("admin", "service", *([] if which else ["nobody"])):
        headers = await credentials(world, caller, owner)
        for payment_id in (scene.payment_id, f"pay-{new_id()}", "pay-456"):
            body = {"status": "confirmed", "paymentId": payment_id}
            answer = await world.client("order-service").put(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (409, "ORDER_004")


async def test_an_own_id_in_capitals_is_an_own_id(mode: tuple[World, int]) -> None:
    world, _ = mode
    owner = await world.user("order-service")
    scene = replace(await scene_of(world, owner.id), user_id=owner.id.upper())
    headers = {"Authorization": f"Bearer {owner.access_token}"}
    for operation, expected in rows():
        if "{user_id}" in operation or operation in ("POST /api/orders", "POST /api/payments"):
            answer = await ask(world, operation, scene, headers)
            assert answer.status_code == expected["owner"][0], operation


async def test_no_operation_is_missing(mode: tuple[World, int]) -> None:
    world, _ = mode
    routed = set()
    for service in SERVICES:
        for route in iter_route_contexts(world.app(service).routes):
            if isinstance(route.original_route, Mount):
                routed.add(f"GET {route.path}/{{path}}")
            else:
                routed |= {f"{method} {route.path}" for method in route.methods - {"HEAD"}}
    assert routed == {operation for operation, _ in rows()} | FOR_EVERYBODY | FOR_ONESELF
