"""Server: what one connection may take, in time and in memory, before anybody knows who it is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from bedplate.kernel import server

PATIENCE_SECONDS = 10.0
HEAD = b"POST / HTTP/1.1\r\nHost: here\r\n"


class Quick(server.Protocol):
    body_seconds = 0.5
    unread_seconds = 0.5


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers how many headers and bytes of body there were; at /at-once without waiting for it; at /without-end, for
    as long as anybody takes it."""
    if scope["path"] == "/without-end":
        return await pour(receive, send)
    size, more = 0, scope["path"] != "/at-once"
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = f"{len(scope['headers'])} {size}".encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def pour(receive: Receive, send: Send) -> None:
    await receive()
    gone = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not gone.done():
        await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        await asyncio.sleep(0)


@pytest.fixture
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listener = server.listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(count, http=Quick, lifespan="off", log_config=None))
    serving = asyncio.create_task(running._serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    yield reader, writer
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    running.should_exit = True
    await serving


async def answered(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server has nothing more to say."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await reader.read()


@pytest.mark.parametrize(
    "begun", [b"Content-Length: 100\r\n\r\n{", b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9;"]
)
async def test_a_body_that_does_not_come_is_not_waited_for(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], begun: bytes
) -> None:
    reader, writer = connection
    writer.write(HEAD + begun)
    assert await answered(reader) == b""


async def test_a_body_that_trickles_is_not_waited_for(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    reader, writer = connection
    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")
    ended = asyncio.create_task(answered(reader))
    with contextlib.suppress(OSError):
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.05)
    assert await ended == b""


async def test_a_large_body_may_take_longer_as_long_as_it_comes(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    reader, writer = connection
    size = 8 * server.BODY_STEP
    writer.write(HEAD + f"Connection: close\r\nContent-Length: {size}\r\n\r\n".encode())
    began = asyncio.get_running_loop().time()
    for _ in range(8):
        writer.write(bytes(server.BODY_STEP))
        await writer.drain()
        await asyncio.sleep(Quick.body_seconds / 5)
    assert asyncio.get_running_loop().time() - began > Quick.body_seconds
    assert (await answered(reader)).endswith(f"\r\n\r\n3 {size}".encode())


async def test_trailers_are_let_go(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    reader, writer = connection
    writer.write(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    writer.write(b"a: b\r\n" * 50_000 + b"\r\n")
    assert (await answered(reader)).endswith(b"\r\n\r\n3 1")


@pytest.mark.parametrize(
    ("begun", "piece", "most"),
    [
        (b"POST /at-once HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 4_000_000),
        (b"POST /at-once HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n", 4_000_000),
        (b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", bytes(65_536), 128 * 2**20),
    ],
    ids=["chunks", "trailers", "bytes"],
)
async def test_what_nobody_reads_any_more_is_not_taken_for_ever(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], begun: bytes, piece: bytes, most: int
) -> None:
    reader, writer = connection
    writer.write(begun)
    ended = asyncio.create_task(answered(reader))
    sent, some = 0, piece * (65_536 // len(piece))
    with contextlib.suppress(OSError):
        while not ended.done() and sent < most:
            writer.write(some)
            await writer.drain()
            sent += len(some)
    assert sent < most
    with contextlib.suppress(ConnectionError):
        assert (await ended).endswith(b" 0")


async def test_one_connection_serves_one_request_after_the_other(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    reader, writer = connection
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\n\r\n"
    writer.write(chunked + HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nxy")
    answers = await answered(reader)
    assert answers.count(b"200 OK") == 2
    assert b"\r\n\r\n2 1HTTP/1.1" in answers
    assert answers.endswith(b"\r\n\r\n3 2")


async def test_an_answer_that_nobody_reads_is_not_waited_for(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    reader, writer = connection
    writer.write(b"GET /without-end HTTP/1.1\r\nHost: here\r\n\r\n")
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 2 * Quick.unread_seconds:
        assert await reader.read(65_536), "whoever reads gets more"
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(3 * Quick.unread_seconds)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await reader.read(65_536):
            pass  # what was on its way; then it is cut off


async def test_few_requests_wait_for_an_answer_before_theirs(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    reader, writer = connection
    one = b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    writer.write(one * (server.WAITING_REQUESTS // 2) + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert (await answered(reader)).count(b"200 OK") == server.WAITING_REQUESTS // 2 + 1


async def test_whoever_sends_requests_and_waits_for_none_is_cut_off(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    reader, writer = connection
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * 100_000)
    with contextlib.suppress(ConnectionError):
        number = (await answered(reader)).count(b"200 OK")
        assert number < 50_000
    writer.transport.abort()
