"""Chat completions a second, and what they take longer than the model: one process in front of an instant upstream.

The upstream is a process of its own that is asked over HTTP and streams its answer; it is measured by itself too. Every
answer is stored and counted, as for any user; OpenAI's door counts it and stores nothing. At last many sockets ask at
once.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
from websockets.asyncio.client import ClientConnection, connect

from benchmarks import deployments, servers
from benchmarks.deployments import PASSWORD
from benchmarks.load import Load, Traffic
from benchmarks.load import measure as measured
from benchmarks.points import BARE, request
from benchmarks.servers import ROOT, Server

NAMES = ("sqlite-1", "postgres-1")
CONNECTIONS = (1, 4, 32, 128)
WORDS = 20
USERS = 8
SOCKETS = 160
OF_ONE = SOCKETS // USERS
ROUNDS = 5
QUESTION = "Hello, how can you help me with my work today?"


def measure(name: str, folder: Path, seconds: float, step: Callable[[str], None]) -> dict[str, Any]:
    """The upstream alone and the product in front of it, with few connections and many.

    Raises:
        deployments.Absent: it needs a server that does not answer.
    """
    with _upstream() as upstream, deployments.prepared(name, folder, 1) as deployment:
        environment = {**deployment.environment, "OPENAI_BASE_URL": upstream, "OPENAI_API_KEY": "sk-bench"}
        with servers.bare(folder, 1) as bare:
            step(f"{name}: bare route")
            route = measured(Load(bare.port, BARE, CONNECTIONS[-1], seconds / 4, seconds))
        [port] = servers.free_ports(1)
        with servers.service("pynode", port, folder, environment) as server:
            tokens = _tokens(server)
            alone, chats, door = _alone(upstream), _chats(server, tokens), _door(server, tokens)
            result: dict[str, Any] = {"bare_rate": route.rate, "loads": {}}
            for connections in CONNECTIONS:
                step(f"{name}: {connections} connections")
                result["loads"][connections] = _compare(server, upstream, alone, chats, connections, seconds)
            step(f"{name}: OpenAI's door")
            result["door"] = _compare(server, upstream, alone, door, CONNECTIONS[-1], seconds)
            step(f"{name}: {SOCKETS} sockets")
            result["fan"] = asyncio.run(_fan(server, tokens))
            result["memory_mb"] = server.memory()
    return result


def _compare(
    server: Server, upstream: str, alone: Traffic, chats: Traffic, connections: int, seconds: float
) -> dict[str, Any]:
    direct = measured(Load(urlsplit(upstream).port or 0, alone, connections, seconds / 4, seconds / 2))
    used = server.used()
    through = measured(Load(server.port, chats, connections, seconds / 4, seconds))
    return {
        "rate": through.rate,
        "p50_ms": through.p50_ms,
        "p99_ms": through.p99_ms,
        "upstream_p50_ms": direct.p50_ms,
        "upstream_p99_ms": direct.p99_ms,
        "added_p50_ms": through.p50_ms - direct.p50_ms,
        "added_p99_ms": through.p99_ms - direct.p99_ms,
        "server_us": (server.used() - used) / max(through.total, 1) * 1e6,
        "errors": {**direct.errors, **through.errors},
    }


def _alone(upstream: str) -> Traffic:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": QUESTION}]}
    answer = httpx2.post(f"{upstream}/chat/completions", json=body)
    answer.raise_for_status()
    return Traffic([request("POST", "/v1/chat/completions", body=body)], 200, [len(answer.content)])


def _tokens(server: Server) -> list[str]:
    """Of several users."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as http:
        accounts = [
            {"email": f"asker{number}@example.com", "password": PASSWORD, "name": f"Asker {number}"}
            for number in range(USERS)
        ]
        return [http.post("/api/auth/register", json=account).json()["access_token"] for account in accounts]


def _chats(server: Server, tokens: list[str]) -> Traffic:
    """Questions of several users, each a conversation of its own."""
    traffic = _traffic(server, tokens, "/api/chat", {"message": QUESTION, "model": "gpt-4"})
    # A time without microseconds is printed without them.
    return Traffic(traffic.requests, 200, sorted({*traffic.lengths, *(length - 7 for length in traffic.lengths)}))


def _door(server: Server, tokens: list[str]) -> Traffic:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": QUESTION}]}
    return _traffic(server, tokens, "/v1/chat/completions", body)


def _traffic(server: Server, tokens: list[str], path: str, body: dict[str, Any]) -> Traffic:
    lengths = set()
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as http:
        for token in tokens:
            answer = http.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
            if answer.status_code != 200:
                raise RuntimeError(f"POST {path} answered {answer.status_code}: {answer.text[:200]}")
            lengths.add(len(answer.content))
    return Traffic([request("POST", path, token, body) for token in tokens], 200, sorted(lengths))


async def _fan(server: Server, tokens: list[str]) -> dict[str, Any]:
    """All sockets ask at once, several times: answers and deltas a second, seconds until the last one is answered."""
    address = f"ws://127.0.0.1:{server.port}/ws?token="
    sockets = [await connect(address + token, compression=None) for token in tokens for _ in range(OF_ONE)]
    try:
        used, began = server.used(), time.perf_counter()
        slowest = 0.0
        deltas = 0
        for _ in range(ROUNDS):
            asked = time.perf_counter()
            deltas += sum(await asyncio.gather(*map(_ask, sockets)))
            slowest = max(slowest, time.perf_counter() - asked)
        seconds = time.perf_counter() - began
        answers = ROUNDS * len(sockets)
        return {
            "sockets": len(sockets),
            "answers_per_second": answers / seconds,
            "deltas_per_second": deltas / seconds,
            "slowest_round_seconds": slowest,
            "server_us_per_answer": (server.used() - used) / answers * 1e6,
        }
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))


async def _ask(socket: ClientConnection) -> int:
    """How many deltas came before the answer."""
    await socket.send(orjson.dumps({"type": "chat", "data": {"message": QUESTION, "model": "gpt-4"}}).decode())
    deltas = 0
    while True:
        async with asyncio.timeout(60):
            kind = orjson.loads(await socket.recv())["type"]
        if kind == "error":
            raise RuntimeError("a socket was answered with an error")
        if kind == "chat_response":
            return deltas
        deltas += kind == "chat_delta"


@contextmanager
def _upstream() -> Iterator[str]:
    """Where the model server of the tests answers at once."""
    command = [sys.executable, "-m", "tests.fakes.model_server", "--words", str(WORDS)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
