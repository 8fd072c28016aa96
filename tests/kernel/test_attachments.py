"""Attachments: ranges, validators, names."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from urllib.parse import unquote

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bedplate.kernel import attachments
from bedplate.kernel.attachments import UNTYPED, Attachment, disposition
from bedplate.kernel.errors import Unavailable

CONTENT = bytes(range(256)) * 4
TAG = "a" * 64


async def read(start: int, length: int) -> AsyncGenerator[bytes, None]:
    for at in range(start, start + length, 100):
        yield CONTENT[at : min(at + 100, start + length)]


def attachment(mime_type: str = "image/png", content: bytes = CONTENT) -> Attachment:
    return Attachment("a.png", len(content), mime_type, TAG, read)


async def ask(
    headers: Mapping[str, str | bytes] | None = None, method: str = "GET", of: Attachment | None = None
) -> httpx2.Response:
    wanted = of or attachment()

    async def app(scope: object, receive: object, send: object) -> None:
        request = Request(scope, receive, send)  # type: ignore[arg-type]
        try:
            answer = await wanted.answer(request)
        except HTTPException as error:
            answer = Response(status_code=error.status_code, headers=error.headers)
        await answer(scope, receive, send)  # type: ignore[arg-type]

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, "/", headers=headers)  # type: ignore[arg-type]


async def test_the_whole_is_sent_as_an_attachment_that_nothing_runs() -> None:
    answer = await ask()
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert dict(answer.headers) == {
        "etag": f'"{TAG}"',
        "cache-control": "private, no-cache",
        "accept-ranges": "bytes",
        "content-type": "image/png",
        "content-length": str(len(CONTENT)),
        "content-disposition": 'attachment; filename="a.png"',
        "content-security-policy": "sandbox; default-src 'none'",
        "referrer-policy": "no-referrer",
    }


async def test_head_has_the_headers_alone() -> None:
    whole, head = await ask(), await ask(method="HEAD")
    assert (head.status_code, head.headers, head.content) == (200, whole.headers, b"")
    part = await ask({"range": "bytes=5-9"}, "HEAD")
    assert (part.status_code, part.headers["content-length"], part.content) == (206, "5", b"")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=5-", 5, 1024),
        ("bytes=1000-2000", 1000, 1024),
        ("bytes=1023-", 1023, 1024),
        ("bytes=1-999999999999999999", 1, 1024),
        ("bytes=-1", 1023, 1024),
        ("bytes=-1023", 1, 1024),
    ],
)
async def test_a_range_is_sent_alone(asked: str, start: int, end: int) -> None:
    answer = await ask({"range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1024"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-", "bytes=0-1023", "bytes=-1024", "bytes=-9999", "bytes=9-5", "bytes=-", "bytes=a-b", "bytes=0-1,5-6",
     "bytes=" + ",".join(["0-1"] * 1000), "bytes 0-1", "lines=0-1", "bytes=٣-٤", "bytes=1-" + "9" * 30, ""],
)  # fmt: skip
async def test_what_is_no_range_of_ours_is_answered_with_everything(asked: str) -> None:
    answer = await ask({"range": asked.encode()})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=1024-2000", "bytes=999999999999999999-", "bytes=-0"])
async def test_a_range_that_is_not_there_is_refused(asked: str) -> None:
    answer = await ask({"range": asked})
    assert (answer.status_code, answer.content) == (416, b"")
    assert answer.headers["content-range"] == "bytes */1024"


@pytest.mark.parametrize("asked", ["bytes=0-", "bytes=-5", "bytes=0-0"])
async def test_an_empty_file_has_no_ranges(asked: str) -> None:
    empty = attachment(content=b"")
    assert (await ask(of=empty)).status_code == 200
    assert (await ask({"range": asked}, of=empty)).status_code == 416


@pytest.mark.parametrize("known", [f'"{TAG}"', f'W/"{TAG}"', f'"x", "{TAG}"', "*"])
async def test_what_is_known_is_not_sent_again(known: str) -> None:
    for headers in ({"if-none-match": known}, {"if-none-match": known, "range": "bytes=0-5"}):
        answer = await ask(headers)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", f'"{TAG}"')


@pytest.mark.parametrize("known", ['"other"', TAG, "", '"' * 5000])
async def test_what_is_not_known_is_sent(known: str) -> None:
    assert (await ask({"if-none-match": known})).status_code == 200


async def test_a_range_of_what_has_changed_since_is_everything() -> None:
    asked = {"range": "bytes=0-5"}
    assert (await ask({**asked, "if-range": f'"{TAG}"'})).status_code == 206
    for other in ('"other"', f'W/"{TAG}"', "Wed, 25 Nov 2026 09:00:00 GMT"):
        assert (await ask({**asked, "if-range": other})).status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml", "text/javascript",
     "application/javascript", "application/ecmascript"],
)  # fmt: skip
async def test_what_browsers_run_is_sent_without_its_type(kind: str) -> None:
    assert (await ask(of=attachment(kind))).headers["content-type"] == UNTYPED


async def test_what_fails_before_the_first_byte_is_an_error_of_its_own() -> None:
    async def failing(start: int, length: int) -> AsyncGenerator[bytes, None]:
        raise LookupError
        yield b""

    broken = Attachment("a", 10, "a/b", TAG, failing)
    with pytest.raises(LookupError):
        await ask(of=broken)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.txt", 'attachment; filename="a.txt"'),
        ("a b;c.txt", 'attachment; filename="a b;c.txt"'),
        ("ä.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A4.txt"),
        ('a"b\\c.txt', "attachment; filename=\"a_b_c.txt\"; filename*=UTF-8''a%22b%5Cc.txt"),
        ("100%.txt", "attachment; filename=\"100_.txt\"; filename*=UTF-8''100%25.txt"),
        ("a\r\nX: y", "attachment; filename=\"a__X_ y\"; filename*=UTF-8''a%0D%0AX%3A%20y"),
    ],
)
def test_a_name_is_sent_as_every_browser_reads_it(name: str, header: str) -> None:
    assert disposition(name) == header


@given(st.text(min_size=1, max_size=100))
def test_no_name_leaves_its_place(name: str) -> None:
    header = disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    if "filename*=" in header:
        assert unquote(header.rpartition("''")[2]) == name


class Exchange:
    """One answer, spoken with as a server does."""

    def __init__(self) -> None:
        self.sent: list[dict[str, object]] = []
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, object]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, object]) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)

    async def run(self, of: Attachment) -> None:
        request = Request({"type": "http", "method": "GET", "headers": []})
        await (await of.answer(request))(request.scope, self.receive, self.send)  # type: ignore[arg-type]


async def test_whoever_goes_away_is_not_read_for() -> None:
    exchange, closed, pieces = Exchange(), asyncio.Event(), 0

    async def counted(start: int, length: int) -> AsyncGenerator[bytes, None]:
        nonlocal pieces
        try:
            while True:
                pieces += 1
                if pieces == 5:
                    exchange.gone.set()
                yield b"x"
        finally:
            closed.set()

    async with asyncio.timeout(5):
        await exchange.run(Attachment("a", 10**9, "a/b", TAG, counted))
    assert pieces < 10
    assert closed.is_set()


async def test_what_fails_in_the_middle_is_cut_off() -> None:
    exchange = Exchange()

    async def failing(start: int, length: int) -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise Unavailable()

    await exchange.run(Attachment("a", 10, "a/b", TAG, failing))
    assert [message.get("more_body") for message in exchange.sent] == [None, True], "there is no end"


async def test_whoever_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "SEND_SECONDS", 0.05)

    class Stuck(Exchange):
        async def send(self, message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await Stuck().run(attachment())
