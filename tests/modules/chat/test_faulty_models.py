"""Whatever a model server does: who asked hears of it in time, and what is stored is true."""

import asyncio
import time

import pytest

from bedplate.kernel.db import Database
from bedplate.kernel.paging import Slice
from bedplate.modules.chat.answers import OF_ONE
from bedplate.modules.chat.public import AnswerStatus, ModelBusy, ModelUnavailable
from tests.factories import TurnableClock
from tests.fakes.model_server import HOSTILE, ModelServer
from tests.modules.chat.room import QUICK, Room, open_room, someone

# What a server may do three times in a row, since some of it is tried again; and what comes of it.
FAULTS = {
    "busy:0": "ModelBusy",
    "busy:3000": "ModelBusy",
    "busy:soon": "ModelBusy",
    "fail:500": "ModelUnavailable",
    "fail:503": "ModelUnavailable",
    "fail:400": "ModelRefused",
    "fail:401": "ModelRefused",
    "fail:404": "ModelRefused",
    "close": "ModelUnavailable",
    "cut:0": "ModelUnavailable",
    "cut:2": "ModelUnavailable",
    "ended": "ModelUnavailable",
    "stall:2": "ModelSilent",
    "hang": "ModelSilent",
    "garbage": "ModelUnavailable",
    "other_json": "ModelUnavailable",
    "other_json:7": "ModelUnavailable",
    "other_json:null": "ModelUnavailable",
    'other_json:{"choices": "x"}': "ModelUnavailable",
    'other_json:{"choices": [1]}': "ModelUnavailable",
    'other_json:{"choices": [{"delta": {"content": [1]}}]}': "ModelUnavailable",
    "html": "ModelUnavailable",
    "not_http": "ModelUnavailable",
    "redirect:http://127.0.0.1:1/": "ModelUnavailable",
    "giant": "ModelUnavailable",
    "giant_head": "ModelUnavailable",
    "endless": "ModelUnavailable",
    "error_in_stream": "ModelUnavailable",
}


@pytest.mark.parametrize(("fault", "problem"), FAULTS.items(), ids=list(FAULTS))
async def test_a_faulty_server_fails_the_answer_and_nothing_else(
    sqlite_db: Database, upstream: ModelServer, fault: str, problem: str
) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), patience=QUICK) as room:
        user = someone()
        upstream.script(*[fault] * 3)
        began = time.monotonic()
        asked = await room.ask(user)
        text, outcome = await room.heard(asked)
        assert time.monotonic() - began < 6
        assert (outcome.status, outcome.problem) == (AnswerStatus.FAILED, problem)
        stored = await room.chat.get_message(user, asked.id)
        assert (stored.status, stored.response, stored.problem) == (AnswerStatus.FAILED, None, problem)
        assert (await room.chat.history(user, Slice(10, 0))).total == 0
        assert await room.usage_rows() == []
        assert "You said: Hello there".startswith(text) or fault in ("giant", "endless")
        with pytest.raises((ModelBusy, ModelUnavailable) if problem != "ModelRefused" else Exception):
            outcome.checked()
        # The next one is answered.
        upstream.behaviours.clear()
        assert (await room.answered(user, "again"))[0] == "You said: again"
        assert [(answer.status, answer.model) for answer in room.told] == [("failed", "gpt-4"), ("completed", "gpt-4")]


@pytest.mark.parametrize("fault", ["busy:0", "busy:1", "fail:500", "fail:529", "close", "cut:0", "html", "garbage"])
async def test_what_has_not_begun_is_tried_again(sqlite_room: Room, fault: str) -> None:
    sqlite_room.upstream.script(fault)
    began = time.monotonic()
    text, outcome = await sqlite_room.answered(someone())
    assert text == "You said: Hello there" and outcome.status is AnswerStatus.COMPLETED
    assert len(sqlite_room.upstream.requests) == 2
    assert time.monotonic() - began >= (1.0 if fault == "busy:1" else 0.1)


async def test_what_has_begun_is_not_tried_again(sqlite_room: Room) -> None:
    sqlite_room.upstream.script("cut:2")
    text, outcome = await sqlite_room.answered(someone())
    assert (text, outcome.problem) == ("You said:", "ModelUnavailable")
    assert len(sqlite_room.upstream.requests) == 1


async def test_a_silent_server_is_not_asked_again(sqlite_db: Database, upstream: ModelServer) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), patience=QUICK) as room:
        upstream.script("hang")
        assert await room.failed(await room.ask(someone())) == "ModelSilent"
        assert len(upstream.requests) == 1


async def test_a_long_retry_after_is_told_and_not_waited_for(sqlite_room: Room) -> None:
    sqlite_room.upstream.script("busy:120", "busy:99999999")
    began = time.monotonic()
    details = [(await sqlite_room.answered(someone()))[1].details for _ in range(2)]
    assert details == [{"retry_after": 120}, {"retry_after": 3600}]
    assert time.monotonic() - began < 1


async def test_a_server_that_is_not_there_is_left_alone_after_a_while(sqlite_db: Database) -> None:
    async with ModelServer() as gone:
        pass
    clock = TurnableClock()
    async with open_room(sqlite_db, gone, clock, patience=QUICK) as room:
        for _ in range(2):  # three tries each; the fifth failure opens the circuit
            assert await room.failed(await room.ask(someone())) == "ModelUnavailable"
        began = time.monotonic()
        _, outcome = await room.answered(someone())
        assert outcome.problem == "ModelUnavailable" and time.monotonic() - began < 0.1
        assert 50 <= outcome.details["retry_after"] <= 60
        # Others are answered meanwhile.
        assert (await room.answered(someone(), model="mistral"))[1].status is AnswerStatus.COMPLETED
        async with ModelServer(gone._port):
            clock.advance(61)
            assert (await room.answered(someone()))[1].status is AnswerStatus.COMPLETED
            assert (await room.answered(someone()))[1].status is AnswerStatus.COMPLETED


async def test_refusals_do_not_open_the_circuit(sqlite_room: Room) -> None:
    sqlite_room.upstream.script(*["fail:400"] * 8)
    for _ in range(8):
        await sqlite_room.answered(someone())
    assert (await sqlite_room.answered(someone()))[1].status is AnswerStatus.COMPLETED


async def test_text_that_no_database_takes_is_made_storable(room: Room) -> None:
    user = someone()
    room.upstream.script("hostile")
    asked = await room.ask(user)
    text, outcome = await room.heard(asked)
    assert outcome.status is AnswerStatus.COMPLETED
    assert text == f"before {HOSTILE} after".replace("\0", "\ufffd").replace("\ud800", "\ufffd")
    assert (await room.chat.get_message(user, asked.id)).response == text


async def test_bytes_may_come_torn_anywhere(room: Room) -> None:
    user = someone()
    room.upstream.script("bytes_each")
    asked = await room.ask(user, "Grüße 𝄞 日本")
    text, _ = await room.heard(asked)
    assert text == "You said: Grüße 𝄞 日本"
    assert (await room.chat.get_message(user, asked.id)).response == text


async def test_an_empty_answer_is_one(room: Room) -> None:
    user = someone()
    room.upstream.script("empty")
    asked = await room.ask(user)
    assert (await room.heard(asked))[0] == ""
    assert (await room.chat.get_message(user, asked.id)).response == ""


async def test_why_an_answer_ends_is_told(sqlite_room: Room) -> None:
    sqlite_room.upstream.script("filtered")
    _, outcome = await sqlite_room.answered(someone())
    assert outcome.finish_reason == "content_filter"


async def test_connections_are_used_again(sqlite_room: Room) -> None:
    for _ in range(10):
        await sqlite_room.answered(someone())
    assert len(sqlite_room.upstream.connections) == 1


async def test_no_more_are_under_way_or_wait_than_the_limits(sqlite_db: Database, upstream: ModelServer) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), running=2, waiting=3) as room:
        upstream.script(*["held"] * 5)
        asked = [await room.ask(someone(), f"question {number}") for number in range(5)]
        with pytest.raises(ModelBusy) as busy:
            await room.ask(someone())
        assert busy.value.details["retry_after"] >= 1
        await room.asked(2)
        await asyncio.sleep(0.1)  # in which a third would be asked
        assert len(upstream.requests) == 2
        upstream.held.set()
        texts = [(await room.heard(each))[0] for each in asked]
        assert texts == [f"You said: question {number}" for number in range(5)]
        await room.answered(someone())
        assert len(await room.messages()) == 6


async def test_a_slow_provider_does_not_hold_up_another(sqlite_db: Database, upstream: ModelServer) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), running=1, waiting=5) as room:
        upstream.script("held")
        slow = await room.ask(someone())
        assert (await room.answered(someone(), model="mistral"))[1].status is AnswerStatus.COMPLETED
        upstream.held.set()
        await room.heard(slow)


async def test_a_stopping_process_lets_answers_end(sqlite_room: Room) -> None:
    user = someone()
    sqlite_room.upstream.script("slow:0.3")
    asked = await sqlite_room.ask(user)
    await sqlite_room.answers.stop(5)
    assert (await sqlite_room.chat.get_message(user, asked.id)).status is AnswerStatus.COMPLETED
    with pytest.raises(ModelBusy):
        await sqlite_room.ask(user)


async def test_what_does_not_end_while_it_stops_is_failed(sqlite_db: Database, upstream: ModelServer) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), running=2) as room:
        user = someone()
        upstream.script("held", "hang")
        asked = [await room.ask(user) for _ in range(4)]  # two of them wait for a place
        await room.asked(2)
        began = time.monotonic()
        await room.answers.stop(0.2)
        assert time.monotonic() - began < 2
        for each in asked:
            assert await room.failed(each) == "AnswerInterrupted"
            assert (await room.chat.get_message(user, each.id)).problem == "AnswerInterrupted"
        assert (await room.chat.history(user, Slice(10, 0))).total == 0


async def test_one_caller_does_not_take_the_places_of_others(sqlite_room: Room) -> None:
    room, greedy, other = sqlite_room, someone(), someone()
    room.upstream.default = "held"
    begun = [await room.ask(greedy) for _ in range(OF_ONE)]
    with pytest.raises(ModelBusy):
        await room.ask(greedy)
    with pytest.raises(ModelBusy):
        await room.begin(caller=greedy)
    begun.append(await room.ask(other))
    room.upstream.held.set()
    for asked in begun:
        assert (await room.heard(asked))[1].status is AnswerStatus.COMPLETED
    assert (await room.answered(greedy))[1].status is AnswerStatus.COMPLETED


async def test_a_slow_provider_does_not_take_the_places_of_another(sqlite_db: Database, upstream: ModelServer) -> None:
    async with open_room(sqlite_db, upstream, TurnableClock(), running=1, waiting=1) as room:
        upstream.default = "held"
        held = [await room.ask(someone()) for _ in range(2)]
        with pytest.raises(ModelBusy):
            await room.ask(someone())
        assert (await room.answered(someone(), model="mistral"))[1].status is AnswerStatus.COMPLETED
        upstream.held.set()
        for asked in held:
            assert (await room.heard(asked))[1].status is AnswerStatus.COMPLETED
