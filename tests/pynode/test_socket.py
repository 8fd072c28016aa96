"""Dev-PyNode's WebSocket: the documented messages, errors that close nothing, and answers that are taken up again."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests import world as worlds
from tests.pynode.talking import Served, hear, hear_until, say, serving
from tests.security.test_forged_tokens import FORGERIES, claims_of

# For what is the same wherever the modules are.
in_one_process = pytest.mark.parametrize("world", ["sqlite"], indirect=True)


async def close_code(connection: Any, seconds: float = 15.0) -> int | None:
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    code: int | None = connection.close_code
    return code


async def test_the_documented_chat(served: Served) -> None:
    user = await served.world.user("pynode")
    async with served.connect(user.access_token) as connection:
        assert (await hear(connection))[0] == "auth_response"
        await say(connection, "chat", message="Hello, AI!", model="gpt-4")
        (_, begun), *deltas, (_, answer) = await hear_until(connection, "chat_response")
    assert answer["id"] == begun["id"]
    assert answer["model"] == "gpt-4"
    assert len(deltas) > 1
    assert "".join(delta["text"] for _, delta in deltas) == answer["message"]
    assert [delta["position"] for _, delta in deltas][-1] == len(answer["message"])
    history = (await user.client.get("/api/chat/history")).json()
    assert [(each["id"], each["response"]) for each in history["messages"]] == [(answer["id"], answer["message"])]


async def test_a_token_may_come_as_the_first_message(served: Served) -> None:
    user = await served.world.user("pynode")
    async with served.connect() as connection:
        await say(connection, "auth", token=user.access_token)
        kind, data = await hear(connection)
        assert (kind, data["user_id"]) == ("auth_response", user.id)
        await say(connection, "chat", message="Hello", ref="one")
        assert (await hear_until(connection, "chat_response"))[-1][1]["ref"] == "one"
    assert (await user.client.get("/api/chat/history")).json()["total"] == 1


async def test_whoever_shows_no_token_may_chat_and_nothing_is_kept(served: Served) -> None:
    user = await served.world.user("pynode")
    async with served.connect() as connection:
        await say(connection, "chat", message="Hello")
        answer = (await hear_until(connection, "chat_response"))[-1][1]
        assert answer["message"]
        await say(connection, "resume", id=answer["id"], position=0)
        assert (await hear(connection))[1]["code"] == "AUTHENTICATION_REQUIRED"
    assert (await user.client.get(f"/api/chat/messages/{answer['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "message"),
        ("{", "message"),
        ("[]", "message"),
        ("null", "message"),
        ('"chat"', "message"),
        ("{}", "type"),
        ('{"type": "dance"}', "type"),
        ('{"type": 5}', "type"),
        ('{"type": "chat"}', "data"),
        ('{"type": "chat", "data": []}', "data"),
        ('{"type": "chat", "data": {}}', "message"),
        ('{"type": "chat", "data": {"message": 5}}', "message"),
        ('{"type": "chat", "data": {"message": ""}}', "message"),
        ('{"type": "chat", "data": {"message": "a\\u0000"}}', "message"),
        ('{"type": "chat", "data": {"message": "a", "model": "gpt-none"}}', "model"),
        ('{"type": "chat", "data": {"message": "a", "temperature": 3}}', "temperature"),
        ('{"type": "chat", "data": {"message": "a", "temperature": NaN}}', "temperature"),
        ('{"type": "resume", "data": {"id": "x", "position": -1}}', "position"),
        ('{"type": "auth", "data": {}}', "token"),
    ],
)
@in_one_process
async def test_what_is_wrong_is_told_and_closes_nothing(served: Served, text: str, field: str) -> None:
    async with served.connect() as connection:
        await connection.send(text)
        kind, data = (await hear_until(connection, "error"))[-1]
        assert (kind, data["code"], data["message"]) == ("error", "INVALID_PARAMETERS", "Invalid request parameters")
        assert data["details"]["field"] == field
        await say(connection, "ping")
        assert await hear(connection) == ("pong", {})


async def test_a_bad_token_closes_nothing_and_opens_nothing(served: Served) -> None:
    user = await served.world.user("pynode")
    for token in ("nonsense", user.refresh_token, user.access_token[:-2]):
        async with served.connect(token) as connection:
            assert (await hear(connection))[1]["code"] == "AUTHENTICATION_REQUIRED"
            await say(connection, "resume", id="chat-0")
            assert (await hear(connection))[1]["code"] == "AUTHENTICATION_REQUIRED"


async def test_no_forged_token_opens_a_socket(closed: Served) -> None:
    user = await closed.world.user("pynode")
    claims = claims_of(user.access_token)
    for name, forge in FORGERIES:
        token = forge(user.access_token, claims)
        async with closed.connect() as connection:
            with contextlib.suppress(ConnectionClosed):  # a message over the limit
                await say(connection, "auth", token=token)
                kind, data = await hear(connection)
                assert (kind, data["code"]) in (
                    ("error", "AUTHENTICATION_REQUIRED"),
                    ("error", "INVALID_PARAMETERS"),
                ), name
            assert await close_code(connection, 5.0) in (1008, 1009), name
    async with closed.connect(user.access_token) as connection:
        assert (await hear(connection))[0] == "auth_response"


async def test_an_answer_of_another_cannot_be_taken_up(served: Served) -> None:
    owner, thief = await served.world.user("pynode"), await served.world.user("pynode")
    message = (await owner.client.post("/api/chat", json={"message": "secret"})).json()
    async with served.connect(thief.access_token) as connection:
        await hear(connection)
        for identifier in (message["id"], "chat-01890000-0000-7000-8000-000000000000", "nothing"):
            await say(connection, "resume", id=identifier)
            assert (await hear(connection))[1]["code"] == "RESOURCE_NOT_FOUND"
        await say(connection, "chat", message="go on", conversation_id=message["conversation_id"])
        assert (await hear(connection))[1]["code"] == "RESOURCE_NOT_FOUND"
        await say(connection, "auth", token=owner.access_token)
        assert (await hear(connection))[1]["code"] == "AUTHENTICATION_REQUIRED"


async def test_an_answer_is_taken_up_where_it_was_cut(served: Served) -> None:
    user = await served.world.user("pynode")
    async with served.connect(user.access_token) as connection:
        await hear(connection)
        await say(connection, "chat", message="Tell me everything")
        (_, begun), (_, first) = [await hear(connection), await hear(connection)]
    async with served.connect(user.access_token) as connection:
        await hear(connection)
        await say(connection, "resume", id=begun["id"], position=first["position"])
        *deltas, (_, answer) = await hear_until(connection, "chat_response")
    rest = "".join(delta["text"] for _, delta in deltas)
    assert first["text"] + rest == answer["message"]
    stored = (await user.client.get(f"/api/chat/messages/{begun['id']}")).json()
    assert stored["response"] == answer["message"]


async def test_an_answer_long_finished_comes_as_it_was_stored(served: Served) -> None:
    user = await served.world.user("pynode")
    message = (await user.client.post("/api/chat", json={"message": "Hello"})).json()
    served.world.clock.advance(3000)
    async with served.connect(user.access_token) as connection:
        await hear(connection)
        await say(connection, "resume", id=message["id"], position=7)
        *deltas, (_, answer) = await hear_until(connection, "chat_response")
    assert "".join(delta["text"] for _, delta in deltas) == message["message"][7:]
    assert answer["message"] == message["message"]
    assert answer["usage"] == message["usage"]


async def test_several_answers_grow_at_once(served: Served) -> None:
    user = await served.world.user("pynode")
    async with served.connect(user.access_token) as connection:
        await hear(connection)
        for number in range(4):
            await say(connection, "chat", message=f"question {number}", ref=str(number))
        answers: dict[str, str] = {}
        texts: dict[str, str] = {}
        while len(answers) < 4:
            kind, data = await hear(connection)
            if kind == "chat_delta":
                texts[data["id"]] = texts.get(data["id"], "") + data["text"]
            elif kind == "chat_response":
                answers[data["ref"]] = data["message"]
                assert texts[data["id"]] == data["message"]
    assert answers.keys() == {"0", "1", "2", "3"}


async def test_a_session_that_ends_closes_its_sockets(served: Served) -> None:
    user = await served.world.user("pynode")
    other = await served.world.user("pynode")
    async with served.connect(user.access_token) as ending, served.connect(other.access_token) as staying:
        await hear(ending)
        await hear(staying)
        assert (await user.client.post("/api/auth/logout")).status_code == 200
        await say(ending, "chat", message="still me")
        assert (await hear(ending))[1]["code"] == "AUTHENTICATION_REQUIRED"
        assert await close_code(ending) == 1008
        await say(staying, "ping")
        assert await hear(staying) == ("pong", {})


@in_one_process
async def test_a_token_that_runs_out_closes_its_socket_unless_there_is_a_new_one(served: Served) -> None:
    user = await served.world.user("pynode")
    renewing = await served.world.user("pynode")
    async with served.connect(user.access_token) as ending, served.connect(renewing.access_token) as staying:
        await hear(ending)
        await hear(staying)
        served.world.clock.advance(3000)
        refreshed = await renewing.client.post("/api/auth/refresh", json={"refresh_token": renewing.refresh_token})
        await say(staying, "auth", token=refreshed.json()["access_token"])
        assert (await hear(staying))[0] == "auth_response"
        served.world.clock.advance(601)
        assert await close_code(ending) == 1008
        await say(staying, "chat", message="still here")
        assert (await hear_until(staying, "chat_response"))[-1][1]["message"]


async def test_a_user_has_twenty_sockets(served: Served) -> None:
    user = await served.world.user("pynode")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            connection = await stack.enter_async_context(served.connect(user.access_token))
            assert (await hear(connection))[0] == "auth_response"
        one_more = await stack.enter_async_context(served.connect(user.access_token))
        assert await close_code(one_more) == 1013


@pytest.mark.limits
async def test_chats_on_the_socket_count_like_any_other_request(served: Served) -> None:
    async with served.connect() as connection:
        for _ in range(10):
            await say(connection, "chat", message="Hello")
            await hear_until(connection, "chat_response")
        await say(connection, "chat", message="Hello", ref="r")
        kind, data = await hear(connection)
        assert (kind, data["code"], data["message"]) == ("error", "RATE_LIMIT_EXCEEDED", "Rate limit exceeded")
        assert 0 < data["retry_after"] <= 900
        assert data["ref"] == "r"
        await say(connection, "ping")
        assert await hear(connection) == ("pong", {})
    async with served.world.client("pynode") as client:
        assert (await client.get("/api/chat/history")).status_code == 429


async def test_pages_of_other_origins_are_refused(served: Served) -> None:
    user = await served.world.user("pynode")
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost:3000", 101),
        (served.url, 101),
        ("http://127.0.0.1:3001", 101),  # the same system on its other port
        ("http://localhost:3001", 101),
        ("http://127.0.0.1:3002", 403),
        ("http://evil.example:3001", 403),
        ("http://127.0.0.1:port", 403),
    ):
        connecting = served.connect(user.access_token, additional_headers={"Origin": origin})
        try:
            async with connecting:
                found = 101
        except Exception as refused:
            found = refused.response.status_code  # type: ignore[attr-defined]
        assert found == status, origin


@pytest.fixture
async def closed(tmp_path: Path, sqlite_template: Path) -> Any:
    """Where everybody has to show a token."""
    async with (
        worlds.embedded(tmp_path, sqlite_template, rate_limit_enabled=False, ws_require_auth=True) as world,
        serving(world) as running,
    ):
        yield running


async def test_whoever_shows_no_token_is_sent_away_within_five_seconds(closed: Served) -> None:
    async with closed.connect() as silent, closed.connect() as talking, closed.connect("nonsense") as lying:
        assert await close_code(silent, 6.0) == 1008
        assert (await hear(lying))[1]["code"] == "AUTHENTICATION_REQUIRED"
        assert await close_code(lying, 1.0) == 1008
        assert await close_code(talking, 1.0) == 1008
    async with closed.connect() as connection:
        await say(connection, "chat", message="let me in")
        heard = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                heard.append(await hear(connection))
        assert [data["code"] for _, data in heard] == ["AUTHENTICATION_REQUIRED"]
        assert connection.close_code == 1008
    user = await closed.world.user("pynode")
    async with closed.connect() as connection:
        await say(connection, "auth", token=user.access_token)
        assert (await hear(connection))[0] == "auth_response"
        await say(connection, "chat", message="Hello")
        assert (await hear_until(connection, "chat_response"))[-1][1]["message"]
