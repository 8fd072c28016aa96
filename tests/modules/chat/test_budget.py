"""The budget: what one user may use on a day is reserved before anything is sent, and settled when it has ended."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bedplate.kernel.db import Database, Transaction
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.modules.chat import rules
from bedplate.modules.chat.public import Begun, Message, Problem, TokenBudgetExceeded, Turn
from tests.factories import TurnableClock
from tests.fakes.model_server import ModelServer
from tests.modules.chat.room import QUICK, Room, open_room, someone

BUDGET = 5_000


async def test_what_is_reserved_is_settled_with_what_was_used(db: Database, upstream: ModelServer) -> None:
    async with open_room(db, upstream, TurnableClock(), daily_tokens=BUDGET) as room:
        user = someone()
        upstream.script("held")
        asked = await room.ask(user, "one two three")
        assert await room.charged() == rules.prompt_tokens([Turn("user", "one two three")]) + 1000
        upstream.held.set()
        _, outcome = await room.heard(asked)
        assert outcome.usage is not None
        assert await room.charged() == outcome.usage.total_tokens == 8


async def test_a_used_up_budget_refuses_until_the_next_day(db: Database, upstream: ModelServer) -> None:
    clock = TurnableClock()
    async with open_room(db, upstream, clock, daily_tokens=1_000) as room:
        user, other = someone(), someone()
        with pytest.raises(TokenBudgetExceeded) as refused:
            await room.ask(user, max_tokens=1000)
        details = refused.value.details
        assert details["limit"] == 1_000 and 1 <= int(str(details["retry_after"])) <= 86_400
        await room.heard(await room.ask(user, max_tokens=900))
        await room.ask(other, max_tokens=900)
        for _ in range(100):
            try:
                await room.heard(await room.ask(user, "x " * 40, max_tokens=900))
            except TokenBudgetExceeded:
                break
        else:
            raise AssertionError("nobody noticed")
        assert not upstream.behaviours
        clock.advance(86_400)
        await room.heard(await room.ask(user, max_tokens=900))


@pytest.mark.parametrize("kept", [True, False], ids=["chat", "completions"])
async def test_fifty_at_the_end_of_a_budget_never_have_more_than_there_is(
    db: Database, upstream: ModelServer, kept: bool
) -> None:
    each = rules.prompt_tokens([Turn("user", "Hello there")]) + 1000
    async with open_room(db, upstream, TurnableClock(), daily_tokens=3 * each + 10) as room:
        user = someone()
        upstream.script(*["held"] * 50)

        async def one() -> Message | Begun | Problem:
            try:
                return await room.ask(user) if kept else await room.begin(caller=user)
            except TokenBudgetExceeded as refused:
                return refused

        found = await asyncio.gather(*(one() for _ in range(50)))
        begun = [answer for answer in found if not isinstance(answer, Problem)]
        assert len(begun) == 3
        assert await room.charged() == 3 * each
        assert len(await room.messages()) == (3 if kept else 0)
        upstream.held.set()
        outcomes = [(await room.heard(answer))[1] for answer in begun]
        used = sum(outcome.usage.total_tokens for outcome in outcomes if outcome.usage)
        assert await room.charged() == used
        assert len(upstream.requests) == 3


async def test_fifty_of_two_processes_do_not_either(empty_postgres: str, upstream: ModelServer) -> None:
    from bedplate.kernel.postgres import PostgresDatabase

    each = rules.prompt_tokens([Turn("user", "Hello there")]) + 1000
    clock, databases = TurnableClock(), [PostgresDatabase(empty_postgres) for _ in range(2)]
    async with (
        open_room(databases[0], upstream, clock, daily_tokens=2 * each) as one,
        open_room(databases[1], upstream, clock, daily_tokens=2 * each) as other,
    ):
        user = someone()
        upstream.script(*["held"] * 50)
        asking = [room.ask(user) for room in (one, other) for _ in range(25)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(each, TokenBudgetExceeded) for each in found) == 48
        assert await one.charged() == 2 * each
        upstream.held.set()
        await one.answers.stop(5)
        await other.answers.stop(5)
    for database in databases:
        await database.close()


@pytest.mark.parametrize(
    ("fault", "charged"), [("fail:500", 0), ("busy:0", 0), ("fail:400", 0), ("cut:2", 10), ("hang", 1010)]
)
async def test_what_failed_is_charged_as_far_as_it_may_have_cost(
    sqlite_db: Database, upstream: ModelServer, fault: str, charged: int
) -> None:
    patience = QUICK if fault != "hang" else type(QUICK)(first=5.0, idle=5.0, total=0.3)
    async with open_room(sqlite_db, upstream, TurnableClock(), daily_tokens=BUDGET, patience=patience) as room:
        upstream.script(*[fault] * 3)
        await room.answered(someone(), "Hello, hello, hello, you")  # 6 tokens and 4 for the turn
        assert await room.charged() == charged + (rules.tokens("You said:") if fault == "cut:2" else 0)


async def test_a_question_that_was_sent_is_charged_though_nobody_waited_for_a_word(
    sqlite_db: Database, upstream: ModelServer
) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), daily_tokens=BUDGET) as room:
        upstream.script("hang")
        begun = await room.begin("Hello, hello, hello, you")  # 6 tokens and 4 for the turn
        async with asyncio.timeout(5):
            while not upstream.requests:  # noqa: ASYNC110  # it knows nothing of tests
                await asyncio.sleep(0.01)
        await room.completions.stop(begun.id)
        assert await room.failed(begun) == "AnswerInterrupted"
        assert await room.charged() == 10
        assert [(row.requests, row.prompt_tokens) for row in await room.usage_rows()] == [(1, 10)]


class Losing(SqliteDatabase):
    """Its commits are carried out, and the answers to some of them lost."""

    lost = 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with super().transaction() as tx:
            yield tx
        if self.lost:
            self.lost -= 1
            raise Unavailable()


@pytest.mark.parametrize("kept", [True, False], ids=["chat", "completions"])
async def test_a_record_whose_answer_is_lost_is_counted_once(
    tmp_path: Path, sqlite_template: Path, upstream: ModelServer, kept: bool
) -> None:
    shutil.copy(sqlite_template, tmp_path / "chat.db")
    db = Losing(str(tmp_path / "chat.db"))
    async with open_room(db, upstream, TurnableClock(), daily_tokens=BUDGET) as room:
        user = someone()
        upstream.script("held")
        asked = await (room.ask(user) if kept else room.begin(caller=user))
        db.lost = 1
        upstream.held.set()
        text, outcome = await room.heard(asked)
        assert text == "You said: Hello there" and outcome.checked().usage is not None
        assert [row.requests for row in await room.usage_rows()] == [1]
        assert await room.charged() == outcome.usage.total_tokens
    await db.close()


async def test_a_question_that_could_not_be_noted_reserves_nothing(room: Room) -> None:
    assert await room.charged() == 0
    with pytest.raises(TokenBudgetExceeded):
        async with open_room(room.db, room.upstream, room.clock, daily_tokens=10) as small:
            await small.ask(someone())
    assert await room.charged() == 0 and await room.messages() == []
