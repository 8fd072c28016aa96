"""A world: one deployment of the product, in this process, spoken to over HTTP.

The same tests run in each: embedded (SQLite, everything in the process), on servers (PostgreSQL and Redis), and with
the modules behind loopback HTTP.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from sqlalchemy import update

from bedplate import compose
from bedplate.kernel import server
from bedplate.kernel.settings import Settings
from bedplate.models import UserRow
from bedplate.modules.identity.public import Registration, Role, ServiceKeys, User, Users
from bedplate.modules.mail.public import Mail, Mailbox
from tests import factories
from tests.factories import PASSWORD, Account, TurnableClock

SECRET = "a-secret-of-the-tests-and-of-nobody-else"
# Most tests need accounts, and few are about passwords: half of the time of all was hashing.
QUICK_HASHES: dict[str, Any] = {"hash_memory_kib": 64, "hash_passes": 1}
# Where accounts of a system sign in, and as what. The services of Commerce share one sign-in.
_COMMERCE = ("user-service", "/api/auth/login", "email")
LOGINS = {
    "cobalt": ("cobalt", "/api/auth/login", "username"),
    "pantstack": ("pantstack", "/api/v1/auth/login", "email"),
    "pynode": ("pynode", "/api/auth/login", "email"),
    **dict.fromkeys(("user-service", "order-service", "payment-service"), _COMMERCE),
}


@dataclass
class World:
    """`runtime` holds the modules; `front` what the systems stand on (the same, or remote facades)."""

    settings: Settings
    clock: TurnableClock
    runtime: compose.Runtime
    front: compose.Runtime
    _served: dict[str, Any] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    def served(self, system: str) -> Any:
        """The ASGI application of a system as a process serves it."""
        if system not in self._served:
            self._served[system] = compose.application(system, self.front)
        return self._served[system]

    def app(self, system: str) -> FastAPI:
        """The FastAPI application inside."""
        return next(each.app for each in compose.blueprint(self.settings, self.clock) if each.name == system)

    def client(self, system: str, address: str = "127.0.0.1") -> httpx2.AsyncClient:
        """A new client with its own cookies that calls from `address`."""
        transport = httpx2.ASGITransport(app=self.served(system), client=(address, 50000), raise_app_exceptions=False)
        client = httpx2.AsyncClient(transport=transport, base_url="http://testserver")
        self._stack.push_async_callback(client.aclose)
        return client

    async def user(self, system: str, **overrides: Any) -> Account:
        """A new account, signed in. `role` and `email_verified` are given to it behind the API's back."""
        role = Role(overrides.pop("role", Role.USER))
        verified = overrides.pop("email_verified", role is Role.ADMIN)
        details = {"email": factories.email(), "username": factories.username(), "password": PASSWORD, "name": "Test"}
        registration = Registration(**(details | overrides))
        users = self.runtime.get(Users)
        user = await (users.create_admin if role is Role.ADMIN else users.register)(registration)
        if verified != user.email_verified:
            await self._verify(user, verified)
        return await self.sign_in(system, user, registration.password)

    async def sign_in(self, system: str, user: User, password: str = PASSWORD) -> Account:
        """Another session of an account."""
        client = self.client(system)
        place, path, login = LOGINS[system]
        door = client if place == system else self.client(place)
        answer = await door.post(path, json={login: user.email, "password": password})
        assert answer.status_code == 200, answer.text
        access = answer.json()["access_token"]
        refresh = door.cookies.get("refresh_token") or answer.json()["refresh_token"]
        client.headers["Authorization"] = f"Bearer {access}"
        return Account(user.id, user.email, user.username or "", password, access, refresh, client)

    async def admin(self, system: str) -> httpx2.AsyncClient:
        """A client that a new administrator has signed in with."""
        return (await self.user(system, role=Role.ADMIN)).client

    async def service_key(self, name: str = "orders") -> str:
        return (await self.runtime.get(ServiceKeys).create_key(name)).key

    async def mails(self, to: str) -> list[Mail]:
        """What was mailed to this address, newest first, once everything that was said is heard."""
        await self.deliver()
        return await self.runtime.get(Mailbox).list_mail(to=to)

    async def deliver(self) -> None:
        """Deliver every event that is due."""
        await self.runtime.deliver()

    async def _verify(self, user: User, verified: bool) -> None:
        assert self.runtime.database is not None
        async with self.runtime.database.transaction() as tx:
            await tx.execute(update(UserRow).where(UserRow.id == user.id).values(email_verified=verified))
            tx.invalidate(f"user:{user.id}", "users")

    async def aclose(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def embedded(folder: Path, template: Path, **overrides: Any) -> AsyncIterator[World]:
    """SQLite and memory. `template`: a migrated, empty database to start from."""
    shutil.copy(template, folder / "bedplate.db")
    settings = Settings(_env_file=None, secret=SECRET, data=folder, **(QUICK_HASHES | overrides))
    async with _world(settings) as world:
        yield world


@asynccontextmanager
async def on_servers(folder: Path, postgres: str, redis: str, **overrides: Any) -> AsyncIterator[World]:
    """PostgreSQL, migrated and empty, and Redis."""
    stores = {"database_url": postgres, "redis_url": redis}
    settings = Settings(_env_file=None, secret=SECRET, data=folder, **(QUICK_HASHES | stores | overrides))
    async with _world(settings) as world:
        yield world


@asynccontextmanager
async def remote(folder: Path, template: Path, **overrides: Any) -> AsyncIterator[World]:
    """The modules embedded, served on a loopback port; the systems on facades that call there."""
    async with embedded(folder, template, **overrides) as world:
        listener = server.listen("127.0.0.1", 0)
        application = compose.application(compose.INTERNAL, world.runtime)
        config = uvicorn.Config(application, lifespan="off", log_config=None, http="httptools", ws="none")
        internal = uvicorn.Server(config)
        serving = asyncio.create_task(internal._serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        elsewhere = dict.fromkeys(compose.FACADES, url)
        settings = world.settings.model_copy(update={"elsewhere": elsewhere})
        try:
            async with compose.running(settings, world.clock) as front:
                far = World(settings, world.clock, world.runtime, front)
                try:
                    yield far
                finally:
                    await far.aclose()
        finally:
            internal.should_exit = True
            await serving


@asynccontextmanager
async def _world(settings: Settings) -> AsyncIterator[World]:
    clock = TurnableClock()
    # Events are delivered when a test asks for it: nothing happens behind its back.
    async with compose.running(settings, clock, deliver=False) as runtime:
        for documents in runtime.documents.values():
            await documents.prepare()
        world = World(settings, clock, runtime, runtime)
        try:
            yield world
        finally:
            await world.aclose()
