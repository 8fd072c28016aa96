"""Chat in each deployment: asked in one process, answered in that or another, followed in both."""

from contextlib import aclosing

import pytest

from bedplate.kernel.feeds import FeedGone, Feeds
from bedplate.kernel.paging import Slice
from bedplate.modules.chat.public import (
    Answered,
    Chat,
    Completions,
    MessageMissing,
    ModelBusy,
    Outcome,
    Question,
    Sampling,
    Turn,
    UnknownModel,
)
from tests.modules.chat.room import someone
from tests.world import World


async def whole(feeds: Feeds, answer_id: str, position: int = 0) -> tuple[str, Outcome]:
    text = ""
    async with aclosing(feeds.follow(answer_id, position)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            text += piece.text
    assert piece.outcome is not None
    return text, Outcome.of(piece.outcome).checked()


async def test_a_question_is_answered_kept_and_followed(world: World) -> None:
    told: list[Answered] = []
    world.runtime.answered.append(told.append)
    chat, feeds, user = world.front.get(Chat), world.front.feeds, someone()
    asked = await chat.ask(user, Question("Hello there", "gpt-4"))
    text, outcome = await whole(feeds, asked.id)
    assert text.startswith("No model is configured") and text.endswith("(2 words): Hello there")
    stored = await chat.get_message(user, asked.id)
    assert (stored.response, stored.outcome) == (text, outcome)
    assert await whole(feeds, asked.id, 10) == (text[10:], outcome)
    assert (await chat.history(user, Slice(10, 0))).items == [stored]
    assert [(each.model, each.requests) for each in await chat.usage(user, 1)] == [("gpt-4", 1)]
    assert [(each.model, each.provider, each.status) for each in told] == [("gpt-4", "offline", "completed")]
    with pytest.raises(FeedGone):
        await whole(feeds, "chat-unknown")
    with pytest.raises(MessageMissing):
        await chat.get_message(someone(), asked.id)
    with pytest.raises(UnknownModel):
        await chat.ask(user, Question("Hello", "gpt-17"))


async def test_a_completion_is_followed(world: World) -> None:
    completions = world.front.get(Completions)
    begun = await completions.begin("a program", [Turn("user", "Hello there")], "mistral", Sampling())
    text, outcome = await whole(world.front.feeds, begun.id)
    assert text.endswith("Hello there") and outcome.finish_reason == "stop"
    assert {"id": "mistral", "provider": "offline"} in [
        {"id": model.id, "provider": model.provider} for model in await completions.list_models()
    ]


async def test_files_of_others_are_not_put_before_a_model(world: World) -> None:
    from bedplate.modules.files.public import FileMissing

    with pytest.raises(FileMissing):
        await world.front.get(Chat).ask(someone(), Question("What is in it?", "gpt-4", file_ids=["file-of-another"]))


async def test_too_many_at_once_are_told_to_come_back(world: World) -> None:
    await world.runtime.get(Chat)._answers.stop(1)  # type: ignore[attr-defined]
    with pytest.raises(ModelBusy):
        await world.front.get(Chat).ask(someone(), Question("Hello", "gpt-4"))
