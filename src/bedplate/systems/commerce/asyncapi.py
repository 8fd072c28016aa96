"""Commerce API documentation: Event Schemas, as an AsyncAPI 3.0 document and as a page that needs no other host.

Both are made from the event classes: what is published cannot differ from what is said here.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import TypeAdapter
from starlette.responses import HTMLResponse, Response

from bedplate import __version__
from bedplate.kernel.events import Event
from bedplate.kernel.pages import PAGE_POLICY
from bedplate.modules.identity.events import UserCreated, UserUpdated, UserVerified
from bedplate.modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated, OrderStatusChanged
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed, PaymentRefunded

USER_EVENTS = (UserCreated, UserVerified, UserUpdated)
ORDER_EVENTS = (OrderCreated, OrderConfirmed, OrderStatusChanged, OrderCancelled)
PAYMENT_EVENTS = (PaymentCompleted, PaymentFailed, PaymentRefunded)
EVENTS: Sequence[type[Event]] = (*USER_EVENTS, *ORDER_EVENTS, *PAYMENT_EVENTS)

MOMENT = "2023-01-01T00:00:00Z"
ITEM: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "product_id": {"type": "string", "examples": ["prod-1"]},
        "quantity": {"type": "integer", "minimum": 1, "examples": [2]},
        "price": {"type": "number", "examples": [29.99]},
    },
    "required": ["product_id", "quantity", "price"],
}
# What the types of the classes do not say, by name of the field.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "event_id": {"format": "uuid", "examples": ["01890000-0000-7000-8000-000000000001"]},
    "user_id": {"format": "uuid", "examples": ["550e8400-e29b-41d4-a716-446655440001"]},
    "order_id": {"examples": ["order-123"]},
    "payment_id": {"examples": ["pay-456"]},
    "refund_id": {"examples": ["ref-12"]},
    "transaction_id": {"examples": ["txn-789"]},
    "email": {"format": "email", "examples": ["user@example.com"]},
    "username": {"examples": ["username"]},
    "fields": {"examples": [["first_name", "phone"]]},
    "items": {"items": ITEM, "examples": [[{"product_id": "prod-1", "quantity": 2, "price": 29.99}]]},
    "total_amount": {"examples": [75.48]},
    "amount": {"examples": [75.48]},
    "currency": {"examples": ["USD"]},
    "previous_status": {"examples": ["confirmed"]},
    "status": {"examples": ["processing"]},
    "reason": {"examples": ["Insufficient funds"]},
    "error_code": {"examples": ["INSUFFICIENT_FUNDS"]},
}
ENVELOPE: Mapping[str, Mapping[str, Any]] = {
    "event_id": {"type": "string", "description": "The same whenever the event is delivered again."},
    "event_type": {"type": "string"},
    "occurred_at": {"type": "string"},
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 56rem; margin: 3rem auto; padding: 0 1rem; color: #1c2733 }}
table {{ border-collapse: collapse }} th, td {{ text-align: left; padding: .2rem 1rem .2rem 0 }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid }} pre {{ padding: .8rem; overflow-x: auto }}
code, pre {{ background: #eef1f4; border-radius: .2rem }} code {{ padding: .1rem .3rem }} a {{ color: #0b5cad }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14181d; color: #dce3ea }}
code, pre {{ background: #232a32 }} a {{ color: #7db7ee }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{description} This service publishes {published}. The
<a href="asyncapi.json">AsyncAPI document</a> is for programs.</p>
{channels}
</body>
</html>
"""
CHANNEL = "<h2>{address}</h2>\n{messages}"
MESSAGE = """<h3 id="{name}"><code>{name}</code></h3>
<p>{description}</p>
<table>
<tr><th>field</th><th>type</th></tr>
{fields}
</table>
<pre>{example}</pre>
"""
FIELD = "<tr><td><code>{name}</code></td><td>{type}</td></tr>"


PATH = "/asyncapi"


def event_routes(service: str, says: Sequence[type[Event]]) -> APIRouter:
    """`/asyncapi.json` and `/asyncapi`. Made when somebody looks: a process starts the sooner."""
    router = APIRouter()
    made = cache(lambda: document(service, says))
    written = cache(lambda: page(made()))

    @router.get("/asyncapi.json", include_in_schema=False)
    async def asyncapi_json() -> Response:
        return Response(orjson.dumps(made()), media_type="application/json")

    @router.get("/asyncapi", include_in_schema=False)
    async def asyncapi_page() -> Response:
        return HTMLResponse(written(), headers={"content-security-policy": PAGE_POLICY})

    return router


def document(service: str, says: Sequence[type[Event]]) -> dict[str, Any]:
    """The AsyncAPI document of a service that says these events; it describes those of its neighbours as well."""
    topics = sorted({event.topic for event in EVENTS})
    members = {topic: [event for event in EVENTS if event.topic == topic] for topic in topics}
    own = {event.topic for event in says}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"Commerce events, {service}",
            "version": __version__,
            "description": "Delivered at least once, in order for each key; consumers know a repeat by its event_id.",
        },
        "defaultContentType": "application/json",
        "channels": {topic: _channel(topic, events) for topic, events in members.items()},
        "operations": {f"publish_{topic}": _operation(topic, members[topic]) for topic in topics if topic in own},
        "components": {"messages": {event.event_type(): _message(event) for event in EVENTS}},
    }


def _channel(topic: str, events: Sequence[type[Event]]) -> dict[str, Any]:
    names = [event.event_type() for event in events]
    return {"address": topic, "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names}}


def _operation(topic: str, events: Sequence[type[Event]]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/{topic}/messages/{event.event_type()}"} for event in events]
    return {"action": "send", "channel": {"$ref": f"#/channels/{topic}"}, "messages": messages}


def _message(event: type[Event]) -> dict[str, Any]:
    name, payload = event.event_type(), _payload(event)
    written = event.__doc__ or ""
    described = {} if written.startswith(f"{event.__name__}(") else {"description": " ".join(written.split())}
    keyed = f"Ordered by {event.key_field}."
    return {
        "name": name,
        "title": event.__name__,
        "summary": keyed,
        **described,
        "contentType": "application/json",
        "payload": payload,
        "examples": [{"payload": _example(payload)}],
    }


def _payload(event: type[Event]) -> dict[str, Any]:
    """The schema of the wire form of `kernel/events.py`."""
    schema = TypeAdapter(event).json_schema()
    fields = {name: _field(name, each) for name, each in schema["properties"].items()}
    top = event.top_fields()
    data = {name: each for name, each in fields.items() if name not in top}
    envelope = {name: _field(name, each) for name, each in ENVELOPE.items()}
    envelope["event_type"] = {"type": "string", "const": event.event_type()}
    properties = {**envelope, **{name: fields[name] for name in top}}
    properties["data"] = {"type": "object", "properties": data, "required": list(data)}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _field(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    known = {"format": "date-time", "examples": [MOMENT]} if name.endswith("_at") else KNOWN.get(name, {})
    kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
    return {**kept, **known}


def _example(schema: Mapping[str, Any]) -> object:
    if "properties" in schema:
        return {name: _example(each) for name, each in schema["properties"].items()}
    return schema.get("const") or schema.get("examples", [None])[0]


def page(described: Mapping[str, Any]) -> str:
    """An AsyncAPI document that `document` has made, for people."""
    messages = described["components"]["messages"]
    channels = [
        CHANNEL.format(
            address=escape(channel["address"]),
            messages="\n".join(_shown(messages[name]) for name in channel["messages"]),
        )
        for channel in described["channels"].values()
    ]
    published = [operation["channel"]["$ref"].rpartition("/")[2] for operation in described["operations"].values()]
    return PAGE.format(
        title=escape(described["info"]["title"]),
        description=escape(described["info"]["description"]),
        published=escape(", ".join(published)),
        channels="\n".join(channels),
    )


def _shown(message: Mapping[str, Any]) -> str:
    properties = message["payload"]["properties"]
    rows = [(name, schema) for name, schema in properties.items() if name != "data"]
    rows += [(f"data.{name}", schema) for name, schema in properties["data"]["properties"].items()]
    example = orjson.dumps(message["examples"][0]["payload"], option=orjson.OPT_INDENT_2).decode()
    return MESSAGE.format(
        name=escape(message["name"]),
        description=_marked(" ".join(message[key] for key in ("description", "summary") if key in message)),
        fields="\n".join(FIELD.format(name=escape(name), type=escape(_kind(schema))) for name, schema in rows),
        example=escape(example),
    )


def _marked(text: str) -> str:
    """Names in backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _kind(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "items" in schema:
        inside = ", ".join(schema["items"].get("properties", {})) or schema["items"].get("type", "")
        return f"array of {inside}"
    return f"{schema['type']}, {schema['format']}" if "format" in schema else str(schema["type"])
