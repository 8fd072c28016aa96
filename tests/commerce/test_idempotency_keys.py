"""Idempotency keys, as clients use them: whose they are, for what, and what happens at once."""

import asyncio
from typing import Any

import pytest

from tests.commerce import walk
from tests.world import World

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


async def listed(world: World, user_id: str) -> int:
    orders = await world.client("order-service").get(f"/api/orders/user/{user_id}")
    return int(walk.answered(orders)["total"])


async def test_twenty_who_ask_at_once_with_one_key_place_one_order(world: World) -> None:
    user = await walk.create_user(world)
    client, body = world.client("order-service"), {"userId": user["id"], "items": walk.ITEMS}
    answers = await asyncio.gather(*(client.post("/api/orders", json=body, headers=KEY) for _ in range(20)))
    placed = [answer.json() for answer in answers if answer.status_code == 201]
    assert placed
    assert all(order == placed[0] for order in placed)
    for answer in answers:
        if answer.status_code != 201:
            assert (answer.status_code, answer.json()["code"]) == (409, "IDEMPOTENCY_KEY_IN_WORK")
            assert int(answer.headers["retry-after"]) > 0
    assert await listed(world, user["id"]) == 1


async def test_keys_of_those_without_credentials_are_apart_by_user(world: World) -> None:
    alice, bob = await walk.create_user(world), await walk.create_user(world)
    first = await walk.create_order(world, alice["id"], **KEY)
    second = await walk.create_order(world, bob["id"], **KEY)
    assert first["id"] != second["id"]
    assert (await walk.create_order(world, alice["id"], **KEY)) == first


async def test_a_key_with_a_token_is_not_the_key_without(world: World) -> None:
    account = await world.user("order-service")
    body = {"userId": account.id, "items": walk.ITEMS}
    mine = walk.answered(await account.client.post("/api/orders", json=body, headers=KEY), 201)
    anybodys = await walk.create_order(world, account.id, **KEY)
    assert mine["id"] != anybodys["id"]


async def test_a_key_stands_for_one_operation_on_one_thing(world: World) -> None:
    user = await walk.create_user(world)
    first, second = await walk.create_order(world, user["id"], **KEY), await walk.create_order(world, user["id"])
    client = world.client("order-service")
    for order in (first, second, first):
        cancelled = walk.answered(await client.post(f"/api/orders/{order['id']}/cancel", headers=KEY))
        assert (cancelled["id"], cancelled["status"]) == (order["id"], "cancelled")


async def test_a_number_written_otherwise_is_the_same_request(world: World) -> None:
    user = await walk.create_user(world)
    client, headers = world.client("order-service"), {**KEY, "Content-Type": "application/json"}
    bodies = (
        '{"userId": "%s", "items": [{"productId": "p", "quantity": 1, "price": 15.5}]}',
        '{ "items": [{"price": 15.50, "quantity": 1, "productId": "p"}], "userId": "%s" }',
    )
    answers = [await client.post("/api/orders", content=body % user["id"], headers=headers) for body in bodies]
    assert len({walk.answered(answer, 201)["id"] for answer in answers}) == 1


async def test_an_answer_that_was_lost_is_given_again_after_the_state_has_moved_on(world: World) -> None:
    user = await walk.create_user(world)
    order = await walk.create_order(world, user["id"])
    client, body = world.client("payment-service"), walk.payment_of(order)
    first = walk.answered(await client.post("/api/payments", json=body, headers=KEY), 201)
    await world.deliver()
    again = walk.answered(await client.post("/api/payments", json=body, headers=KEY), 201)
    assert again == first
    assert again["status"] == "processing", "the answer of then; what became of it is shown by its id"
    shown = walk.answered(await client.get(f"/api/payments/{first['id']}"))
    assert shown["status"] == "completed"


async def test_after_a_day_a_key_is_free(world: World) -> None:
    user = await walk.create_user(world)
    first = await walk.create_order(world, user["id"], **KEY)
    world.clock.advance(25 * 3600)
    await sweep(world)
    assert (await walk.create_order(world, user["id"], **KEY))["id"] != first["id"]


@pytest.mark.parametrize("key", ["", "a" * 256, "caf\xe9", "tab\tbed", "\x7f"])
async def test_what_is_no_key_is_refused_and_not_repeated(world: World, key: str) -> None:
    user = await walk.create_user(world)
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    body: dict[str, Any] = {"userId": user["id"], "items": walk.ITEMS}
    answer = await world.client("order-service").post("/api/orders", json=body, headers=headers)
    refused = walk.answered(answer, 422)
    assert refused["code"] == "VALIDATION_ERROR"
    assert await listed(world, user["id"]) == 0


@pytest.mark.parametrize("key", ["a", "~" * 255, "with spaces and 'quotes'"])
async def test_any_printable_key_will_do(world: World, key: str) -> None:
    user = await walk.create_user(world)
    headers = {"Idempotency-Key": key}
    assert await walk.create_order(world, user["id"], **headers) == await walk.create_order(
        world, user["id"], **headers
    )


async def sweep(world: World) -> None:
    for work in world.runtime.sweeps:
        await work()
