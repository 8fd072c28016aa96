"""The Python client of Pantstack, against a served world."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn

from bedplate.clients.pantstack import APIClient, User
from bedplate.kernel import server
from bedplate.kernel.ids import prefixed
from bedplate.modules.identity.public import Users
from tests.factories import Account
from tests.world import World

COMPAT = Path(__file__).parents[2] / "compat"


@dataclass
class Service:
    """A Pantstack that is served on a port, and the world behind it."""

    url: str
    world: World

    def client(self, api_key: str | None) -> APIClient:
        return APIClient(self.url, api_key=api_key)


@pytest.fixture
async def service(world: World) -> AsyncIterator[Service]:
    listener = server.listen("127.0.0.1", 0)
    config = uvicorn.Config(world.served("pantstack"), lifespan="off", log_config=None, ws="none")
    serving = uvicorn.Server(config)
    task = asyncio.create_task(serving._serve(sockets=[listener]))
    yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", world)
    serving.should_exit = True
    await task


@pytest.fixture
async def client(service: Service) -> AsyncIterator[APIClient]:
    async with service.client(await service.world.service_key()) as made:
        yield made


@pytest.fixture
async def alice(world: World) -> Account:
    return await world.user("pantstack", name="Alice")


def public_id(account: Account) -> str:
    return prefixed("usr", account.id)


async def test_a_user_is_read_by_id(client: APIClient, alice: Account) -> None:
    user = await client.get_user(public_id(alice))
    assert isinstance(user, User)
    assert (user.id, user.email, user.name) == (public_id(alice), alice.email, "Alice")
    assert user.created_at.tzinfo is not None


async def test_an_unknown_user_is_none(client: APIClient) -> None:
    for user_id in (prefixed("usr", "0190b5c8-0000-7000-8000-000000000000"), "usr_123", "nonsense"):
        assert await client.get_user(user_id) is None


async def test_an_id_cannot_lead_to_another_path(client: APIClient, alice: Account) -> None:
    for user_id in ("../users", f"../../v1/users/{public_id(alice)}", "a/b", "a?limit=1", "a#b", "%2e%2e", "ä b"):
        assert await client.get_user(user_id) is None, user_id


async def test_a_wrong_key_raises(service: Service, alice: Account) -> None:
    for key in ("wrong", None):
        async with service.client(key) as client:
            for attempt in (client.get_user(public_id(alice)), client.list_users()):
                with pytest.raises(httpx2.HTTPStatusError) as raised:
                    await attempt
                assert raised.value.response.status_code == 401


async def test_the_key_may_come_from_the_environment(
    service: Service, alice: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANTSTACK_API_KEY", await service.world.service_key())
    async with service.client(None) as client:
        assert await client.get_user(public_id(alice)) is not None


async def test_users_are_listed_newest_first_in_parts(service: Service, client: APIClient, alice: Account) -> None:
    bob = await service.world.user("pantstack", name="Bob")
    assert [user.id for user in await client.list_users()] == [public_id(bob), public_id(alice)]
    assert [user.id for user in await client.list_users(limit=1, offset=1)] == [public_id(alice)]


async def test_a_user_is_verified_by_a_valid_token_of_that_very_user(
    service: Service, client: APIClient, alice: Account
) -> None:
    bob = await service.world.user("pantstack")
    admin = await service.world.user("pantstack", role="admin")
    assert await client.verify_user(public_id(alice), alice.access_token)
    assert not await client.verify_user(public_id(alice), bob.access_token)
    assert not await client.verify_user(public_id(alice), admin.access_token), "an administrator is somebody else"
    assert await client.verify_user(public_id(admin), admin.access_token)


async def test_what_is_no_access_token_verifies_nobody(service: Service, client: APIClient, alice: Account) -> None:
    header, payload, signature = alice.access_token.split(".")
    cobalt = await service.world.user("cobalt")
    for user_id, token in (
        (public_id(alice), ""),
        (public_id(alice), "nonsense"),
        (public_id(alice), "a.b.c"),
        (public_id(alice), f"{header}.{payload}.{signature[::-1]}"),
        (public_id(alice), f"{header}.{payload}."),
        (public_id(alice), alice.refresh_token),
        (public_id(alice), f"{alice.access_token}\r\nX-API-Key: other"),
        (public_id(cobalt), cobalt.access_token),
        ("", alice.access_token),
    ):
        assert not await client.verify_user(user_id, token), token


async def test_a_token_that_has_ended_verifies_nobody(service: Service, client: APIClient, alice: Account) -> None:
    await alice.client.post("/api/v1/auth/logout")
    assert not await client.verify_user(public_id(alice), alice.access_token)
    again = await service.world.sign_in("pantstack", await service.world.runtime.get(Users).get_user(alice.id))
    assert await client.verify_user(public_id(alice), again.access_token)
    service.world.clock.advance(3601)
    assert not await client.verify_user(public_id(alice), again.access_token)


async def test_a_service_that_fails_raises() -> None:
    async def failing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    broken = await asyncio.start_server(failing, "127.0.0.1", 0)
    async with APIClient(f"http://127.0.0.1:{broken.sockets[0].getsockname()[1]}", api_key="x") as client:
        for attempt in (client.get_user("usr_1"), client.list_users()):
            with pytest.raises(httpx2.HTTPStatusError) as raised:
                await attempt
            assert raised.value.response.status_code == 503
    broken.close()
    await broken.wait_closed()


def test_the_documented_import_line_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(COMPAT))
    try:
        from modules.api.backend.public import APIClient as Documented
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "modules"]:
            del sys.modules[name]
    assert Documented is APIClient
