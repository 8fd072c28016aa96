"""Dev-PyNode as a process of its own: what its server bounds, and what a stop leaves behind."""

import asyncio
import contextlib
import signal
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from bedplate.kernel.frames import MAXIMUM_MESSAGE
from tests.factories import PASSWORD
from tests.fakes.model_server import ModelServer
from tests.processes import Server
from tests.pynode.talking import hear, hear_until, say

QUICK = {"BEDPLATE_RATE_LIMIT_ENABLED": "false"}


def signed_in(base: str) -> str:
    body = {"email": "user@example.com", "password": PASSWORD, "name": "User"}
    answer = httpx2.post(f"{base}/api/auth/register", json=body)
    if answer.status_code == 409:
        answer = httpx2.post(f"{base}/api/auth/login", json=body)
    return str(answer.json()["access_token"])


@pytest.mark.parametrize(("command", "mount"), [(("serve", "pynode"), ""), (("up",), "/pynode")])
async def test_the_socket_is_there_and_its_messages_are_bounded(
    tmp_path: Path, command: tuple[str, ...], mount: str
) -> None:
    with Server(tmp_path, *command, **QUICK) as server:
        token = await asyncio.to_thread(signed_in, f"{server.url}{mount}")
        address = f"ws://127.0.0.1:{server.port}{mount}/ws"
        async with connect(f"{address}?token={token}") as connection:
            assert connection.protocol.extensions == []  # nothing is compressed
            assert (await hear(connection))[0] == "auth_response"
            await say(connection, "chat", message="Hello")
            assert "Hello" in (await hear_until(connection, "chat_response"))[-1][1]["message"]
            with contextlib.suppress(ConnectionClosed):
                await connection.send("x" * (MAXIMUM_MESSAGE + 1))
                while True:
                    await connection.recv()
            assert connection.close_code == 1009
        with pytest.raises(Exception, match="403"):
            async with connect(address, additional_headers={"Origin": "https://evil.example"}):
                pass
        assert token not in server.log
        assert "Traceback" not in server.log


async def test_what_is_under_way_at_a_stop_is_finished_and_found_again(tmp_path: Path, upstream: ModelServer) -> None:
    model = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": upstream.base_url}
    with Server(tmp_path, "serve", "pynode", **QUICK, **model) as server:
        token = await asyncio.to_thread(signed_in, server.url)
        async with connect(f"ws://127.0.0.1:{server.port}/ws?token={token}") as connection:
            await hear(connection)
            upstream.script("held", "held")
            await say(connection, "chat", message="one two three", ref="kept")
            started = await hear_until(connection, "chat_delta")
            server.signal(signal.SIGTERM)
            asyncio.get_running_loop().call_later(0.5, upstream.held.set)
            answer = (await hear_until(connection, "chat_response"))[-1][1]
            assert (answer["message"], answer["ref"]) == ("You said: one two three", "kept")
            with contextlib.suppress(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1012
        assert await asyncio.to_thread(server.wait) == 0
        assert "Traceback" not in server.log
    with Server(tmp_path, "serve", "pynode", **QUICK, **model) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/ws?token={token}") as connection:
            await hear(connection)
            delta = started[-1][1]
            await say(connection, "resume", id=delta["id"], position=delta["position"])
            *rest, (_, again) = await hear_until(connection, "chat_response")
        assert delta["text"] + "".join(each["text"] for _, each in rest) == answer["message"] == again["message"]


async def test_an_answer_that_takes_longer_than_the_stop_is_told_to_have_failed(
    tmp_path: Path, upstream: ModelServer
) -> None:
    model = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": upstream.base_url, "BEDPLATE_DRAIN_SECONDS": "1"}
    with Server(tmp_path, "serve", "pynode", **QUICK, **model) as server:
        token = await asyncio.to_thread(signed_in, server.url)
        async with connect(f"ws://127.0.0.1:{server.port}/ws?token={token}") as connection:
            await hear(connection)
            upstream.script("held")
            await say(connection, "chat", message="one two three")
            identifier = (await hear_until(connection, "chat_delta"))[-1][1]["id"]
            server.signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await connection.recv()
            assert connection.close_code == 1012
        assert await asyncio.to_thread(server.wait) == 0
    with Server(tmp_path, "serve", "pynode", **QUICK, **model) as server:
        headers = {"Authorization": f"Bearer {token}"}
        async with server.client(headers=headers) as client:
            stored = (await client.get(f"/api/chat/messages/{identifier}")).json()
            assert (stored["status"], stored["error"]) == ("failed", "ANSWER_INTERRUPTED")
            assert (await client.get("/api/chat/history")).json()["total"] == 0
