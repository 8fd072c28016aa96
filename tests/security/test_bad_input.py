"""Whatever is sent is answered in the system's own words: never a 5xx, a traceback, or what was sent."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from bedplate.kernel.ids import prefixed
from tests import factories
from tests.factories import PASSWORD, Account
from tests.security.crowd import on_both_engines
from tests.world import World

MARK = "zq7canary"
INSIDES = re.compile(
    r"traceback|\.py\b|site-packages|sqlalchemy|sqlite|asyncpg|psycopg|pydantic|starlette|fastapi|uvicorn|argon2"
    r"|\bselect\b.+\bfrom\b|\binsert into\b|identity_|kernel_|0x[0-9a-f]{6,}|/usr/|/home/|/tmp/|/var/|exception"
    r"|errors\.pydantic|loc\b|input_value",
    re.IGNORECASE,
)
TEN_MEGABYTES = 10 * 2**20
in_each_system = pytest.mark.parametrize("system", ["cobalt", "pantstack", "pynode"])
JSON = {"Content-Type": "application/json"}


def values() -> Iterator[Any]:
    """JSON values, as text, for a field that wants a short text."""
    yield from ("null", "true", "0", "-1", "1.5", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "[]", "{}", '""')
    yield from (
        str(10**20),
        "9" * 5000,
        f'["{MARK}"]',
        f'{{"{MARK}": 1}}',
        '" "',
        '"\\t\\n"',
        f'"{MARK}' + "x" * 10_000 + '"',
    )
    yield from (
        f'"{MARK}\\u0000"',
        f'"\\ud800{MARK}"',
        f'"{MARK}\\udc00\\ud800"',
        f'"\\ufeff{MARK}"',
        '"\\u202e\\u0007"',
    )
    yield from (
        f'"{MARK}\' OR 1=1 --"',
        f'"<script>{MARK}</script>"',
        f'"{{{{7*7}}}}{MARK}"',
        f'"../../{MARK}"',
        '"%00"',
    )
    yield from (f'"{MARK}@example.com\\r\\nBcc: all@example.com"', f'"{MARK}@[127.0.0.1]"', f'"@{MARK}"', '"İı\u0149ﬀ"')
    yield "[" * 20_000 + "]" * 20_000
    yield '{"a":' * 20_000 + "1" + "}" * 20_000


def bodies() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Whole bodies: what, the bytes, the headers."""
    good = json.dumps({"email": f"{MARK}@example.com", "password": MARK, "username": MARK, "name": MARK}).encode()
    yield "nothing", b"", JSON
    yield "nothing, of no type", b"", {}
    yield "half an object", b'{"email": "' + MARK.encode(), JSON
    yield "a comma too many", good[:-1] + b",}", JSON
    yield "single quotes", b"{'email': '" + MARK.encode() + b"'}", JSON
    yield "two objects", good + good, JSON
    yield "a comment", b"/* " + MARK.encode() + b" */" + good, JSON
    for text in (b"null", b"[]", b"7", b'"' + MARK.encode() + b'"', b"true", b"NaN", b"[" + good + b"]"):
        yield f"JSON {text[:12]!r}", text, JSON
    for raw in (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\x80\x81", good.replace(b"zq7", b"\x00\xff")):
        yield f"bytes {raw[:8]!r}", raw, JSON
    yield "UTF-16", good.decode().encode("utf-16"), JSON
    yield "UTF-32", good.decode().encode("utf-32"), JSON
    yield "a byte order mark", b"\xef\xbb\xbf" + good, JSON
    yield "a key twice", b'{"email": 1, "email": 2, "password": [], "password": {}}', JSON
    yield "a thousand keys", json.dumps({f"{MARK}{n}": n for n in range(1000)}).encode(), JSON
    for kind in (
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        MARK,
        "/",
    ):
        yield f"of type {kind}", good, {"Content-Type": kind}
    yield "of a type with a wrong charset", good, {"Content-Type": "application/json; charset=utf-7"}
    yield "said to be compressed", good, {**JSON, "Content-Encoding": "gzip"}


PATHS = (
    "/",
    "//",
    "/api",
    "/api/",
    "/api//auth//login",
    "/api/auth/login/",
    "/API/AUTH/LOGIN",
    "/api/../../../../etc/passwd",
    "/api/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2f..%2fetc%2fpasswd",
    "/..%5c..%5cwindows%5cwin.ini",
    "/docs/assets/../../../../etc/passwd",
    "/docs/assets/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/docs/assets//etc/passwd",
    "/docs/assets/",
    "/docs/assets/%00",
    "/docs/assets/swagger-ui.css%00.js",
    "/docs/assets/" + "a" * 5000,
    "/docs/assets/%ff%fe",
    "/.env",
    "/.git/config",
    f"/{MARK}",
    f"/%00{MARK}",
    "/%ff%fe",
    "/%ed%a0%80",
    "/" + "a" * 8000,
    f"/api/auth/login;{MARK}=1",
    f"/api/auth/login%3f{MARK}",
)
IDENTIFIERS = (
    MARK,
    "%00",
    "0",
    "-1",
    "1" * 400,
    "null",
    "usr_",
    "usr_zzzzzzzzzzzzzzzzzzzzzzzzzz",
    "usr_01h455vb4pex5vsknk084sn02q",
    "org_01h455vb4pex5vsknk084sn02q",
    "00000000-0000-0000-0000-000000000000",
    "01890000-0000-7000-8000-000000000000%0a",
    "{01890000-0000-7000-8000-000000000000}",
    "urn:uuid:01890000-0000-7000-8000-000000000000",
    "..%2fusers",
    "%27%20OR%201=1",
    "%ff",
    "%ed%a0%80",
    "a" * 5000,
)
QUERIES = (
    *(
        f"{name}={value}"
        for name in ("page", "per_page", "limit", "offset")
        for value in (
            "-1",
            "0",
            str(2**31),
            str(2**63),
            str(10**20),
            "9" * 5000,
            "1.5",
            "NaN",
            "1e3",
            "0x10",
            "",
            MARK,
            "%00",
            "%ff",
            "١",
        )
    ),
    *(
        f"{name}={value}"
        for name in ("role", "email_verified", "search")
        for value in ("", MARK, "%00", "%ff", "%ed%a0%80", "a" * 10_000, "%25_%5C", "'%20OR%201=1", "null", "[]")
    ),
    "page=1&page=2",
    f"{MARK}=1",
    "&&&===",
    "%",
    f"search={MARK}%",
)
HEADERS = (
    {"Cookie": "refresh_token="},
    {"Cookie": f"refresh_token={MARK}"},
    {"Cookie": "refresh_token=" + "a" * 20_000},
    {"Cookie": ";;;=;==\x01"},
    {"Cookie": "refresh_token=\xff\xfe"},
    {"X-API-Key": MARK},
    {"X-API-Key": "bp_" + "0" * 64},
    {"X-API-Key": "a" * 20_000},
    {"X-API-Key": "\xff"},
    {"api-version": MARK},
    {"api-version": "v1,v2"},
    {"X-Request-ID": "a" * 20_000},
    {"X-Request-ID": "\xff\x01"},
    {"X-Request-ID": '"}{"'},
    {"Accept": f"application/{MARK}"},
    {"Host": MARK},
    {"Origin": f"https://{MARK}.example"},
    {"X-HTTP-Method-Override": "DELETE"},
    {"Range": "bytes=0-0,1-1"},
    {"Expect": "100-continue"},
    {"Transfer-Encoding": "chunked"},
)


def assert_documented(system: str, answer: httpx2.Response, what: str, sent: str = MARK) -> None:
    """An answer that the document knows: if it is an error, in its shape, and free of insides and echoes."""
    assert answer.status_code < 500, f"{what}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code < 400:
        return
    if answer.request.method == "HEAD":
        return
    assert answer.headers["content-type"] == "application/json", f"{what}: {answer.headers}"
    assert len(answer.content) < 4096, f"{what}: {len(answer.content)} bytes"
    body = answer.json()
    if system == "cobalt":
        assert set(body) == {"error"} and isinstance(body["error"], str) and body["error"], f"{what}: {body}"
    elif system == "pynode" and answer.request.url.path.startswith("/v1/"):
        assert set(body) == {"error"}, f"{what}: {body}"
        assert set(body["error"]) == {"message", "type", "param", "code"}, f"{what}: {body}"
    elif system == "pynode":
        assert {"error", "message", "code"} <= set(body) <= {"error", "message", "code", "details", "retry_after"}, what
        assert set(body.get("details", {})) <= {"field", "reason"}, f"{what}: {body}"
    else:
        assert set(body) == {"error", "message", "details", "request_id", "timestamp"}, f"{what}: {body}"
        assert body["request_id"] == answer.headers["x-request-id"], what
        del body["request_id"]
    text = json.dumps(body)
    assert sent not in text, f"{what} is repeated: {text}"
    assert INSIDES.search(text) is None, f"{what}: {text}"


class Prober:
    """Sends to one system as an administrator who does not lose his rights by what he sends."""

    def __init__(self, world: World, system: str, account: Account) -> None:
        self.system = system
        self._account = account
        self._client = world.client(system)
        document = world.app(system).openapi()
        self.operations = [
            (method.upper(), path, operation.get("requestBody", {}), operation.get("parameters", []))
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        ]
        self.schemas: dict[str, Any] = document["components"]["schemas"]

    async def send(self, method: str, path: str, *, anonymous: bool = False, **request: Any) -> httpx2.Response:
        headers = {} if anonymous else {"Authorization": f"Bearer {self._account.access_token}"}
        headers = {name: value.encode("latin-1") for name, value in (headers | request.pop("headers", {})).items()}
        answer = await self._client.request(method, path, headers=headers, **request)
        assert_documented(self.system, answer, f"{method} {path[:80]} {str(request)[:200]}")
        return answer

    def fields(self, body: dict[str, Any]) -> list[str]:
        schema = body["content"]["application/json"]["schema"]  # forms have tests of their own
        name = schema["$ref"].rpartition("/")[2]
        return list(self.schemas[name]["properties"])

    def filled(self, path: str) -> str:
        own = self._account.id if self.system == "cobalt" else prefixed("usr", nobodys_id())
        return re.sub(r"\{(?!user_id)\w+\}", nobodys_id(), path).replace("{user_id}", own)


def nobodys_id() -> str:
    """An id that nobody has, so that nothing is really deleted."""
    return f"01890000-0000-7000-8000-{factories.number():012d}"


@pytest.fixture
async def prober(world: World, system: str) -> AsyncIterator[Prober]:
    yield Prober(world, system, await world.user(system, role="admin"))


@on_both_engines
@in_each_system
async def test_any_value_in_any_field_is_answered_in_the_documented_shape(prober: Prober) -> None:
    good = {
        "email": "not an address",
        "password": PASSWORD,
        "username": "x",
        "token": "0",
        "name": "A",
        "enabled": False,
        "message": "x",
        "model": "gpt-4",
        "messages": [{"role": "user", "content": "x"}],
    }
    sent = 0
    for method, path, body, _ in prober.operations:
        if "application/json" not in body.get("content", {}):
            continue
        for field in prober.fields(body):
            rest = ",".join(f'"{name}":{json.dumps(value)}' for name, value in good.items() if name != field)
            for value in values():
                content = f'{{{rest},"{field}":{value}}}'.encode()
                await prober.send(method, prober.filled(path), content=content, headers=JSON)
                sent += 1
    assert sent > 150


@on_both_engines
@in_each_system
async def test_any_body_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for method, path, _, _ in prober.operations:
        for _, content, headers in bodies():
            if method != "GET":
                await prober.send(method, prober.filled(path), content=content, headers=headers)
                await prober.send(method, prober.filled(path), content=content, headers=headers, anonymous=True)


@on_both_engines
@in_each_system
async def test_any_path_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for path in PATHS:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
            answer = await prober.send(method, path)
            assert "root:" not in answer.text
    for method, path, _, _ in prober.operations:
        if "{" in path:
            for identifier in IDENTIFIERS:
                content = {"json": {"name": "A"}} if method == "PUT" else {}
                await prober.send(method, re.sub(r"\{\w+\}", lambda _, i=identifier: i, path), **content)


@on_both_engines
@in_each_system
async def test_any_query_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for method, path, _, _ in prober.operations:
        for query in QUERIES if method == "GET" else ():
            await prober.send(method, f"{prober.filled(path)}?{query}")


@on_both_engines
@in_each_system
async def test_any_header_is_answered_in_the_documented_shape(prober: Prober) -> None:
    for method, path, _, _ in prober.operations:
        for headers in HEADERS:
            for anonymous in (True, False):
                await prober.send(method, prober.filled(path), headers=headers, anonymous=anonymous)


@on_both_engines
@in_each_system
async def test_ten_megabytes_are_refused_before_they_are_read(prober: Prober) -> None:
    taken = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(TEN_MEGABYTES // 65536):
            taken += 65536
            yield b" " * 65536

    for method, path, body, _ in prober.operations:
        if "application/json" in body.get("content", {}):
            declared = await prober.send(method, prober.filled(path), content=b" " * TEN_MEGABYTES, headers=JSON)
            assert declared.status_code == 413
            chunked = await prober.send(method, prober.filled(path), content=parts(), headers=JSON)
            assert chunked.status_code == 413
