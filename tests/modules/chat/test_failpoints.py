"""Crashes: whatever place a process fails, hangs or dies at, what is stored is true and nobody waits for ever."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.kernel import failpoints
from bedplate.kernel.db import Database
from bedplate.kernel.failpoints import KILLED, FailpointReached
from bedplate.kernel.feeds import FeedGone
from bedplate.kernel.paging import Slice
from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.modules.chat.answers import LEASE
from bedplate.modules.chat.public import AnswerStatus
from tests.factories import TurnableClock
from tests.failpoints import of_module
from tests.fakes.model_server import ModelServer
from tests.modules.chat.room import QUICK, Room, open_room, someone

POINTS = of_module("chat")
ASKING = [point for point in POINTS if ".ask." in point]
ANSWERING = [point for point in POINTS if ".answer." in point]
SWEEPING = [point for point in POINTS if ".sweep." in point]
BUDGET = 100_000
ROOT = Path(__file__).parent.parent.parent.parent


def test_every_failpoint_is_walked() -> None:
    assert sorted([*ASKING, *ANSWERING, *SWEEPING]) == sorted(POINTS)


async def settle(room: Room) -> None:
    """As time goes by."""
    room.clock.advance(LEASE.total_seconds() + 1)
    await room.answers.sweep()


async def check(room: Room, user: str) -> None:
    """What is stored, after everything: an answer is whole and counted, or failed and not in the history."""
    for row in await room.messages():
        assert row.status in ("completed", "failed")
        assert (row.response == "You said: Hello there") == (row.status == "completed")
        assert (row.response is None) == (row.status == "failed")
    completed = [row for row in await room.messages() if row.status == "completed"]
    assert (await room.chat.history(user, Slice(10, 0))).total == len(completed)
    assert sum(row.requests for row in await room.usage_rows()) == len(completed)
    assert await room.charged() >= sum(row.prompt_tokens + row.completion_tokens for row in completed)


@pytest.mark.parametrize("action", ["raise", "hang"])
@pytest.mark.parametrize("point", [*ASKING, *ANSWERING])
async def test_a_failure_anywhere_leaves_nothing_half_done(
    db: Database, upstream: ModelServer, point: str, action: str
) -> None:
    async with open_room(db, upstream, TurnableClock(), daily_tokens=BUDGET, patience=QUICK) as room:
        user = someone()
        failpoints.arm(f"{point}:{action}")
        try:
            async with asyncio.timeout(1):
                asked = await room.ask(user)
                _, outcome = await room.heard(asked)
                stored = await room.chat.get_message(user, asked.id)
                # What is told is what is stored.
                assert stored.status is outcome.status
        except (FailpointReached, TimeoutError):
            pass
        failpoints.arm("")
        await room.answers.stop(0.1)
        await settle(room)
        await check(room, user)
        for row in await room.messages():
            try:
                _, outcome = await room.heard(await room.chat.get_message(user, row.id))
                assert outcome.status == row.status
            except FeedGone:
                pass


@pytest.mark.parametrize("point", SWEEPING)
async def test_a_sweep_that_fails_is_made_again(db: Database, upstream: ModelServer, point: str) -> None:
    async with open_room(db, upstream, TurnableClock(), daily_tokens=BUDGET, patience=QUICK) as room:
        user = someone()
        failpoints.arm("chat.ask.after_commit:raise")
        with pytest.raises(FailpointReached):
            await room.ask(user)
        [row] = await room.messages()
        assert row.status == "pending"
        await room.answers.sweep()
        assert (await room.messages())[0].status == "pending"  # its time is not over
        failpoints.arm(f"{point}:raise")
        with pytest.raises(FailpointReached):
            await settle(room)
        await room.answers.sweep()
        await check(room, user)
        assert (await room.messages())[0].problem == "AnswerInterrupted"


SCRIPT = """
import asyncio, sys
from bedplate.kernel.sqlite import SqliteDatabase
from tests.factories import TurnableClock
from tests.modules.chat.room import open_room

class There:  # a model server of another process
    base_url, held = sys.argv[2], asyncio.Event()

async def main():
    async with open_room(SqliteDatabase(sys.argv[1]), There(), TurnableClock(), daily_tokens=100_000) as room:
        if sys.argv[4] == "sweep":
            room.clock.advance(1_000)
            await room.answers.sweep()
        else:
            asked = await room.ask(sys.argv[3])
            print("acknowledged", flush=True)
            await room.heard(asked)
            print("completed", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("point", POINTS)
async def test_a_process_that_dies_anywhere_leaves_nothing_that_is_not_mended(
    sqlite_db: SqliteDatabase, upstream: ModelServer, tmp_path: Path, point: str
) -> None:
    user = someone()
    path = str(tmp_path / "chat.db")

    async def run(what: str, point: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, failpoints.VARIABLE: f"{point}:exit" if point else ""}
        line = [sys.executable, "-c", SCRIPT, path, upstream.base_url, user, what]
        return await asyncio.to_thread(
            subprocess.run, line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=30
        )

    ran = await run("ask", "chat.ask.after_commit" if ".sweep." in point else point)
    assert ran.returncode == KILLED, ran.stderr
    if ".sweep." in point:
        ran = await run("sweep", point)
        assert ran.returncode == KILLED, ran.stderr
    async with open_room(sqlite_db, upstream, TurnableClock(), daily_tokens=BUDGET) as room:
        rows = await room.messages()
        # What was acknowledged is there; what was told to be complete is complete.
        assert len(rows) == (0 if point == "chat.ask.before_commit" else 1)
        if point == "chat.answer.after_record":
            assert rows[0].status == "completed"
        await settle(room)
        await check(room, user)


async def test_an_answer_that_was_given_up_is_not_completed_any_more(room: Room) -> None:
    user = someone()
    room.upstream.script("held")
    asked = await room.ask(user)
    await room.asked(1)
    await settle(room)  # as another process would, whose clock is ahead
    room.upstream.held.set()
    await room.answers.stop(5)
    stored = await room.chat.get_message(user, asked.id)
    assert (stored.status, stored.response, stored.problem) == (AnswerStatus.FAILED, None, "AnswerInterrupted")
    assert await room.usage_rows() == []
    assert await room.failed(asked) == "AnswerInterrupted"


async def test_who_follows_an_answer_of_a_dead_process_hears_that_it_is_over(room: Room) -> None:
    room.upstream.script("held")
    asked = await room.ask(someone())
    later = TurnableClock()
    later.advance(LEASE.total_seconds() + 1)
    async with open_room(room.db, room.upstream, later, feeds=room.feeds) as other:
        following = asyncio.create_task(room.failed(asked))
        await other.answers.sweep()
        async with asyncio.timeout(2):
            assert await following == "AnswerInterrupted"
        assert not room.upstream.held.is_set()
