"""What sockets cost that nobody talks on, and a stop while many are open."""

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.factories import PASSWORD
from tests.processes import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
OF_ONE = 20
MEBIBYTE = 2**20


async def tokens(server: Server, number: int) -> list[str]:
    async with server.client() as client:

        async def register(index: int) -> str:
            body = {"email": f"user{index}@example.com", "password": PASSWORD, "name": "User"}
            answer = await client.post("/api/auth/register", json=body)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["access_token"])

        return list(await asyncio.gather(*map(register, range(number))))


async def opened(server: Server, token: str) -> ClientConnection:
    address = f"ws://127.0.0.1:{server.port}/ws?token={token}"
    connection = await connect(address, compression=None, ping_interval=None, open_timeout=60)
    assert orjson.loads(await connection.recv())["type"] == "auth_response"
    return connection


@pytest.mark.parametrize(("number", "most"), [(1000, 100), (5000, 300)])
async def test_idle_sockets_cost_little_and_a_stop_sends_all_of_them_away(
    tmp_path: Path, number: int, most: int
) -> None:
    with Server(tmp_path, "serve", "pynode", BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
        shown = [token for token in await tokens(server, number // OF_ONE) for _ in range(OF_ONE)]
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        async with AsyncExitStack() as stack:
            connections: list[ClientConnection] = []
            for start in range(0, number, 100):
                part = await asyncio.gather(*(opened(server, token) for token in shown[start : start + 100]))
                for connection in part:
                    stack.push_async_callback(connection.close)
                connections += part
            grown = (process.memory_info().rss - before) / MEBIBYTE
            print(f"{number} idle sockets: {grown:.1f} MiB, {grown * 1024 / number:.1f} KiB each")
            assert grown <= most
            server.signal(signal.SIGTERM)

            async def code(connection: ClientConnection) -> int | None:
                try:
                    async with asyncio.timeout(15):
                        await connection.recv()
                except ConnectionClosed:
                    pass
                return connection.close_code

            assert set(await asyncio.gather(*map(code, connections))) == {1012}
        assert await asyncio.to_thread(server.wait) == 0
        assert "Traceback" not in server.log
        assert "token=" not in server.log
