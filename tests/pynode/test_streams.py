"""Answers that grow over HTTP: what streams and plain answers say. (Cut and taken up: tests/faults/pynode.)"""

from typing import Any

import httpx2

from tests.fakes.model_server import ModelServer
from tests.pynode.events import Event, events
from tests.pynode.talking import Served


async def heard(client: httpx2.AsyncClient, method: str, path: str, **options: Any) -> list[Event]:
    """All events of one answer."""
    async with client.stream(method, path, **options) as answer:
        assert answer.status_code == 200, await answer.aread()
        return [event async for event in events(answer)]


async def test_a_stream_ends_with_what_the_plain_answer_says(served: Served) -> None:
    user = await served.world.user("pynode")
    async with httpx2.AsyncClient(base_url=served.url, headers=user.client.headers) as client:
        plain = (await client.post("/api/chat", json={"message": "Hello"})).json()
        begun, *deltas, done = await heard(client, "POST", "/api/chat", json={"message": "Hello", "stream": True})
        assert (begun.name, begun.id, done.name, done.id) == ("start", "0", "done", "end")
        assert "".join(delta.data["text"] for delta in deltas) == plain["message"]
        assert [int(delta.id) for delta in deltas][-1] == len(plain["message"])
        assert begun.data["id"] == done.data["id"]
        assert done.data["usage"] == plain["usage"]
        stored = (await client.get(f"/api/chat/messages/{begun.data['id']}")).json()
        assert (stored["status"], stored["response"]) == ("completed", plain["message"])


async def test_a_stream_that_fails_ends_with_the_documented_error(modelled: Served, upstream: ModelServer) -> None:
    user = await modelled.world.user("pynode")
    upstream.script("cut:2")
    async with httpx2.AsyncClient(base_url=modelled.url, headers=user.client.headers) as client:
        found = await heard(client, "POST", "/api/chat", json={"message": "Hello", "stream": True})
        assert (found[-1].name, found[-1].data["code"]) == ("error", "MODEL_UNAVAILABLE")
        assert found[-1].data["error"] == "Service Unavailable"
        again = await heard(client, "GET", f"/api/chat/messages/{found[0].data['id']}/stream")
        assert again[-1].name == "error"
        assert (await client.get("/api/chat/history")).json()["total"] == 0
        stored = (await client.get(f"/api/chat/messages/{found[0].data['id']}")).json()
        assert (stored["status"], stored["error"], stored["response"]) == ("failed", "MODEL_UNAVAILABLE", None)


async def test_a_plain_answer_that_fails_has_the_documented_error(modelled: Served, upstream: ModelServer) -> None:
    user = await modelled.world.user("pynode")
    for behaviours, status, code in (
        (["fail:400"], 502, "MODEL_REFUSED"),
        (["cut:2"], 503, "MODEL_UNAVAILABLE"),
        (["fail:500"] * 3, 503, "MODEL_UNAVAILABLE"),
    ):
        upstream.script(*behaviours)
        answer = await user.client.post("/api/chat", json={"message": "Hello"})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json().keys() <= {"error", "message", "code", "retry_after"}
    assert (await user.client.get("/api/chat/history")).json()["total"] == 0


async def test_an_answer_goes_on_while_nobody_listens(modelled: Served, upstream: ModelServer) -> None:
    user = await modelled.world.user("pynode")
    upstream.script("held")
    async with httpx2.AsyncClient(base_url=modelled.url, headers=user.client.headers) as client:
        body = {"message": "one two three", "stream": True}
        async with client.stream("POST", "/api/chat", json=body) as answer:
            following = events(answer)
            begun, first = await anext(following), await anext(following)
        assert first.data == {"text": "You"}
        upstream.held.set()
        path = f"/api/chat/messages/{begun.data['id']}/stream"
        _, *rest, done = await heard(client, "GET", path, headers={"Last-Event-ID": first.id})
        assert "You" + "".join(delta.data["text"] for delta in rest) == "You said: one two three"
        assert done.name == "done"
        assert (await client.get(path, headers={"Last-Event-ID": done.id})).status_code == 204
        history = (await client.get("/api/chat/history")).json()
        assert [each["response"] for each in history["messages"]] == ["You said: one two three"]
