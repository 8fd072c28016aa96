"""No token that we did not sign for this use opens anything."""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from bedplate.kernel.ids import new_id, prefixed
from bedplate.modules.identity.public import Users
from tests.factories import Account
from tests.security.crowd import on_both_engines
from tests.security.rotation import present
from tests.world import SECRET, World

Claims = dict[str, Any]
HEADER = {"alg": "HS256", "typ": "JWT"}
KNOWN_SECRETS = (
    "",
    "secret",
    "your_secret_key_here",
    "your-256-bit-secret",
    "changeme",
    "dev-secret",
    "default-secret",
    "password",
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "super-secret-jwt-token-with-at-least-32-characters-long",
    SECRET.upper(),
    SECRET[:-1],
    hashlib.sha256(SECRET.encode()).hexdigest(),
    base64.b64encode(SECRET.encode()).decode(),
)
MAXIMUM_BODY = 2**20
MESSAGE = {"role": "user", "content": "x"}
REFUSALS = {"Invalid token", "Token expired", "Token has been revoked"}


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def signed(header: Claims | bytes, claims: Claims | bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    head, body = (each if isinstance(each, bytes) else json.dumps(each).encode() for each in (header, claims))
    message = f"{encoded(head)}.{encoded(body)}"
    return f"{message}.{encoded(hmac.new(secret.encode(), message.encode(), algorithm).digest())}"


def claims_of(token: str) -> Claims:
    body = token.split(".")[1]
    claims: Claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def unsigned() -> Iterator[tuple[str, Callable[[str, Claims], str]]]:
    for algorithm in ("none", "None", "NONE", "nOnE", "", None, 0, [], "HS256 "):
        header = {**HEADER, "alg": algorithm}
        yield f"alg {algorithm!r} and no signature", lambda _, c, h=header: signed(h, c).rpartition(".")[0] + "."
        yield f"alg {algorithm!r} and our signature", lambda _, c, h=header: signed(h, c)
    yield "no alg", lambda _, c: signed({"typ": "JWT"}, c)
    yield "an empty signature", lambda t, _: t.rpartition(".")[0] + "."
    yield "no signature", lambda t, _: t.rpartition(".")[0]
    yield "a cut signature", lambda t, _: t[:-4]
    yield "another signature", lambda t, _: t.rpartition(".")[0] + "." + encoded(b"\0" * 32)
    yield (
        "claims of another",
        lambda t, c: ".".join((t.split(".")[0], encoded(json.dumps({**c, "sub": new_id()}).encode()), t.split(".")[2])),
    )
    yield (
        "a claim twice under the old signature",
        lambda t, c: ".".join(
            (t.split(".")[0], encoded(json.dumps(c).encode()[:-1] + b',"exp":9999999999}'), t.split(".")[2])
        ),
    )


def signed_by_others() -> Iterator[tuple[str, Callable[[str, Claims], str]]]:
    for number, secret in enumerate(KNOWN_SECRETS):
        yield f"well-known secret {number}", lambda _, c, s=secret: signed(HEADER, c, s)
    for algorithm in ("sha384", "sha512"):
        name = f"HS{algorithm[3:]}"
        yield f"our secret with {name}", lambda _, c, a=algorithm, n=name: signed({**HEADER, "alg": n}, c, SECRET, a)
    for name in ("RS256", "ES256", "EdDSA", "PS256"):
        yield f"{name} over our secret", lambda _, c, n=name: signed({**HEADER, "alg": n}, c)
    own_key = {"kty": "oct", "k": encoded(b"mine")}
    for name, value in (
        ("jwk", own_key),
        ("jku", "http://127.0.0.1:9/keys"),
        ("x5u", "http://127.0.0.1:9/certificate"),
        ("x5c", [encoded(b"mine")]),
        ("kid", "../../../../dev/null"),
        ("kid", "x' UNION SELECT 'mine' -- "),
        ("kid", "| id"),
        ("crit", ["exp"]),
        ("zip", "DEF"),
        ("b64", False),
        ("cty", "JWT"),
    ):
        yield f"{name} {value!r}", lambda _, c, n=name, v=value: signed({**HEADER, n: v}, c, "mine")
        yield f"{name} {value!r} and our signature", lambda _, c, n=name, v=value: signed({**HEADER, n: v}, c)


def signed_for_another_use() -> Iterator[tuple[str, Callable[[str, Claims], str]]]:
    now = int(time.time())
    for name, value in (
        ("exp", now - 1),
        ("exp", 0),
        ("exp", -1),
        ("exp", str(now + 900)),
        ("exp", now + 900.5),
        ("exp", True),
        ("exp", None),
        ("exp", [now + 900]),
        ("exp", 10**30),
        ("nbf", now + 600),
        ("iss", "somebody"),
        ("iss", None),
        ("iss", ["bedplate"]),
        ("aud", "another"),
        ("aud", "internal"),
        ("aud", ["cobalt", "pantstack"]),
        ("aud", None),
        ("type", "refresh"),
        ("type", "service"),
        ("type", None),
        ("sub", None),
        ("sub", 1),
        ("sub", "1 OR 1=1"),
        ("jti", None),
        ("sid", None),
        ("sid", "'; DROP TABLE identity_users; --"),
        ("sid", "00000000-0000-0000-0000-000000000000"),
        ("sid", {"$ne": ""}),
    ):
        yield f"{name} {value!r}", lambda _, c, n=name, v=value: signed(HEADER, {**c, n: v})
    for name in ("exp", "iss", "aud", "type", "sub", "sid", "jti"):
        yield f"no {name}", lambda _, c, n=name: signed(HEADER, {k: v for k, v in c.items() if k != n})
    for body in (b"[]", b'"text"', b"null", b"7", b"{", b"\xff\xfe", b"[" * 5000):
        yield f"claims {body[:8]!r}", lambda _, __, b=body: signed(HEADER, b)
    for header in (b"[]", b"null", b"{", b"\xff"):
        yield f"header {header!r}", lambda _, c, h=header: signed(h, c)
    yield "a token inside a token", lambda t, _: signed({**HEADER, "cty": "JWT"}, json.dumps(t).encode())


def misshapen() -> Iterator[tuple[str, Callable[[str, Claims], str]]]:
    yield "nothing", lambda *_: ""
    yield "one dot", lambda *_: "."
    yield "two dots", lambda *_: ".."
    yield "a dot too many", lambda t, _: t + "."
    yield "a part too many", lambda t, _: t + ".e30"
    yield "five parts, as if encrypted", lambda *_: "e30.e30.e30.e30.e30"
    yield "a mebibyte", lambda *_: "A" * 2**20
    yield "a mebibyte of claims", lambda _, c: signed(HEADER, {**c, "pad": "A" * 2**20})
    yield "trailing bytes", lambda t, _: t + "AAAA"
    yield "trailing padding", lambda t, _: t + "=="
    yield "a word behind it", lambda t, _: t + " " + t
    yield "unicode", lambda t, _: t.replace("e", "е", 1)
    yield "full-width letters", lambda t, _: "".join(chr(ord(c) + 0xFEE0) for c in t)
    yield "plain base64", lambda t, _: t[:-1] + "+"
    yield "quotes", lambda t, _: f'"{t}"'
    yield "braces", lambda *_: '{"alg":"none"}'
    yield "reversed", lambda t, _: t[::-1]
    yield "upper case", lambda t, _: t.upper()


in_each_system = pytest.mark.parametrize("system", ["cobalt", "pantstack", "pynode"])
FORGERIES = [*unsigned(), *signed_by_others(), *signed_for_another_use(), *misshapen()]


def guarded(world: World, system: str) -> list[tuple[str, str]]:
    """Every operation that the OpenAPI document says takes an access token."""
    document = world.app(system).openapi()
    found = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            schemes = {name for choice in operation.get("security", ()) for name in choice}
            if "Bearer" in schemes:
                found.append((method.upper(), path))
    return found


def assert_refused(system: str, answer: httpx2.Response, name: str) -> None:
    assert answer.status_code == 401, f"{name}: {answer.status_code} {answer.text}"
    body = answer.json()
    assert answer.headers["www-authenticate"] == "Bearer", name
    if system == "cobalt":
        assert set(body) == {"error"} and body["error"] in REFUSALS, name
    elif system == "pynode" and body.keys() == {"error"}:  # the door that speaks OpenAI's API
        assert body["error"]["code"] == "invalid_api_key", name
    elif system == "pynode":
        words = {"error": "Unauthorized", "message": "Authentication required", "code": "AUTHENTICATION_REQUIRED"}
        assert body == words, name
    else:
        assert set(body) == {"error", "message", "details", "request_id", "timestamp"}, name
        assert body["error"] in ("AUTH_001", "AUTH_002") and body["message"] in REFUSALS, name


async def send(
    client: httpx2.AsyncClient, method: str, path: str, account: Account, authorization: str
) -> httpx2.Response:
    filled = path.replace("{user_id}", account.id if "admin" in path else prefixed("usr", account.id))
    filled = re.sub(r"\{\w+\}", "some-id", filled)
    fields = {"enabled": False, "name": "Mallory", "message": "x", "model": "gpt-4", "messages": [MESSAGE]}
    body: Claims = {"json": fields} if method in ("POST", "PUT", "PATCH") else {}
    return await client.request(method, filled, headers={"Authorization": authorization.encode()}, **body)


def test_there_are_enough_forgeries() -> None:
    assert len({name for name, _ in FORGERIES}) == len(FORGERIES) >= 60


@on_both_engines
@in_each_system
async def test_no_forged_token_opens_any_operation(world: World, system: str) -> None:
    account = await world.user(system, role="admin")
    operations = guarded(world, system)
    claims = claims_of(account.access_token)
    client = world.client(system)
    for name, forge in FORGERIES:
        token = forge(account.access_token, claims)
        for method, path in operations:
            answer = await send(client, method, path, account, f"Bearer {token}")
            assert_refused(system, answer, f"{method} {path} with {name}")
    await assert_works(system, account)


@on_both_engines
@in_each_system
async def test_no_forged_token_refreshes(world: World, system: str) -> None:
    account = await world.user(system)
    claims = claims_of(account.refresh_token)
    for name, forge in FORGERIES:
        token = forge(account.refresh_token, claims)
        if system == "pynode" and len(token) >= MAXIMUM_BODY:
            continue  # refused for its size
        if token.isascii() and ";" not in token and '"' not in token and " " not in token:  # what a cookie can carry
            answer = await present(world, system, token)
            assert_refused(system, answer, f"refresh with {name}")
    assert_refused(system, await present(world, system, account.access_token), "refresh with the access token")
    assert (await present(world, system, account.refresh_token)).status_code == 200


@on_both_engines
@in_each_system
async def test_a_genuine_token_opens_nothing_it_was_not_made_for(world: World, system: str) -> None:
    other_system = {"cobalt": "pantstack", "pantstack": "pynode", "pynode": "cobalt"}[system]
    account = await world.user(system, role="admin")
    elsewhere = await world.user(other_system, role="admin")
    gone = await world.user(system, role="admin")
    await world.runtime.get(Users).delete_user(gone.id, actor_id=account.id)
    client = world.client(system)
    for name, token in {
        "the refresh token": account.refresh_token,
        "a token of the other system": elsewhere.access_token,
        "the token of a deleted account": gone.access_token,
    }.items():
        for method, path in guarded(world, system):
            answer = await send(client, method, path, account, f"Bearer {token}")
            if name == "the token of a deleted account" and path == "/api/auth/me":
                assert answer.status_code == 404  # as documented
            else:
                assert_refused(system, answer, f"{method} {path} with {name}")


@on_both_engines
@in_each_system
async def test_only_a_bearer_token_is_a_bearer_token(world: World, system: str) -> None:
    account = await world.user(system, role="admin")
    client, token = world.client(system), account.access_token
    for authorization in (token, f"Basic {token}", f"Token {token}", f"Bearer:{token}", f"Bearer{token}", "Bearer", ""):
        for method, path in guarded(world, system):
            answer = await send(client, method, path, account, authorization)
            assert_refused(system, answer, f"{method} {path} with {authorization[:10]!r}")
    for elsewhere in ({"params": {"access_token": token}}, {"headers": {"Cookie": f"access_token={token}"}}):
        assert_refused(system, await client.get(PATHS[system](account), **elsewhere), "a token elsewhere")
    # The name of the scheme is case-insensitive (RFC 9110).
    assert (await client.get(PATHS[system](account), headers={"Authorization": f"bEARER {token}"})).status_code == 200


async def assert_works(system: str, account: Account) -> None:
    assert (await account.client.get(PATHS[system](account))).status_code == 200


PATHS: dict[str, Callable[[Account], str]] = {
    "cobalt": lambda _: "/api/auth/me",
    "pynode": lambda _: "/api/users/me",
    "pantstack": lambda account: f"/api/v1/users/{prefixed('usr', account.id)}",
}
