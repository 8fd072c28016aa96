"""Streams that are cut at random points and resumed: no gap and no repeat, on one process and across two."""

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.factories import PASSWORD, email
from tests.fakes.model_server import ModelServer
from tests.processes import Server

AT_ONCE = 50  # a user may have 64 answers under way
SIZES = [60, pytest.param(1_000, marks=pytest.mark.faults)]


@pytest.fixture(params=["one process", "two processes"])
def servers(request: pytest.FixtureRequest, tmp_path: Path, upstream: ModelServer) -> Iterator[list[Server]]:
    upstream.default = "words_each:0.004"
    settings = {"BEDPLATE_RATE_LIMIT_ENABLED": "false", "OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk"}
    count = 1
    if request.param == "two processes":
        count = 2
        settings["DATABASE_URL"] = request.getfixturevalue("empty_postgres")
        settings["REDIS_URL"] = request.getfixturevalue("empty_redis")
    with ExitStack() as stack:
        folders = [tmp_path / str(number) for number in range(count)]
        for folder in folders:
            folder.mkdir()
        # Started in a thread: the model server answers in this loop.
        yield [stack.enter_context(Server(folder, "serve", "pynode", **settings)) for folder in folders]


class Listener:
    """Asks a question and reads the answer, losing the connection now and then."""

    def __init__(self, clients: list[httpx2.AsyncClient], chance: random.Random) -> None:
        self._clients = clients
        self._chance = chance
        self.text = ""
        self.last_event_id = ""
        self.message_id = ""
        self.cuts = 0
        self.outcome: Any = None

    async def listen(self, question: str) -> None:
        body = {"message": question, "model": "gpt-4", "stream": True}
        await self._read("POST", "/api/chat", json=body)
        while self.outcome is None:
            headers = {"Last-Event-ID": self.last_event_id}
            await self._read("GET", f"/api/chat/messages/{self.message_id}/stream", headers=headers)

    async def _read(self, method: str, path: str, **request: Any) -> None:
        """Some events, then the connection is cut, in the middle of what is on its way."""
        left = self._chance.choice([1, 2, 3, 5, 8, 1000])
        async with self._chance.choice(self._clients).stream(method, path, **request) as response:
            assert response.status_code == 200, await response.aread()
            event: dict[str, str] = {}
            async for line in response.aiter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                    continue
                if event.get("data"):
                    self._take(event)
                    left -= 1
                event = {}
                if not left and self.outcome is None:
                    self.cuts += 1
                    return

    def _take(self, event: dict[str, str]) -> None:
        data = json.loads(event["data"])
        self.last_event_id = event["id"]
        if event["event"] == "start":
            self.message_id = data["id"]
            assert int(event["id"]) == len(self.text)
        elif event["event"] == "delta":
            self.text += data["text"]
            assert int(event["id"]) == len(self.text)
        else:
            self.outcome = (event["event"], data)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("streams", SIZES)
async def test_cut_streams_are_resumed_without_a_gap_or_a_repeat(servers: list[Server], streams: int) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(server.client()) for server in servers]
        await cut_and_resume(servers, clients, streams)


async def cut_and_resume(servers: list[Server], clients: list[httpx2.AsyncClient], streams: int) -> None:
    account = {"email": email(), "password": PASSWORD, "name": "Ada"}
    made = await clients[0].post("/api/auth/register", json=account)
    for client in clients:
        client.headers["Authorization"] = f"Bearer {made.json()['access_token']}"
    places = asyncio.Semaphore(AT_ONCE)
    chance = random.Random(streams)
    questions = [f"{number} " + "𝄞é word " * chance.randint(1, 12) for number in range(streams)]
    listeners = [Listener(clients, random.Random(number)) for number in range(streams)]

    async def listen(listener: Listener, question: str) -> None:
        async with places:
            await listener.listen(question)

    await asyncio.gather(*(listen(each, question) for each, question in zip(listeners, questions, strict=True)))
    wrong = [
        (listener.text, question, listener.outcome)
        for listener, question in zip(listeners, questions, strict=True)
        if listener.text != f"You said: {question.strip()}" or listener.outcome[0] != "done"
    ]
    told = [line for server in servers for line in server.log.splitlines() if '"level": "info"' not in line.lower()]
    assert wrong == [], "\n".join(told[-20:])
    assert sum(listener.cuts for listener in listeners) > streams
    history = (await clients[-1].get("/api/chat/history", params={"limit": 100})).json()
    assert history["total"] == streams
    assert {each["response"] for each in history["messages"]} <= {listener.text for listener in listeners}
