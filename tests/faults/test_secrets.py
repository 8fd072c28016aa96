"""Passwords and tokens are in nobody's hands but their owner's: not in the database, the log, the metrics or Redis."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
import redis
from aiosmtpd.smtp import SMTP

from bedplate.kernel.settings import OperatorError, load
from tests.processes import SECRET, Server, command

CANARY = "Canary-7f3d9b-Pass"
NOT_SECRETS = {  # long enough to sign with, but not random: from documents, tutorials and example files
    "an example": "your_secret_key_here",
    "a padded example": "your_secret_key_here_your_secret_key_here",
    "a default": "default-secret-default-secret-default",
    "a development secret": "dev-secret-for-development-use-only-0123",
    "one to be changed": "changeme-changeme-changeme-changeme-1234",
    "another to be changed": "CHANGE_ME_in_production_0123456789abcdef",
    "one to be replaced": "replace-this-with-a-random-string-of-32-characters",
    "an insecure one": "django-insecure-0a1b2c3d4e5f6071829304a5b6c7d8e9",
    "a tutorial's": "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "a well-known one": "super-secret-jwt-token-with-at-least-32-characters-long",
    "a debugger's": "a-string-secret-at-least-256-bits-long",
    "one letter": "a" * 64,
    "few letters": "abcabcabcabcabcabcabcabcabcabcabcabcabc",
    "31 characters": "4f1d8c0b7a6e5d9382c1b0a9f8e7d6c",
    "nothing": "",
}


class Postbox:
    """An SMTP server that keeps what it is given."""

    def __init__(self) -> None:
        self.letters: list[str] = []

    async def handle_DATA(self, _: Any, __: Any, envelope: Any) -> str:
        self.letters.append(envelope.content.decode())
        return "250 OK"

    async def token(self, number: int, page: str) -> str:
        """The token in a letter about this page, once so many have come."""
        async with asyncio.timeout(30):
            while len(found := [each for each in self.letters if page in each]) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        match = re.search(r"token=([\w-]+)", found[-1].replace("=\r\n", "").replace("=3D", "="))
        assert match, found[-1]
        return match[1]


@asynccontextmanager
async def postbox() -> AsyncIterator[tuple[Postbox, int]]:
    box = Postbox()
    listening = await asyncio.get_running_loop().create_server(lambda: SMTP(box), "127.0.0.1", 0)
    async with listening:
        yield box, listening.sockets[0].getsockname()[1]


async def live(server: Server, box: Postbox) -> dict[str, str]:
    """Everything that a person does with a secret, well and badly. The secrets, by name."""
    secrets: dict[str, str] = {
        "password": f"{CANARY}-1",
        "next password": f"{CANARY}-2",
        "last password": f"{CANARY}-3",
    }
    address = "canary@example.com"
    async with server.client() as client:

        async def post(path: str, status: int = 200, **body: Any) -> Any:
            answer = await client.post(path, **body)
            assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text}"
            for name, token in answer.json().items() if answer.content else ():
                if name.endswith("_token"):
                    secrets[f"{name} {len(secrets)}"] = token
            if "refresh_token" in answer.cookies:
                secrets[f"cookie {len(secrets)}"] = answer.cookies["refresh_token"]
            return answer

        account = {"username": "canary", "email": address, "password": secrets["password"]}
        await post("/cobalt/api/auth/register", 201, json=account)
        await post("/cobalt/api/auth/register", 409, json=account)
        await post("/cobalt/api/auth/register", 422, json={**account, "username": [secrets["password"]]})
        await post("/cobalt/api/auth/login", 401, json={"username": "canary", "password": secrets["next password"]})
        await post("/cobalt/api/auth/login", json={"username": "canary", "password": secrets["password"]})
        await post("/cobalt/api/auth/refresh")
        secrets["verification"] = await box.token(1, "verify-email")
        await post("/cobalt/api/auth/verify-email", json={"token": secrets["verification"]})
        await post("/cobalt/api/auth/verify-email", 400, json={"token": secrets["verification"]})
        await post("/cobalt/api/auth/forgot-password", json={"email": address})
        secrets["reset"] = await box.token(1, "reset-password")
        body = {"token": secrets["reset"], "password": secrets["next password"]}
        await post("/cobalt/api/auth/reset-password", json=body)
        await post("/cobalt/api/auth/reset-password", 400, json=body)

        login = {"email": address, "password": secrets["next password"]}
        entered = (await post("/pantstack/api/v1/auth/login", json=login)).json()
        renew = {"Authorization": f"Bearer {entered['refresh_token']}"}
        entered = (await post("/pantstack/api/v1/auth/refresh", headers=renew)).json()
        client.headers["Authorization"] = f"Bearer {entered['access_token']}"
        wrong = await client.put("/pantstack/api/v1/users/nobody", json={"password": {"new": secrets["last password"]}})
        assert wrong.status_code in (400, 403, 404)
        query = {"password": secrets["password"], "token": entered["access_token"]}
        assert (await client.get("/cobalt/api/auth/me", params=query)).status_code == 401  # of the other system
        made = await asyncio.to_thread(command, server.folder, "keys", "create", "orders", **server.settings)
        secrets["service key"] = made.stdout.strip()
        del client.headers["Authorization"]
        listed = await client.get("/pantstack/api/v1/users", headers={"X-API-Key": secrets["service key"]})
        assert listed.status_code == 200, listed.text
        own = f"/pantstack/api/v1/users/{listed.json()[0]['id']}"
        changed = await client.put(
            own,
            json={"password": secrets["last password"]},
            headers={"Authorization": f"Bearer {entered['access_token']}"},
        )
        assert changed.status_code == 200, changed.text
        await post("/pantstack/api/v1/auth/logout", 204, headers={"Authorization": f"Bearer {entered['access_token']}"})
        await post("/cobalt/api/auth/logout")
    return {**secrets, "the signing secret": SECRET}


def spellings(secret: str) -> set[bytes]:
    raw = secret.encode()
    # Base64 has three ways to spell what stands inside something longer; the inner characters are compared.
    shifted = {base64.b64encode(b"\0" * shift + raw)[4:-4] for shift in range(3)}
    return {raw, raw.hex().encode(), quote(secret).encode(), json.dumps(secret)[1:-1].encode(), *shifted}


def found_in(places: dict[str, bytes], secrets: dict[str, str]) -> list[str]:
    return [
        f"{name} in {place}"
        for name, secret in secrets.items()
        for place, content in places.items()
        if any(spelling in content for spelling in spellings(secret))
    ]


async def everything_in_postgres(url: str) -> bytes:
    connection = await asyncpg.connect(url)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [await connection.fetch(f'SELECT t::text FROM "{table[0]}" t') for table in tables]
    finally:
        await connection.close()
    assert len(rows) > 8
    return b"\n".join(row[0].encode() for each in rows for row in each)


def everything_in_redis(url: str) -> bytes:
    with redis.Redis.from_url(url) as client:
        keys = list(client.scan_iter())
        assert keys
        return b"\n".join(part for key in keys for part in (key, client.dump(key) or b"", *values_of(client, key)))


def values_of(client: "redis.Redis[bytes]", key: bytes) -> list[bytes]:
    kind = client.type(key)
    return [part for pair in client.hgetall(key).items() for part in pair] if kind == b"hash" else []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
async def test_no_secret_is_kept_where_it_can_be_read(
    tmp_path: Path, engine: str, empty_redis: str, request: pytest.FixtureRequest
) -> None:
    more = {"DATABASE_URL": request.getfixturevalue("empty_postgres")} if engine == "postgres" else {}
    async with postbox() as (box, port):
        settings = {"SMTP_URL": f"smtp://127.0.0.1:{port}", "REDIS_URL": empty_redis, "LOG_LEVEL": "DEBUG", **more}
        with Server(tmp_path, "up", **settings) as server:
            secrets = await live(server, box)
            async with server.client() as client:
                pages = [(await client.get(f"/{name}/metrics")).content for name in ("cobalt", "pantstack")]
            places = {"metrics": b"".join(pages), "redis": everything_in_redis(empty_redis)}
            places |= {str(path.name): path.read_bytes() for path in server.data.glob("*")}
            if engine == "postgres":
                places["postgres"] = await everything_in_postgres(more["DATABASE_URL"])
            else:
                assert {"bedplate.db", "bedplate.db-wal"} <= set(places)
            places["log"] = server.log.encode()
    assert len(secrets) > 15
    assert found_in(places, secrets) == []
    assert b"canary@example.com" in places["postgres" if engine == "postgres" else "bedplate.db-wal"]  # it looks right
    assert b'"path":"/cobalt/api/auth/login"' in places["log"]


def test_a_secret_would_be_noticed() -> None:
    secret = "Canary-7f3d9b-Pass-1"
    for hidden in (secret, secret.encode().hex(), base64.b64encode(b"a:" + secret.encode()).decode(), quote(secret)):
        assert found_in({"log": f"x{hidden}y".encode()}, {"it": secret}) == ["it in log"]
    assert found_in({"log": b"nothing"}, {"it": secret}) == []


@pytest.mark.parametrize("name", NOT_SECRETS)
def test_production_does_not_start_with_what_is_no_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("API_SECRET_KEY", NOT_SECRETS[name])
    with pytest.raises(OperatorError, match="API_SECRET_KEY"):
        load(_env_file=None)


def test_production_starts_with_a_random_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("API_SECRET_KEY", SECRET)
    assert load(_env_file=None).is_production


@pytest.mark.parametrize("secret", ["", "your_secret_key_here", "changeme"])
def test_the_refusal_is_one_line_and_names_no_secret(tmp_path: Path, secret: str) -> None:
    refused = command(tmp_path, "serve", "cobalt", "--port", "0", ENVIRONMENT="production", API_SECRET_KEY=secret)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert "API_SECRET_KEY" in refused.stderr
    assert not secret or secret not in refused.stderr
    assert not (tmp_path / "data").exists()


def test_a_generated_secret_is_random_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    made = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert command(folder, "migrate", API_SECRET_KEY="").returncode == 0
        with Server(folder, "serve", "cobalt", API_SECRET_KEY=""):
            secret = folder / "data" / "secret"
            assert secret.stat().st_mode & 0o777 == 0o600
            made.add(secret.read_text())
    assert len(made) == 2 and all(len(each) >= 32 for each in made)
