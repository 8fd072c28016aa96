"""Processes that share a database and Redis are one product: what one says, the other knows on the next request."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import factories
from tests.factories import PASSWORD
from tests.processes import Server, command
from tests.security.crowd import CROWD, at_once, rounds, statuses

ADMIN = "admin@example.com"
NO_LIMITS = {"BEDPLATE_RATE_LIMIT_ENABLED": "false"}


@dataclass
class Pair:
    """Two processes, a client of each, and an administrator's token for each system."""

    servers: tuple[Server, Server]
    clients: tuple[httpx2.AsyncClient, httpx2.AsyncClient]
    admin: dict[str, str]


@asynccontextmanager
async def two(folder: Path, **settings: str) -> AsyncIterator[Pair]:
    text = f"{PASSWORD}\n"
    made = await asyncio.to_thread(
        command, folder, "admin", "create", ADMIN, "--username", "boss", "--password-stdin", text=text, **settings
    )
    assert made.returncode == 0, made.stderr
    async with AsyncExitStack() as stack:
        servers = tuple(stack.enter_context(Server(folder, "up", **settings, **NO_LIMITS)) for _ in range(2))
        clients = [await stack.enter_async_context(server.client()) for server in servers]
        admin = {
            system: (await enter(clients[0], system, ADMIN)).json()["access_token"]
            for system in ("cobalt", "pantstack")
        }
        yield Pair((servers[0], servers[1]), (clients[0], clients[1]), admin)


@pytest.fixture(params=["postgres+redis", "sqlite"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """On servers, or on one SQLite file, where each process sees the other's commits in the file."""
    settings = {}
    if request.param == "postgres+redis":
        settings["DATABASE_URL"] = request.getfixturevalue("empty_postgres")
        settings["REDIS_URL"] = request.getfixturevalue("empty_redis")
    async with two(tmp_path, **settings) as opened:
        yield opened


on_servers = pytest.mark.parametrize("pair", ["postgres+redis"], indirect=True)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def enter(client: httpx2.AsyncClient, system: str, email: str) -> httpx2.Response:
    login = {"cobalt": "/cobalt/api/auth/login", "pantstack": "/pantstack/api/v1/auth/login"}[system]
    answer = await client.post(login, json={"username": email, "email": email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return answer


async def join(client: httpx2.AsyncClient) -> tuple[str, str]:
    """The e-mail address and the public id of a new account."""
    email = factories.email()
    answer = await client.post("/pantstack/api/v1/users", json={"email": email, "name": "A", "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return email, str(answer.json()["id"])


async def remembered(pair: Pair, path: str, token: str) -> None:
    """Both processes know whose token it is, and answer from memory if they do."""
    for client in (*pair.clients, *pair.clients):
        assert (await client.get(path, headers=bearer(token))).status_code == 200


@rounds(10)
async def test_what_one_process_ends_the_other_refuses_on_the_next_request(pair: Pair, rounds: int) -> None:
    slowest = 0.0
    for number in range(rounds):
        here, there = pair.clients if number % 2 else pair.clients[::-1]
        email, public_id = await join(here)
        cobalt = (await enter(here, "cobalt", email)).json()["access_token"]
        found = await here.get(
            "/cobalt/api/admin/users", params={"search": email}, headers=bearer(pair.admin["cobalt"])
        )
        account = found.json()["users"][0]["id"]
        me, own = "/cobalt/api/auth/me", f"/pantstack/api/v1/users/{public_id}"

        await remembered(pair, me, cobalt)
        began = time.monotonic()
        path = f"/cobalt/api/admin/users/{account}/disable"
        assert (await here.patch(path, headers=bearer(pair.admin["cobalt"]))).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        assert (await there.get(me, headers=bearer(cobalt))).status_code == 401
        path = f"/cobalt/api/admin/users/{account}/enable"
        assert (await there.patch(path, headers=bearer(pair.admin["cobalt"]))).status_code == 200

        entered = (await enter(there, "pantstack", email)).json()["access_token"]
        other = (await enter(here, "pantstack", email)).json()["access_token"]
        await remembered(pair, own, entered)
        assert (await here.put(own, json={"password": PASSWORD}, headers=bearer(other))).status_code == 200
        assert (await there.get(own, headers=bearer(entered))).status_code == 401

        await remembered(pair, own, other)
        assert (await here.post("/pantstack/api/v1/auth/logout", headers=bearer(other))).status_code == 204
        assert (await there.get(own, headers=bearer(other))).status_code == 401

        last = (await enter(here, "pantstack", email)).json()["access_token"]
        await remembered(pair, own, last)
        assert (await here.delete(own, headers=bearer(pair.admin["pantstack"]))).status_code == 204
        assert (await there.get(own, headers=bearer(last))).status_code == 404
        assert (await there.put(own, json={"name": "B"}, headers=bearer(last))).status_code == 401
    print(f"{rounds} rounds, slowest disable {slowest * 1000:.0f} ms")


@on_servers
async def test_maintenance_of_one_process_is_maintenance_of_the_other(pair: Pair) -> None:
    here, there = pair.clients
    path, admin = "/pantstack/api/v1/admin/maintenance", bearer(pair.admin["pantstack"])
    for enabled, expected in ((True, 503), (False, 200)) * 5:
        assert (await here.post(path, json={"enabled": enabled}, headers=admin)).status_code == 200
        assert (await there.get("/pantstack/api/v1/users", headers=admin)).status_code == expected
        here, there = there, here


@on_servers
async def test_two_processes_make_one_child_of_one_refresh_token(pair: Pair) -> None:
    email, _ = await join(pair.clients[0])
    token = (await enter(pair.clients[1], "pantstack", email)).json()["refresh_token"]
    for _ in range(5):

        async def refresh(index: int, token: str = token) -> httpx2.Response:
            return await pair.clients[index % 2].post("/pantstack/api/v1/auth/refresh", headers=bearer(token))

        answers = await at_once(refresh)
        assert statuses(answers) == {200: CROWD}
        children = {answer.json()["refresh_token"] for answer in answers}
        assert len(children) == 1
        token = children.pop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("names", "workers"), [(("cobalt", "pantstack", "cobalt"), 1), (("pantstack",), 4)])
async def test_processes_that_share_redis_admit_exactly_the_limit(
    tmp_path: Path, empty_postgres: str, empty_redis: str, names: tuple[str, ...], workers: int
) -> None:
    settings = {"DATABASE_URL": empty_postgres, "REDIS_URL": empty_redis}
    async with AsyncExitStack() as stack:
        arguments = ("--workers", str(workers))
        servers = [stack.enter_context(Server(tmp_path, "serve", each, *arguments, **settings)) for each in names]
        limits = {"cobalt": ("POST", "/api/auth/login", 5, 900), "pantstack": ("GET", "/api/v1/users/usr_1", 100, 60)}
        for system in sorted(set(names)):
            method, path, limit, window = limits[system]
            address = f"127.0.0.{factories.number() % 200 + 2}"
            ours = [server for server, name in zip(servers, names, strict=True) if name == system]
            began = time.monotonic()

            async def knock(index: int, s: Any = ours, m: str = method, p: str = path, a: str = address) -> Any:
                async with s[index % len(s)].client(a) as client:  # a connection each, so that every worker gets some
                    return await client.request(m, p, headers={"X-Forwarded-For": f"198.51.100.{index}"})

            answers = await at_once(knock, limit + CROWD)
            assert statuses(answers)[429] == CROWD, statuses(answers)
            passed = time.monotonic() - began
            waits = [int(answer.headers["retry-after"]) for answer in answers if answer.status_code == 429]
            assert window - passed - 1 <= min(waits) <= max(waits) <= window


@pytest.mark.timeout(120)
async def test_only_a_trusted_proxy_is_believed_whom_it_speaks_for(tmp_path: Path) -> None:
    async def knock(server: Server, claimed: str, address: str) -> int:
        async with server.client(address) as client:
            return (await client.post("/api/auth/login", headers={"X-Forwarded-For": claimed})).status_code

    with Server(tmp_path, "serve", "cobalt", BEDPLATE_TRUSTED_PROXIES="127.0.0.9") as server:
        through_the_proxy = [await knock(server, "198.51.100.1", "127.0.0.9") for _ in range(6)]
        assert through_the_proxy == [400] * 5 + [429]
        assert await knock(server, "198.51.100.2", "127.0.0.9") == 400
        assert await knock(server, "203.0.113.1, 198.51.100.1", "127.0.0.9") == 429  # what the client itself claimed
        from_elsewhere = [await knock(server, f"198.51.100.{number}", "127.0.0.8") for number in range(10, 16)]
        assert from_elsewhere == [400] * 5 + [429]


async def test_every_refusal_is_found_in_the_log_by_its_request_id(tmp_path: Path) -> None:
    with Server(tmp_path, "serve", "pantstack", **NO_LIMITS) as server:
        async with server.client() as client:
            answers = [
                await client.get("/api/v1/users"),
                await client.get("/nowhere"),
                await client.put("/health"),
                await client.post("/api/v1/users", content=b"{", headers={"Content-Type": "application/json"}),
                await client.post("/api/v1/users", json={"email": "x"}),
                await client.post("/api/v1/auth/login", json={"email": "a@example.com", "password": "wrong password"}),
                await client.post("/api/v1/users", content=b" " * 2_000_000),
                await client.get("/api/v1/users/usr_1", headers={"X-Request-ID": "chosen-by-the-client"}),
            ]
        ids = [answer.json()["request_id"] for answer in answers]
        assert all(answer.status_code >= 400 for answer in answers)
        assert len(set(ids)) == len(ids) and ids[-1] == "chosen-by-the-client"
        # Lines are written after the answers: the last of them may still be on its way.
        deadline = time.monotonic() + 10.0
        while not all(request_id in server.log for request_id in ids) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        logged = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    for answer, request_id in zip(answers, ids, strict=True):
        assert [line["status"] for line in logged if line.get("request_id") == request_id] == [answer.status_code]
    assert re.search(r"traceback", json.dumps(logged), re.IGNORECASE) is None
