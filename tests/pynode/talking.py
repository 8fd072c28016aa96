"""A running Dev-PyNode, and what clients of its WebSocket say and hear."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from bedplate.kernel import server
from bedplate.kernel.frames import MAXIMUM_MESSAGE, SocketProtocol
from tests.world import World


@dataclass
class Served:
    """A running server of a world's Dev-PyNode."""

    world: World
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, token: str = "", **options: Any) -> connect:
        query = f"?token={token}" if token else ""
        return connect(f"ws://127.0.0.1:{self.port}/ws{query}", compression=None, **options)


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[Served]:
    listener = server.listen("127.0.0.1", 0)
    config = uvicorn.Config(
        world.served("pynode"),
        lifespan="off",
        log_config=None,
        http=server.Protocol,
        ws=SocketProtocol,
        ws_max_size=MAXIMUM_MESSAGE,
        loop="none",
        timeout_graceful_shutdown=10,
    )
    process = server.DrainingServer(config)
    running = asyncio.create_task(process._serve(sockets=[listener]))
    try:
        yield Served(world, listener.getsockname()[1])
    finally:
        process.should_exit = True
        await running


async def say(connection: ClientConnection, kind: str, **data: Any) -> None:
    await connection.send(orjson.dumps({"type": kind, "data": data}).decode())


async def hear(connection: ClientConnection, seconds: float = 10.0) -> tuple[str, dict[str, Any]]:
    """The next message: its type and its data."""
    async with asyncio.timeout(seconds):
        message = orjson.loads(await connection.recv())
    assert message.keys() == {"type", "data"}
    return message["type"], message["data"]


async def hear_until(connection: ClientConnection, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Everything up to the first message of this type, which is the last of the list."""
    heard = [await hear(connection)]
    while heard[-1][0] != kind:
        heard.append(await hear(connection))
    return heard
