"""Chat: what is asked is answered, kept and counted, and only for who has asked."""

import asyncio
from typing import Any

import pytest

from bedplate.kernel.errors import InvalidField, Problem
from bedplate.kernel.outbox import Delivery
from bedplate.kernel.paging import Slice
from bedplate.modules.chat import rules
from bedplate.modules.chat.public import (
    AnswerStatus,
    ConversationMissing,
    MessageMissing,
    PromptTooLong,
    Question,
    Sampling,
    Source,
    Turn,
    UnknownModel,
    Usage,
    UsageOfModel,
)
from bedplate.modules.files.public import FileMissing
from bedplate.modules.identity.events import UserDeleted
from tests.modules.chat.room import KEY, MODEL, Room, someone


async def test_an_answer_grows_and_is_stored_as_it_grew(room: Room) -> None:
    user = someone()
    room.upstream.script("words_each:0.002")
    asked = await room.ask(user, "  How are you?  ")
    assert (asked.status, asked.response, asked.message) == (AnswerStatus.PENDING, None, "How are you?")
    text, outcome = await room.heard(asked)
    assert text == "You said: How are you?"
    assert outcome.checked().usage == Usage(3, 5)
    stored = await room.chat.get_message(user, asked.id)
    assert (stored.response, stored.status, stored.usage) == (text, AnswerStatus.COMPLETED, Usage(3, 5))
    assert stored.outcome == outcome and stored.completed_at is not None
    assert stored.id.startswith("chat-") and stored.model == MODEL


async def test_what_is_followed_from_the_middle_is_the_rest_of_what_is_stored(room: Room) -> None:
    user = someone()
    asked = await room.ask(user)
    await room.heard(asked)
    stored = await room.chat.get_message(user, asked.id)
    assert stored.response is not None
    for position in range(0, len(stored.response) + 1, 3):
        assert (await room.heard(asked, position))[0] == stored.response[position:]


async def test_the_model_is_asked_in_its_own_name_and_with_the_key(room: Room) -> None:
    sampling = Sampling(0.2, 77, 0.5, ["stop"])
    await room.heard(await room.chat.ask(someone(), Question("Hi", MODEL, sampling)))
    [request] = room.upstream.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "their-gpt",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.2,
        "max_tokens": 77,
        "top_p": 0.5,
        "stop": ["stop"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_history_has_what_is_completed_newest_first_with_the_exact_total(room: Room) -> None:
    user = someone()
    for number in range(7):
        await room.answered(user, f"question {number}")
    room.upstream.script("fail:400")
    await room.answered(user, "refused")
    await room.answered(someone(), "of another")
    room.upstream.script("held")
    pending = await room.ask(user, "pending")
    page = await room.chat.history(user, Slice(3, 0))
    assert [message.message for message in page.items] == ["question 6", "question 5", "question 4"]
    assert page.total == 7
    assert [message.message for message in (await room.chat.history(user, Slice(3, 6))).items] == ["question 0"]
    assert await room.chat.history(user, Slice(3, 7)) == await room.chat.history(user, Slice(3, 100))
    assert (await room.chat.history(someone(), Slice(3, 0))).total == 0
    room.upstream.held.set()
    await room.heard(pending)
    assert (await room.chat.history(user, Slice(3, 0))).total == 8


async def test_usage_is_counted_by_user_model_and_day(room: Room) -> None:
    user, other = someone(), someone()
    await room.answered(user, "one two")
    await room.answered(user, "three")
    await room.answered(user, "offline", model="llama2")
    await room.answered(other, "four")
    today = rules.day(room.clock.now())
    first, second = await room.chat.usage(user, 1)
    assert first == UsageOfModel(today, MODEL, 2, 3, 7)
    assert (second.model, second.requests) == ("llama2", 1)
    room.clock.advance(86_400)
    await room.answered(user, "tomorrow")
    assert [each.day for each in await room.chat.usage(user, 2)] == [rules.day(room.clock.now()), today, today]
    assert len(await room.chat.usage(user, 1)) == 1
    assert await room.chat.usage(someone(), 92) == []


async def test_a_provider_that_does_not_count_is_estimated(room: Room) -> None:
    room.upstream.script("silent_usage", "huge_usage")
    for _ in range(2):
        text, outcome = await room.answered(someone(), "x" * 40)
        assert outcome.usage == Usage(14, rules.tokens(text))


async def test_a_conversation_goes_on_with_its_last_turns(room: Room) -> None:
    user = someone()
    first = await room.ask(user, "My name is Ada")
    await room.heard(first)
    room.upstream.script("fail:400")
    await room.answered(user, "refused", conversation_id=first.conversation_id)
    await room.answered(user, "What is my name?", conversation_id=first.conversation_id)
    await room.answered(user, "elsewhere")
    assert room.prompts()[2] == [
        {"role": "user", "content": "My name is Ada"},
        {"role": "assistant", "content": "You said: My name is Ada"},
        {"role": "user", "content": "What is my name?"},
    ]
    assert room.prompts()[3] == [{"role": "user", "content": "elsewhere"}]


async def test_what_is_remembered_of_a_conversation_is_bounded(sqlite_room: Room) -> None:
    user = someone()
    first = await sqlite_room.ask(user, "0 " + "long " * 600)
    await sqlite_room.heard(first)
    for number in range(1, 30):
        text = f"{number} " + "long " * (600 if number < 12 else 2)
        await sqlite_room.answered(user, text, conversation_id=first.conversation_id)
    lengths = [sum(len(turn["content"]) for turn in prompt[:-1]) for prompt in sqlite_room.prompts()]
    assert max(lengths) <= rules.REMEMBERED_CHARACTERS
    assert max(len(prompt) for prompt in sqlite_room.prompts()) <= 2 * rules.REMEMBERED_MESSAGES + 1
    # It is the last ones that are remembered, in order.
    last = sqlite_room.prompts()[-1]
    assert last[-3]["content"].startswith("28 ") and last[-2]["role"] == "assistant"


async def test_conversations_and_messages_of_others_do_not_exist(room: Room) -> None:
    user = someone()
    asked = await room.ask(user, "a secret")
    await room.heard(asked)
    for other in (someone(), None):
        with pytest.raises(ConversationMissing):
            await room.ask(other, "what was it?", conversation_id=asked.conversation_id)
    for conversation_id in ("conv-unknown", "conv-\0", "", asked.id, "x" * 10_000):
        with pytest.raises(ConversationMissing):
            await room.ask(user, "what?", conversation_id=conversation_id)
    for message_id, who in ((asked.id, someone()), ("chat-unknown", user), ("chat-\0", user), ("x" * 10_000, user)):
        with pytest.raises(MessageMissing):
            await room.chat.get_message(who, message_id)
    assert len(room.upstream.requests) == 1
    assert len(await room.messages()) == 1


async def test_passages_of_the_askers_files_are_put_before_the_model(room: Room) -> None:
    user = someone()
    file_id = room.shelf.put(user, "The dog is called Rex.")
    asked = await room.ask(user, "What is the dog called?", file_ids=[file_id])
    _, outcome = await room.heard(asked)
    [prompt] = room.prompts()
    assert [turn["role"] for turn in prompt] == ["system", "user", "user"]
    assert "The dog is called Rex." in prompt[1]["content"]
    assert prompt[2]["content"] == "What is the dog called?"
    source = Source(file_id, "notes.txt", 0, "The dog is called Rex.")
    assert asked.sources == outcome.sources == [source]
    assert (await room.chat.get_message(user, asked.id)).sources == [source]


async def test_files_of_others_are_not_there(room: Room) -> None:
    mine, theirs = room.shelf.put(user := someone(), "mine"), room.shelf.put(someone(), "theirs")
    for file_ids in ([theirs], [mine, theirs], ["file-unknown"]):
        with pytest.raises(FileMissing):
            await room.ask(user, file_ids=file_ids)
    with pytest.raises(FileMissing):
        await room.ask(None, file_ids=[theirs])
    assert await room.messages() == [] and not room.upstream.requests


async def test_nobodys_question_is_answered_and_not_kept(room: Room) -> None:
    text, outcome = await room.answered(None, "Who am I?")
    assert text == "You said: Who am I?" and outcome.status is AnswerStatus.COMPLETED
    assert await room.messages() == []
    assert [row.user_id for row in await room.usage_rows()] == [rules.NOBODY]


async def test_a_completion_is_counted_and_not_kept(room: Room) -> None:
    begun = await room.begin("Tell me")
    text, outcome = await room.heard(begun)
    assert text == "You said: Tell me" and outcome.usage == Usage(2, 4)
    assert begun.id.startswith("chatcmpl-")
    assert await room.messages() == []
    assert [(row.user_id, row.requests) for row in await room.usage_rows()] == [("program", 1)]


async def test_a_completion_that_nobody_wants_is_stopped_and_counted(room: Room) -> None:
    room.upstream.script("held")
    begun = await room.begin("one two three")
    while not room.feeds.find(begun.id).length:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await room.completions.stop(begun.id)
    await room.completions.stop("chatcmpl-unknown")
    text, outcome = await room.heard(begun)
    assert (text, outcome.problem) == ("You", "AnswerInterrupted")
    assert [row.completion_tokens for row in await room.usage_rows()] == [1]
    assert [answer.status for answer in room.told] == ["stopped"]
    await room.completions.stop(begun.id)


async def test_models_of_the_document_can_always_be_asked_for(room: Room) -> None:
    offered = {model.id: model.provider for model in await room.completions.list_models()}
    assert offered == {
        "codellama": "offline",
        "gpt-3.5-turbo": "offline",
        "gpt-4": "openai",
        "llama2": "offline",
        "mistral": "offline",
    }
    text, outcome = await room.answered(someone(), "Say something", model="mistral")
    assert "No model is configured" in text and "OPENAI_API_KEY" in text and text.endswith("Say something")
    assert outcome.finish_reason == "stop"
    again, _ = await room.answered(someone(), "Say something", model="mistral")
    assert again == text
    short, outcome = await room.answered(someone(), "Say something", model="mistral", max_tokens=5)
    assert (len(short.split()), outcome.finish_reason) == (5, "length")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"message": ""}, InvalidField),
        ({"message": " \n\t "}, InvalidField),
        ({"message": "a\0b"}, InvalidField),
        ({"message": "a\ud800b"}, InvalidField),
        ({"message": "x" * (rules.MESSAGE_LIMIT + 1)}, PromptTooLong),
        ({"model": "gpt-5"}, UnknownModel),
        ({"model": ""}, UnknownModel),
        ({"model": "their-gpt"}, UnknownModel),
        ({"file_ids": ["file-1"] * 21}, InvalidField),
        ({"sampling": Sampling(temperature=2.1)}, InvalidField),
        ({"sampling": Sampling(temperature=-0.1)}, InvalidField),
        ({"sampling": Sampling(temperature=float("nan"))}, InvalidField),
        ({"sampling": Sampling(max_tokens=0)}, InvalidField),
        ({"sampling": Sampling(max_tokens=4097)}, InvalidField),
        ({"sampling": Sampling(top_p=0.0)}, InvalidField),
        ({"sampling": Sampling(top_p=float("inf"))}, InvalidField),
        ({"sampling": Sampling(stop=["a"] * 5)}, InvalidField),
        ({"sampling": Sampling(stop=[""])}, InvalidField),
        ({"sampling": Sampling(stop=["\0"])}, InvalidField),
    ],
)
async def test_bad_questions_are_refused_before_anything_happens(
    sqlite_room: Room, change: dict[str, Any], problem: type[Problem]
) -> None:
    question = Question(**{"message": "Hello", "model": MODEL, **change})
    with pytest.raises(problem):
        await sqlite_room.chat.ask(someone(), question)
    assert await sqlite_room.messages() == [] and not sqlite_room.upstream.requests


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], InvalidField),
        ([Turn("tool", "x")], InvalidField),
        ([Turn("user", "\0")], InvalidField),
        ([Turn("user", "x")] * 201, InvalidField),
        ([Turn("user", "x" * rules.PROMPT_LIMIT), Turn("user", "x")], PromptTooLong),
    ],
)
async def test_bad_turns_are_refused(sqlite_room: Room, turns: list[Turn], problem: type[Problem]) -> None:
    with pytest.raises(problem):
        await sqlite_room.completions.begin("program", turns, MODEL, Sampling())


async def test_the_longest_message_is_taken(sqlite_room: Room) -> None:
    text, _ = await sqlite_room.answered(someone(), "é" * rules.MESSAGE_LIMIT)
    assert text == "You said: " + "é" * rules.MESSAGE_LIMIT


async def test_what_a_deleted_user_has_asked_goes_with_him(room: Room) -> None:
    user, other = someone(), someone()
    for each in (user, user, other):
        await room.answered(each)
    room.upstream.script("held")
    pending = await room.ask(user, "still under way")
    [listener] = room.chat.listeners()
    for _ in range(2):  # it may be heard again
        await listener.handle(Delivery(UserDeleted(user, someone()), "an-id", listener.name, room.clock.now()))
    room.upstream.held.set()
    assert await room.failed(pending) == "AnswerInterrupted"
    assert [row.user_id for row in await room.messages()] == [other]
    assert (await room.chat.history(user, Slice(10, 0))).total == 0
    assert sum(row.requests for row in await room.usage_rows()) == 3
