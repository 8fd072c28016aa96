"""A stop loses nothing that was sent: SIGTERM and Ctrl-C under clients that keep their connections and never pause."""

import asyncio
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.processes import Server

CLIENTS = 32
WRITERS = 8
LONGEST_STOP_SECONDS = 10.0
PASSWORD = "SecurePass123!"


class History:
    """What clients saw. A request that was sent and got no whole answer is lost."""

    def __init__(self) -> None:
        self.sent = 0
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self.acknowledged: dict[int, int] = {}
        self.goal = 0
        self.reached = asyncio.Event()

    @property
    def answered(self) -> int:
        return self.statuses.total()

    def answer(self, status: int) -> None:
        self.statuses[status] += 1
        if self.answered >= self.goal:
            self.reached.set()


class Caller:
    """One client on one keep-alive connection. It reads and writes in turn, and obeys `Connection: close`."""

    def __init__(self, number: int, server: Server, token: str, user_id: str) -> None:
        self._number = number
        self._server = server
        self._token = token
        self._user_id = user_id
        self._turn = 0

    async def call_until_refused(self, history: History) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(self._server.host, self._server.port)
            except OSError:
                return
            try:
                while await self._call(reader, writer, history):
                    pass
            finally:
                writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, history: History) -> bool:
        """One request. Whether the connection may be used again."""
        self._turn += 1
        request, writes = self._request()
        history.sent += 1
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(line for line in head.splitlines() if line.startswith("content-length:"))
            await reader.readexactly(int(length.split(":")[1]))
        except (OSError, asyncio.IncompleteReadError) as error:
            history.lost.append(f"client {self._number}, request {self._turn}: {error!r}")
            return False
        status = int(head.split(" ", 2)[1])
        history.answer(status)
        if writes and status == 200:
            history.acknowledged[self._number] = self._turn
        return "connection: close" not in head

    def _request(self) -> tuple[bytes, bool]:
        """Reads, and of a writer each second time a write: its account's name becomes the number of the turn."""
        if self._number >= WRITERS or self._turn % 2:
            return self._raw("GET", "/cobalt/health" if self._turn % 3 else f"/pantstack{self._path}"), False
        body = json.dumps({"name": f"turn {self._turn}"}).encode()
        return self._raw("PUT", f"/pantstack{self._path}", body), True

    @property
    def _path(self) -> str:
        return f"/api/v1/users/{self._user_id}"

    def _raw(self, method: str, path: str, body: bytes = b"") -> bytes:
        lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {self._token}")
        typed = ("Content-Type: application/json", f"Content-Length: {len(body)}") if body else ()
        return "\r\n".join((*lines, *typed, "", "")).encode() + body


async def sign_up(server: Server, number: int) -> tuple[str, str]:
    """Access token and id of a new account."""
    account = {"email": f"caller{number}@example.com", "password": PASSWORD}
    async with server.client() as client:
        created = await client.post("/pantstack/api/v1/users", json={**account, "name": "turn 0"})
        granted = await client.post("/pantstack/api/v1/auth/login", json=account)
    return granted.json()["access_token"], created.json()["id"]


async def stop_under_load(server: Server, number: int, callers: list[Caller], history: History, at_least: int) -> float:
    """Seconds from the signal to the end of the process, which comes after `at_least` answers."""
    history.goal = history.answered + at_least
    history.reached.clear()
    calling = [asyncio.create_task(caller.call_until_refused(history)) for caller in callers]
    async with asyncio.timeout(60):
        await history.reached.wait()
    began = time.monotonic()
    server.signal(number)
    code = await asyncio.to_thread(server.wait)
    took = time.monotonic() - began
    async with asyncio.timeout(10):
        await asyncio.gather(*calling)
    assert code == 0, server.log[-2000:]
    return took


async def stops(folder: Path, number: int, times: int, answers: int, workers: int = 1) -> History:
    """Start, load and stop the same installation so many times, with so many answers altogether."""
    dice = random.Random(times)
    history = History()
    accounts: list[tuple[str, str]] = []
    slowest = 0.0
    for _ in range(times):
        with Server(folder, "up", "--workers", str(workers), BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
            if not accounts:
                accounts = await asyncio.gather(*(sign_up(server, each) for each in range(WRITERS)))
            callers = [Caller(each, server, *accounts[each % WRITERS]) for each in range(CLIENTS)]
            each = round(answers / times * dice.uniform(1.0, 1.2))
            slowest = max(slowest, await stop_under_load(server, number, callers, history, each))
    print(f"{times} stops, {history.sent} requests, {len(history.lost)} lost, slowest stop {slowest:.2f} s")
    assert slowest <= LONGEST_STOP_SECONDS
    await everything_acknowledged_is_there(folder, accounts, history)
    return history


async def everything_acknowledged_is_there(folder: Path, accounts: list[tuple[str, str]], history: History) -> None:
    with Server(folder, "up", BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
        for number, turn in history.acknowledged.items():
            token, user_id = accounts[number]
            async with server.client(headers={"Authorization": f"Bearer {token}"}) as client:
                name = (await client.get(f"/pantstack/api/v1/users/{user_id}")).json()["name"]
            # What was sent last may have been written without an answer to it only if it was lost.
            assert name == f"turn {turn}" or history.lost, f"client {number} was told {turn}, stored is {name!r}"


def assert_nothing_was_lost(history: History, at_least: int) -> None:
    assert history.lost == []
    assert set(history.statuses) == {200}
    assert history.sent == history.answered >= at_least


@pytest.mark.timeout(180)
async def test_a_terminated_server_answers_everything_that_was_sent(tmp_path: Path) -> None:
    assert_nothing_was_lost(await stops(tmp_path, signal.SIGTERM, times=10, answers=4_000), at_least=4_000)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_fifty_terminated_servers_answer_everything_that_was_sent(tmp_path: Path) -> None:
    assert_nothing_was_lost(await stops(tmp_path, signal.SIGTERM, times=50, answers=40_000), at_least=40_000)


@pytest.mark.timeout(180)
async def test_an_interrupted_server_answers_everything_that_was_sent(tmp_path: Path) -> None:
    assert_nothing_was_lost(await stops(tmp_path, signal.SIGINT, times=1, answers=400), at_least=400)


@pytest.mark.timeout(180)
async def test_two_terminated_workers_answer_everything_that_was_sent(tmp_path: Path) -> None:
    assert_nothing_was_lost(await stops(tmp_path, signal.SIGTERM, times=2, answers=800, workers=2), at_least=800)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_two_workers_terminated_fifty_times_answer_everything_that_was_sent(tmp_path: Path) -> None:
    history = await stops(tmp_path, signal.SIGTERM, times=50, answers=40_000, workers=2)
    assert_nothing_was_lost(history, at_least=40_000)


async def test_an_idle_connection_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    with Server(tmp_path, "serve", "cobalt") as server:
        _, writer = await asyncio.open_connection(server.host, server.port)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        assert time.monotonic() - began < LONGEST_STOP_SECONDS
        writer.close()
