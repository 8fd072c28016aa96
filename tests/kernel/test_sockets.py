"""WebSockets within bounds: who may open one, how many, how much is said, and when it ends."""

import asyncio
import contextlib
import socket as sockets_of_the_system
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bedplate.kernel import server, sockets
from bedplate.kernel.frames import MAXIMUM_HEARD, MAXIMUM_MESSAGE, SocketProtocol
from bedplate.kernel.sockets import Said, Socket, SocketEnded, Sockets
from bedplate.modules.identity.public import TokenRevoked
from tests.factories import TurnableClock

# For peers that behave as no library does.
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
Act = Callable[[Socket, Said], Awaitable[None]]


async def echo(socket: Socket, said: Said) -> None:
    socket.send(said.text if not said.wait else f"wait {said.wait:.0f}")


@dataclass
class Served:
    """A server with one application on it, that does as it is told with each message."""

    clock: TurnableClock
    sockets: Sockets
    act: Act = echo
    port: int = 0
    ended: list[int] = field(default_factory=list)
    opened: list[Socket] = field(default_factory=list)
    stop: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.sockets.open(scope, receive, send) as socket:
            if socket is None:
                return
            self.opened.append(socket)
            try:
                while True:
                    await self.act(socket, await socket.receive())
            except SocketEnded as end:
                self.ended.append(end.code)

    def connect(self, **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}/", compression=None, **options)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Served]:
    clock = TurnableClock()
    served = Served(clock, Sockets(["https://app.example.com/"], clock))
    listener = server.listen("127.0.0.1", 0)
    served.port = listener.getsockname()[1]
    settings = {"ws_max_size": MAXIMUM_MESSAGE, "ws_per_message_deflate": False, **options}
    config = uvicorn.Config(
        served, lifespan="off", log_config=None, http=server.Protocol, ws=SocketProtocol, loop="none", **settings
    )
    config.timeout_graceful_shutdown = 10
    process = server.DrainingServer(config)
    running = asyncio.create_task(process._serve(sockets=[listener]))

    async def stop() -> None:
        process.should_exit = True
        await running

    served.stop = stop
    try:
        yield served
    finally:
        await stop()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


async def close_code(connection: ClientConnection, seconds: float = 10.0) -> int | None:
    """With which code the server ends it; what it says before is passed over."""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.recv()
    return connection.close_code


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for knows nothing of tests
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "http://app.example.com",
        "https://app.example.com:444",
        "null",
        "",
        "file://",
        "http://127.0.0.1",
        "https://evil.example/https://app.example.com",
        "http://[",
    ],
)
async def test_pages_of_other_origins_are_refused(served: Served, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with served.connect(additional_headers={"Origin": origin}):
            pass
    assert refused.value.response.status_code == 403
    assert not served.opened


@pytest.mark.parametrize("origin", ["https://app.example.com", "HTTPS://APP.EXAMPLE.COM", "its own", None])
async def test_known_pages_and_programs_are_let_in(served: Served, origin: str | None) -> None:
    if origin == "its own":
        origin = f"http://127.0.0.1:{served.port}"
    headers = {"Origin": origin} if origin else {}
    async with served.connect(additional_headers=headers) as connection:
        await connection.send("hello")
        assert await connection.recv() == "hello"


async def test_a_message_of_64_kibibytes_is_heard_and_a_longer_one_ends_the_connection(served: Served) -> None:
    async with served.connect() as connection:
        await connection.send("x" * MAXIMUM_MESSAGE)
        assert len(await connection.recv()) == MAXIMUM_MESSAGE
        await connection.send("x" * (MAXIMUM_MESSAGE + 1))
        assert await close_code(connection) == 1009
    for text in ("x" * 16_777_216, ["x" * 40_000, "y" * 40_000], [""] * 2000 + ["x"]):
        async with served.connect() as connection:
            with contextlib.suppress(ConnectionClosed):
                await connection.send(text)
            assert await close_code(connection) == 1009


async def test_binary_messages_and_text_that_is_none_end_the_connection(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with served.connect() as connection:
        await connection.send(b"\x00")
        assert await close_code(connection) == 1003
    async with served.connect() as connection:
        await connection.send(b"\xff\xfe", text=True)
        assert await close_code(connection) == 1007
    assert not caplog.records


async def test_sixty_messages_a_minute_are_heard(served: Served) -> None:
    async with served.connect() as connection:
        for number in range(60):
            await connection.send(f"{number}")
            assert await connection.recv() == f"{number}"
        await connection.send("one more")
        assert str(await connection.recv()).startswith("wait ")
        served.clock.advance(60)
        await connection.send("later")
        assert await connection.recv() == "later"


async def test_whoever_does_not_stop_is_shut_out(served: Served) -> None:
    async with served.connect() as connection:
        for number in range(121):
            await connection.send(f"{number}")
        heard = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                heard.append(await connection.recv())
        assert heard[:60] == [f"{number}" for number in range(60)]
        assert all(str(each).startswith("wait ") for each in heard[60:])
        assert connection.close_code == 1008


async def test_one_user_has_twenty_sockets_and_one_that_ends_makes_room(served: Served) -> None:
    async def claim(socket: Socket, said: Said) -> None:
        socket.send("yes" if served.sockets.claim(socket, said.text) else "no")

    served.act = claim
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(served.connect()) for _ in range(22)]

        async def ask(connection: ClientConnection, who: str) -> str:
            await connection.send(who)
            return str(await connection.recv())

        assert [await ask(connection, "alice") for connection in connections[:21]] == [*["yes"] * 20, "no"]
        assert await ask(connections[21], "bob") == "yes"
        assert await ask(connections[0], "alice") == "yes"
        await connections[0].close()
        await until(lambda: served.sockets.count() == 21)
        assert await ask(connections[20], "alice") == "yes"
        assert await ask(connections[21], "alice") == "no"
    await until(lambda: served.sockets.count() == 0)


async def test_all_sockets_together_have_a_limit(served: Served) -> None:
    served.sockets = Sockets([], served.clock, maximum=3)
    async with served.connect(), served.connect(), served.connect():
        with pytest.raises(InvalidStatus):
            async with served.connect():
                pass
    await until(lambda: served.sockets.count() == 0)
    async with served.connect() as connection:
        await connection.send("room again")
        assert await connection.recv() == "room again"


async def test_a_peer_that_does_not_read_is_cut_off_at_a_mebibyte() -> None:
    async with serving() as served:
        sent = 0

        async def pour(socket: Socket, said: Said) -> None:
            nonlocal sent
            while not socket.closed:
                socket.send("x" * 10_000)
                sent += 10_000
                await asyncio.sleep(0)

        served.act = pour
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.get_extra_info("socket").setsockopt(sockets_of_the_system.SOL_SOCKET, sockets_of_the_system.SO_RCVBUF, 1)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"\x81\x82\x00\x00\x00\x00go")  # a masked text frame
        await until(lambda: served.sockets.count() == 0)
        # What the buffers of the system took, beside the mebibyte of ours.
        assert 1_048_576 < sent < 12_000_000
        writer.close()


async def test_one_message_may_be_longer_than_what_may_wait(served: Served) -> None:
    async def long(socket: Socket, said: Said) -> None:
        socket.send("é" * 1_000_000)

    served.act = long
    async with served.connect(max_size=None) as connection:
        for _ in range(3):
            await connection.send("")
            assert len(await connection.recv()) == 1_000_000


async def test_a_socket_ends_with_what_it_was_opened_by(served: Served) -> None:
    proofs: dict[str, bool] = {}

    async def bind(socket: Socket, said: Said) -> None:
        async def proof() -> None:
            if not proofs[said.text]:
                raise TokenRevoked()

        proofs[said.text] = True
        socket.proof = proof
        socket.send("bound")

    served.act = bind
    async with served.connect() as ending, served.connect() as staying:
        for connection, name in ((ending, "ending"), (staying, "staying")):
            await connection.send(name)
            assert await connection.recv() == "bound"
        proofs["ending"] = False
        assert await close_code(ending, 2 * sockets.ROUND_SECONDS) == 1008
        await staying.send("staying")
        assert await staying.recv() == "bound"


async def test_a_proof_that_cannot_be_had_ends_nothing(served: Served) -> None:
    asked = asyncio.Event()

    async def bind(socket: Socket, said: Said) -> None:
        async def proof() -> None:
            asked.set()
            raise OSError("away")

        socket.proof = proof
        socket.send("bound")

    served.act = bind
    async with served.connect() as connection:
        await connection.send("")
        await connection.recv()
        await asyncio.wait_for(asked.wait(), 2 * sockets.ROUND_SECONDS)
        await connection.send("still there")
        assert await connection.recv() == "bound"


async def test_a_stop_lets_what_is_under_way_end_and_asks_to_come_back() -> None:
    async with serving() as served:

        async def finish(socket: Socket, said: Said) -> None:
            stopping = socket.stopping
            assert stopping is not None
            await stopping.wait()
            socket.send("the last word")
            await socket.close(sockets.RESTARTING, "restarting")

        served.act = finish
        async with served.connect() as connection:
            await connection.send("begin")
            await until(lambda: bool(served.opened))
            assert served.stop is not None
            stop = asyncio.ensure_future(served.stop())
            assert await connection.recv() == "the last word"
            assert await close_code(connection) == 1012
            await stop


async def test_a_stop_does_not_wait_for_one_that_goes_on() -> None:
    async with serving() as served, served.connect() as connection:
        await connection.send("here")
        assert await connection.recv() == "here"
        assert served.stop is not None
        stop = asyncio.ensure_future(served.stop())
        assert await close_code(connection) == 1012
        await stop
    assert served.ended == [1012]


async def test_a_peer_that_is_gone_without_a_word_is_noticed() -> None:
    async with serving(ws_ping_interval=0.2, ws_ping_timeout=0.2) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")  # and no pong is ever sent
        await until(lambda: served.sockets.count() == 1)
        await until(lambda: served.sockets.count() == 0)
        writer.close()


@pytest.mark.parametrize("frame", [b"\x89\x80\0\0\0\0", b"\x8a\x80\0\0\0\0"], ids=["ping", "pong"])
async def test_frames_without_messages_have_a_limit_too(served: Served, frame: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(frame * (MAXIMUM_HEARD - 10) + b"\x81\x85\0\0\0\0hello")
    async with asyncio.timeout(10):
        await reader.readuntil(b"\x81\x05hello")
        writer.write(frame * 100_000)
        with contextlib.suppress(ConnectionError):
            assert b"\x88\x02\x03\xf0" in await reader.read()
    await until(lambda: served.ended == [1008])
    writer.close()


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [("/?" + "x" * 10_000, "", b"414"), ("/", "X: " + "x" * 10_000 + "\r\n", b"431"), ("/", "X: \x01\r\n", b"400")],
)
async def test_a_handshake_that_cannot_be_read_is_answered_and_closed(
    served: Served, path: str, more: str, status: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(HANDSHAKE.replace(b"GET / ", f"GET {path} ".encode()).replace(b"\r\n\r\n", f"\r\n{more}\r\n".encode()))
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
    writer.close()
