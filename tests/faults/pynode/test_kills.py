"""Kills while answers grow: what was acknowledged is there, what was told to be whole is whole, the rest is failed."""

import asyncio
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import select

from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.models import ChatMessageRow, UsageRow
from bedplate.modules.chat.answers import LEASE
from tests.factories import PASSWORD, TurnableClock, email
from tests.fakes.model_server import ModelServer
from tests.modules.chat.room import open_room
from tests.processes import Server

ASKERS = 16
SIZES = [4, pytest.param(60, marks=pytest.mark.faults)]


@dataclass
class Seen:
    """What clients were told: ids that were acknowledged, and texts of answers that were told to be done."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    lost: int = 0


async def ask(client: httpx2.AsyncClient, seen: Seen, question: str) -> None:
    message_id, text = "", ""
    try:
        async with client.stream("POST", "/api/chat", json={"message": question, "stream": True}) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = json.loads(line.removeprefix("data: "))
                if "usage" in data:
                    seen.done[message_id] = text
                elif "id" in data:
                    message_id = data["id"]
                    seen.acknowledged[message_id] = question
                else:
                    text += data.get("text", "")
    except httpx2.TransportError:
        seen.lost += 1
        await asyncio.sleep(0.05)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("kills", SIZES)
async def test_kills_while_answers_grow(tmp_path: Path, upstream: ModelServer, kills: int) -> None:
    upstream.default = "words_each:0.003"
    settings = {"BEDPLATE_RATE_LIMIT_ENABLED": "false", "OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "sk"}
    chance, seen, headers = random.Random(kills), Seen(), {}
    for number in range(kills):
        with Server(tmp_path, "serve", "pynode", **settings) as server:
            async with server.client(headers=headers) as client:
                if not headers:
                    account = {"email": email(), "password": PASSWORD, "name": "Ada"}
                    made = await client.post("/api/auth/register", json=account)
                    headers = {"Authorization": f"Bearer {made.json()['access_token']}"}
                    client.headers.update(headers)

                async def asking(client: httpx2.AsyncClient, asker: int, number: int) -> None:
                    for again in range(10_000):
                        lost = seen.lost
                        await ask(client, seen, f"{number} {asker} {again} " + "word " * (asker % 7))
                        if seen.lost > lost:
                            return

                tasks = [asyncio.create_task(asking(client, asker, number)) for asker in range(ASKERS)]
                await asyncio.sleep(chance.uniform(0.2, 0.6))
                server.kill()
                await asyncio.gather(*tasks)
    await check(tmp_path / "data" / "bedplate.db", upstream, seen)
    print(f"{kills} kills: {len(seen.acknowledged)} acknowledged, {len(seen.done)} done, {seen.lost} lost")


async def check(path: Path, upstream: ModelServer, seen: Seen) -> None:
    db, clock = SqliteDatabase(str(path)), TurnableClock()
    async with open_room(db, upstream, clock) as room:
        clock.advance(LEASE.total_seconds() + 1)
        for _ in range(1 + len(seen.acknowledged) // 100):
            await room.answers.sweep()
        rows = {row.id: row for row in await db.all(select(ChatMessageRow.__table__))}
        used = await db.scalar(select(UsageRow.requests))
    await db.close()
    assert seen.done and seen.lost
    assert seen.acknowledged.keys() <= rows.keys(), "what was acknowledged is there"
    assert {row.status for row in rows.values()} == {"completed", "failed"}
    for message_id, text in seen.done.items():
        assert (rows[message_id].status, rows[message_id].response) == ("completed", text)
    for row in rows.values():
        assert row.response == (f"You said: {' '.join(row.message.split())}" if row.status == "completed" else None)
    assert used == sum(row.status == "completed" for row in rows.values()), "each answer is counted once"
