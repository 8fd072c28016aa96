"""A process that is told to stop while it answers: what can end in time does, the rest is failed, nothing is half."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.factories import PASSWORD, email
from tests.fakes.model_server import ModelServer
from tests.processes import Server

DRAIN_SECONDS = 3


def served(folder: Path, upstream: ModelServer) -> Server:
    settings = {"BEDPLATE_RATE_LIMIT_ENABLED": "false", "BEDPLATE_DRAIN_SECONDS": str(DRAIN_SECONDS)}
    return Server(folder, "serve", "pynode", **settings, OPENAI_BASE_URL=upstream.base_url, OPENAI_API_KEY="sk")


async def signed_up(client: httpx2.AsyncClient) -> dict[str, str]:
    account = {"email": email(), "password": PASSWORD, "name": "Ada"}
    made = await client.post("/api/auth/register", json=account)
    assert made.status_code == 201
    client.headers["Authorization"] = f"Bearer {made.json()['access_token']}"
    return {"Authorization": client.headers["Authorization"]}


async def asked(upstream: ModelServer, count: int) -> None:
    async with asyncio.timeout(10):
        while len(upstream.requests) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def shut(server: Server) -> None:
    """As soon as it takes no new connections: it has begun to stop."""
    async with asyncio.timeout(10):
        while True:
            try:
                opening = asyncio.open_connection("127.0.0.1", server.port)
                _, writer = await asyncio.wait_for(opening, 0.2)
            except (OSError, TimeoutError):
                return
            writer.close()


async def history(server: Server, headers: dict[str, str]) -> list[dict[str, Any]]:
    async with server.client(headers=headers) as client:
        found: list[dict[str, Any]] = (await client.get("/api/chat/history")).json()["messages"]
        return found


@pytest.mark.parametrize("listening", [True, False], ids=["with its client", "with nobody listening"])
async def test_an_answer_that_ends_in_time_is_kept(tmp_path: Path, upstream: ModelServer, listening: bool) -> None:
    upstream.script("held")
    with served(tmp_path, upstream) as server:
        async with server.client() as client:
            headers = await signed_up(client)
            asking = asyncio.create_task(client.post("/api/chat", json={"message": "Hello"}))
            await asked(upstream, 1)
            if not listening:
                asking.cancel()
                await asyncio.wait([asking])
            server.signal(signal.SIGTERM)
            await shut(server)
            upstream.held.set()
            if listening:
                answer = await asking
                assert (answer.status_code, answer.json()["message"]) == (200, "You said: Hello")
        assert await asyncio.to_thread(server.wait) == 0
    with served(tmp_path, upstream) as server:
        assert [message["response"] for message in await history(server, headers)] == ["You said: Hello"]


async def test_an_answer_that_does_not_is_failed_and_not_stored_as_one(tmp_path: Path, upstream: ModelServer) -> None:
    upstream.script("held", "held")
    with served(tmp_path, upstream) as server:
        async with server.client() as client:
            headers = await signed_up(client)
            body = {"message": "Hello", "stream": True}
            async with client.stream("POST", "/api/chat", json=body) as response:
                began = time.monotonic()
                server.signal(signal.SIGTERM)
                lines = []
                try:
                    async for line in response.aiter_lines():
                        lines.append(line)
                except httpx2.TransportError:
                    pass  # the server has given up this connection too
            assert "event: done" not in lines
            message_id = lines[[line.startswith("data: ") for line in lines].index(True)].split('"')[3]
        assert await asyncio.to_thread(server.wait) == 0
        # Connections and answers have the same time, not one after the other.
        assert time.monotonic() - began < 2 * DRAIN_SECONDS
    with served(tmp_path, upstream) as server:
        assert await history(server, headers) == []
        async with server.client(headers=headers) as client:
            found = (await client.get(f"/api/chat/messages/{message_id}")).json()
            assert (found["status"], found["response"]) == ("failed", None)
