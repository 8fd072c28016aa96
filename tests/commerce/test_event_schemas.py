"""The AsyncAPI documents: what they say of each event is what the event is on the wire."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import pytest

from bedplate.kernel.db import Committed, Effects
from bedplate.kernel.events import Event, to_wire
from bedplate.kernel.ids import new_id
from bedplate.kernel.pages import PAGE_POLICY
from bedplate.modules.identity.public import Confirmations, Details, Purpose, Users
from tests.commerce import walk
from tests.world import World

pytestmark = pytest.mark.parametrize("world", ["sqlite"], indirect=True)
SERVICES = {"user-service": "user_events", "order-service": "order_events", "payment-service": "payment_events"}
# The document's events, as it prints them: what stands at the top, and what in `data`.
DOCUMENTED = {
    "user_created": ({"user_id"}, {"email", "username", "created_at"}),
    "user_verified": ({"user_id"}, {"verified_at"}),
    "order_created": ({"order_id", "user_id"}, {"total_amount", "items", "created_at"}),
    "order_confirmed": ({"order_id"}, {"payment_id", "confirmed_at"}),
    "payment_completed": (
        {"payment_id", "order_id", "user_id"},
        {"amount", "currency", "transaction_id", "completed_at"},
    ),
    "payment_failed": ({"payment_id", "order_id"}, {"reason", "error_code", "failed_at"}),
}
ADDED = {"user_updated", "order_cancelled", "order_status_changed", "payment_refunded"}
ENVELOPE = {"event_id", "event_type", "occurred_at", "data"}


async def described(world: World, service: str = "order-service") -> dict[str, Any]:
    return walk.answered(await world.client(service).get("/asyncapi.json"))


class Overheard(Committed):
    """Everything that is said."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def committed(self, effects: Effects) -> None:
        self.events += effects.emitted


async def tell_everything(world: World) -> None:
    """A walk on which every event of the document happens, and every one that was added."""
    user = await walk.create_user(world)
    users, confirmations = world.runtime.get(Users), world.runtime.get(Confirmations)
    await users.update_details(user["id"], Details(first_name="Jane"))
    issued = await confirmations.issue_email_token(Purpose.VERIFY, user["email"], new_id(), world.clock.now())
    assert issued is not None
    await confirmations.verify_user(user["id"], issued.token)
    paid, unpaid = await walk.create_order(world, user["id"]), await walk.create_order(world, user["id"])
    await walk.pay(world, paid)
    await walk.pay(world, unpaid, walk.WITHOUT_FUNDS)
    await world.deliver()
    orders = world.client("order-service")
    path = f"/api/orders/{paid['id']}"
    walk.answered(await orders.put(f"{path}/status", json={"status": "processing"}))
    walk.answered(await orders.post(f"{path}/cancel"))
    await world.deliver()


async def test_every_event_keeps_to_its_schema(world: World) -> None:
    overheard = Overheard()
    for database in world.runtime.databases.values():
        database.listeners.append(overheard)
    await tell_everything(world)
    messages = (await described(world))["components"]["messages"]
    told = set()
    for event in overheard.events:
        if event.event_type() in messages:
            wire = json.loads(json.dumps(to_wire(new_id(), event, datetime.now(UTC))))
            jsonschema_rs.validate(messages[event.event_type()]["payload"], wire, validate_formats=True)
            told.add(event.event_type())
    assert told == set(messages), "the walk tells them all"


async def test_a_message_that_is_not_the_event_does_not_keep_to_the_schema(world: World) -> None:
    messages = (await described(world))["components"]["messages"]
    for message in messages.values():
        payload, [example] = message["payload"], message["examples"]
        jsonschema_rs.validate(payload, example["payload"], validate_formats=True)
        for wrong in (
            {**example["payload"], "event_type": "something_else"},
            {**example["payload"], "data": {}},
            {**example["payload"], "occurred_at": "yesterday"},
            {name: value for name, value in example["payload"].items() if name != "event_id"},
        ):
            assert not jsonschema_rs.is_valid(payload, wrong, validate_formats=True)


async def test_the_documented_events_have_the_documented_fields(world: World) -> None:
    messages = (await described(world))["components"]["messages"]
    assert set(messages) == set(DOCUMENTED) | ADDED
    for name, (top, data) in DOCUMENTED.items():
        properties = messages[name]["payload"]["properties"]
        assert set(properties) == top | ENVELOPE, name
        assert set(properties["data"]["properties"]) == data, name
        assert properties["event_type"]["const"] == name


@pytest.mark.parametrize("service", SERVICES)
async def test_each_service_says_what_it_publishes_and_describes_all(world: World, service: str) -> None:
    document = await described(world, service)
    own = SERVICES[service]
    assert document["asyncapi"] == "3.0.0"
    assert list(document["operations"]) == [f"publish_{own}"]
    assert document["operations"][f"publish_{own}"]["channel"] == {"$ref": f"#/channels/{own}"}
    assert {channel["address"] for channel in document["channels"].values()} == set(SERVICES.values())
    for reference in references(document):
        assert reference.startswith("#/"), "nothing is fetched from elsewhere"
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


@pytest.mark.parametrize("service", SERVICES)
async def test_the_page_needs_nothing_else_and_shows_every_event(world: World, service: str) -> None:
    answer = await world.client(service).get("/asyncapi")
    assert answer.headers["content-security-policy"] == PAGE_POLICY
    assert "<script" not in answer.text
    assert "http" not in answer.text
    for name in (*DOCUMENTED, *ADDED):
        assert f'<h3 id="{name}">' in answer.text


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        inside = [reference for item in value.values() for reference in references(item)]
        return [value["$ref"], *inside] if "$ref" in value else inside
    return [reference for item in value for reference in references(item)] if isinstance(value, list) else []
