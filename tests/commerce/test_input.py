"""What clients send: amounts to the cent, cards that leave no trace, anything else; answered in documented words."""

import asyncio
import json
import logging
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bedplate.kernel.telemetry import configure_logging
from bedplate.systems.commerce.money import Amount, Price
from tests.commerce import walk
from tests.security.crowd import on_both_engines
from tests.security.test_bad_input import HEADERS, IDENTIFIERS, INSIDES, JSON, MARK, PATHS, QUERIES, bodies, values
from tests.world import World

in_one_deployment = pytest.mark.parametrize("world", ["sqlite"], indirect=True)
SERVICES = ("user-service", "order-service", "payment-service")
TAKEN = {
    "0": 0.0,
    "-0.0": 0.0,
    "0.01": 0.01,
    "0.1": 0.1,
    "15.50": 15.5,
    "29.990": 29.99,
    "1e2": 100.0,
    "5e-1": 0.5,
    "999999.99": 999999.99,
    "1000000": 1000000.0,
}
REFUSED = (
    *("0.001", "29.999", "0.30000000000000004", "1e-3", "-0.01", "-1", "1000000.01", "1e30", "1" * 400),
    *("NaN", "Infinity", "-Infinity", "1e999", '"1.00"', '""', "true", "false", "null", "[]", "{}", "[1]"),
)

REASONS = {
    "Input should be a number",
    "Input should be between 0 and 1000000.00",
    "Input should have two decimals at most",
}


def order_with_price(user_id: str, price: str) -> bytes:
    """And with an item beside it, as an order has to cost something."""
    items = f'{{"productId": "p", "quantity": 1, "price": {price}}}, {{"productId": "q", "quantity": 1, "price": 1}}'
    return f'{{"userId": "{user_id}", "items": [{items}]}}'.encode()


@in_one_deployment
@pytest.mark.parametrize(("written", "price"), TAKEN.items())
async def test_a_price_is_taken_to_the_cent(world: World, written: str, price: float) -> None:
    user = await walk.create_user(world)
    content = order_with_price(user["id"], written)
    order = walk.answered(await world.client("order-service").post("/api/orders", content=content, headers=JSON), 201)
    assert (order["items"][0]["price"], order["totalAmount"]) == (price, round(price + 1, 2))


@in_one_deployment
async def test_what_is_no_price_is_refused_and_not_repeated(world: World) -> None:
    user = await walk.create_user(world)
    client = world.client("order-service")
    for written in REFUSED:
        answer = await client.post("/api/orders", content=order_with_price(user["id"], written), headers=JSON)
        assert answer.status_code == 422, written
        [field] = answer.json()["details"]["fields"]
        assert field["field"] == "items.0.price"
        assert field["reason"] in REASONS, written


@in_one_deployment
async def test_an_order_of_too_many_items_is_refused_in_a_few_words_whatever_they_are(world: World) -> None:
    user = await walk.create_user(world)
    good = {"productId": "p", "quantity": 1, "price": 1}
    for items in ([good] * 101, [0] * 400_000):
        body = {"userId": user["id"], "items": items}
        answer = await world.client("order-service").post("/api/orders", json=body)
        assert answer.status_code == 422
        reason = "Input should have 100 items at most"
        assert answer.json()["details"] == {"fields": [{"field": "items", "reason": reason}]}
    answer = await world.client("order-service").post("/api/orders", json={"userId": user["id"], "items": [good] * 100})
    assert answer.status_code == 201


@given(st.integers(0, 100_000_000))
def test_every_number_of_cents_is_read_as_it_was_written(cents: int) -> None:
    amount = Decimal(cents).scaleb(-2)
    sent = json.loads(str(amount))
    assert TypeAdapter(Price).validate_python(sent) == amount
    if cents:
        assert TypeAdapter(Amount).validate_python(sent) == amount


@given(
    st.decimals(min_value=Decimal("0.001"), max_value=1_000_000, places=3).filter(lambda amount: amount % 1 * 100 % 1)
)
@settings(max_examples=300)
def test_a_fraction_of_a_cent_is_no_amount(amount: Decimal) -> None:
    with pytest.raises(ValidationError, match="two decimals"):
        TypeAdapter(Price).validate_python(json.loads(str(amount)))


@in_one_deployment
async def test_an_order_has_at_most_a_hundred_items(world: World) -> None:
    user = await walk.create_user(world)
    client, item = world.client("order-service"), {"productId": "p", "quantity": 1, "price": 0.1}
    hundred = walk.answered(await client.post("/api/orders", json={"userId": user["id"], "items": [item] * 100}), 201)
    assert hundred["totalAmount"] == 10.0
    refused = walk.answered(await client.post("/api/orders", json={"userId": user["id"], "items": [item] * 101}), 422)
    assert refused["code"] == "VALIDATION_ERROR"


@in_one_deployment
async def test_card_number_and_code_are_in_no_answer_and_no_log(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    number, code = "4242424242424242", "987"
    handlers = logging.root.handlers[:]
    configure_logging("DEBUG")
    try:
        answers = [answer async for answer in pay_in_all_ways(world, number, code)]
        await asyncio.sleep(0)  # the lines of one turn of the loop are written at its end
        written = capfd.readouterr()
    finally:
        configure_logging("ERROR")
        logging.root.handlers[:] = handlers
    assert sorted({answer.status_code for answer in answers}) == [200, 201, 400, 404, 409, 422]
    assert "/api/payments" in written.err
    for text in (*(answer.text for answer in answers), written.out, written.err):
        assert number not in text
        assert f'"{code}"' not in text


async def pay_in_all_ways(world: World, number: str, code: str) -> Any:
    """Well, twice, and with one thing wrong at a time."""
    client = world.client("payment-service")
    order = await walk.create_order(world, (await walk.create_user(world))["id"])
    good = walk.payment_of(order, number)
    good["paymentMethod"]["cvv"] = code
    method = good["paymentMethod"]
    wrong = [
        {**good, "orderId": "order-123"},
        {**good, "amount": 1},
        {**good, "amount": number},
        {**good, "currency": "EUR"},
        {**good, "paymentMethod": {**method, "cardNumber": int(number)}},
        {**good, "paymentMethod": {**method, "cardNumber": number[:-1] + "3"}},
        {**good, "paymentMethod": {**method, "cvv": code + number}},
        {**good, "paymentMethod": {**method, "expiryMonth": number}},
        {**good, "paymentMethod": {**method, "type": number}},
        {**good, "paymentMethod": [method]},
        {**good, "paymentMethod": {number: code}},
        {**good, number: code},
    ]
    for body in [*wrong, good]:
        yield await client.post("/api/payments", json=body, headers={"Idempotency-Key": "key-1"})
        yield await client.post("/api/payments", json=body)
    yield await client.post("/api/payments", content=json.dumps(good)[:-1], headers=JSON)
    yield await client.get(f"/api/payments/user/{order['userId']}")
    await world.deliver()
    yield await client.get(f"/api/payments/user/{order['userId']}")


def assert_documented(answer: httpx2.Response, what: str) -> None:
    """If it is an error: in the document's shape, and free of insides and echoes."""
    assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code < 400:
        return
    assert answer.headers["content-type"] == "application/json", what
    assert len(answer.content) < 4096, what
    body = answer.json()
    assert set(body) == {"code", "message", "error", "details"}, what
    assert body["message"] == body["error"] != "", what
    text = json.dumps(body)
    assert MARK not in text, f"{what} is repeated: {text}"
    assert INSIDES.search(text) is None, f"{what}: {text}"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_text(value: Any, path: tuple[Any, ...], text: str) -> bytes:
    """The JSON with this text at a place."""
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = "@here@"
    return json.dumps(copy).replace('"@here@"', text).encode()


class Prober:
    """Sends to the three services as nobody, and as an administrator."""

    def __init__(self, world: World, token: str, user_id: str, order: dict[str, Any], payment: dict[str, Any]) -> None:
        self._clients = {service: world.client(service) for service in SERVICES}
        self._token = token
        self.ids = {"user_id": user_id, "order_id": order["id"], "payment_id": payment["id"]}
        user = {"email": "not an address", "username": "alice", "password": "password123"}
        person = {"first_name": "A", "last_name": "B", "phone": "+1234567890"}
        profile = {"bio": "x", "date_of_birth": "2000-01-01", "preferences": {"push_notifications": True}}
        self.bodies: dict[str, Any] = {
            "POST /api/users": {**user, **person},
            "PUT /api/users/{user_id}": {**person, "profile": profile},
            "POST /api/users/{user_id}/verify": {"verification_token": "abc"},
            "POST /api/auth/login": {"email": "a@example.com", "password": "password123"},
            "POST /api/auth/refresh": {"refresh_token": "abc"},
            "POST /api/auth/logout": {"refresh_token": "abc"},
            "POST /api/auth/forgot-password": {"email": "a@example.com"},
            "POST /api/auth/reset-password": {"token": "abc", "password": "password123"},
            "POST /api/orders": {"userId": user_id, "items": [{"productId": "p", "quantity": 1, "price": 1.5}]},
            "PUT /api/orders/{order_id}/status": {"status": "shipped", "paymentId": "pay-1"},
            "POST /api/payments": walk.payment_of({**order, "totalAmount": 1.0}),
            "POST /api/payments/{payment_id}/refund": {"amount": 1000.0, "reason": "Test"},
        }
        self.operations = [
            (service, method.upper(), path)
            for service in SERVICES
            for path, operations in world.app(service).openapi()["paths"].items()
            for method in operations
        ]

    async def send(self, service: str, method: str, path: str, **request: Any) -> None:
        given = request.pop("headers", {})
        for known in ({}, {"Authorization": f"Bearer {self._token}"}):
            headers = {name: value.encode("latin-1") for name, value in (known | given).items()}
            answer = await self._clients[service].request(method, path, headers=headers, **request)
            assert_documented(answer, f"{method} {path[:80]} {str(request)[:200]}")


@pytest.fixture
async def prober(world: World) -> Prober:
    admin = await world.user("order-service", role="admin")
    order = await walk.create_order(world, (await walk.create_user(world))["id"])
    payment = await walk.pay(world, order)
    return Prober(world, admin.access_token, order["userId"], order, payment)


@on_both_engines
@pytest.mark.timeout(240)
async def test_any_value_anywhere_is_answered_in_the_documented_shape(prober: Prober) -> None:
    sent = 0
    for service, method, path in prober.operations:
        good = prober.bodies.get(f"{method} {path}")
        for place in places(good) if good else ():
            for value in values():
                content = with_text(good, place, value)
                await prober.send(service, method, path.format(**prober.ids), content=content, headers=JSON)
                sent += 1
    assert sent > 1000


@on_both_engines
async def test_any_body_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for service, method, path in prober.operations:
        for _, content, headers in bodies() if method != "GET" else ():
            await prober.send(service, method, path.format(**prober.ids), content=content, headers=headers)


@on_both_engines
async def test_any_path_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for service in SERVICES:
        for path in PATHS:
            await prober.send(service, "GET", path)
    for service, method, path in prober.operations:
        body = prober.bodies.get(f"{method} {path}")
        content = {"json": body} if body is not None else {}
        for identifier in IDENTIFIERS if "{" in path else ():
            for prefix in ("", "order-", "pay-"):
                ids = dict.fromkeys(prober.ids, prefix + identifier)
                await prober.send(service, method, path.format(**ids), **content)


@on_both_engines
async def test_any_query_and_any_header_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for service, method, path in prober.operations:
        for query in (*QUERIES, f"status={MARK}", "status=", "status=%00", "status=pending&status=x"):
            if method == "GET":
                await prober.send(service, method, f"{path.format(**prober.ids)}?{query}")
        for headers in (*HEADERS, {"Idempotency-Key": MARK * 100}, {"Idempotency-Key": "\xff\x01"}):
            content = {"json": {}} if method != "GET" else {}
            await prober.send(service, method, path.format(**prober.ids), headers=headers, **content)
