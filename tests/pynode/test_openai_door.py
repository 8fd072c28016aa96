"""OpenAI's own client against the door that speaks its API."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests import world as worlds
from tests.fakes.model_server import ModelServer
from tests.pynode.talking import Served, serving

TURNS: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]


def client(served: Served, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture(params=["user", "program"])
async def key(request: pytest.FixtureRequest, served: Served) -> str:
    if request.param == "program":
        return await served.world.service_key()
    return (await served.world.user("pynode")).access_token


async def test_a_completion(served: Served, key: str) -> None:
    async with client(served, key) as ai:
        answer = await ai.chat.completions.create(model="gpt-4", messages=TURNS)
        assert answer.model == "gpt-4"
        assert answer.choices[0].finish_reason == "stop"
        assert "Hello there" in str(answer.choices[0].message.content)
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


async def test_a_completion_as_it_grows(served: Served, key: str) -> None:
    async with client(served, key) as ai:
        whole = await ai.chat.completions.create(model="gpt-4", messages=TURNS)
        stream = await ai.chat.completions.create(
            model="gpt-4", messages=TURNS, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(texts) > 3
    assert "".join(texts) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage for chunk in chunks if chunk.usage] == [whole.usage]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_comes_only_to_who_asks_for_it(served: Served, key: str) -> None:
    async with client(served, key) as ai:
        stream = await ai.chat.completions.create(model="gpt-4", messages=TURNS, stream=True)
        assert [chunk.usage async for chunk in stream if chunk.usage] == []


async def test_the_models(served: Served, key: str) -> None:
    async with client(served, key) as ai:
        names = {model.id async for model in ai.models.list()}
        assert {"gpt-4", "gpt-3.5-turbo", "llama2", "codellama", "mistral"} <= names
        assert (await ai.models.retrieve("llama2")).id == "llama2"
        with pytest.raises(openai.NotFoundError):
            await ai.models.retrieve("gpt-none")


async def test_errors_are_the_clients_own(served: Served, key: str) -> None:
    async with client(served, key) as ai:
        with pytest.raises(openai.NotFoundError) as unknown:
            await ai.chat.completions.create(model="gpt-none", messages=TURNS)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as wrong:
            await ai.chat.completions.create(model="gpt-4", messages=TURNS, temperature=3)
        assert (wrong.value.type, wrong.value.param) == ("invalid_request_error", "temperature")
        with pytest.raises(openai.BadRequestError) as drawn:
            picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
            await ai.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": [picture]}])  # type: ignore[list-item,misc]
        assert drawn.value.param == "messages.0.content", "as the sender has named it"
    async with client(served, "sk-nonsense") as ai:
        with pytest.raises(openai.AuthenticationError) as refused:
            await ai.chat.completions.create(model="gpt-4", messages=TURNS)
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await ai.models.list()


@pytest.mark.limits
async def test_the_limit_is_the_clients_rate_limit_error(served: Served) -> None:
    key = await served.world.service_key()
    async with client(served, key) as ai:
        for _ in range(100):
            await ai.models.retrieve("gpt-4")
        with pytest.raises(openai.RateLimitError) as limited:
            await ai.models.retrieve("gpt-4")
        headers = limited.value.response.headers
        assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("100", "0")
        assert 0 < int(headers["retry-after"]) <= 900
    async with client(served, (await served.world.user("pynode")).access_token) as ai:
        await ai.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("behaviours", "error"),
    [
        (["fail:400"], openai.InternalServerError),
        (["fail:401"], openai.InternalServerError),
        (["garbage"] * 3, openai.InternalServerError),
        (["html"] * 3, openai.InternalServerError),
        (["cut:2"], openai.InternalServerError),
    ],
)
async def test_what_goes_wrong_behind_is_a_server_error(
    modelled: Served, upstream: ModelServer, behaviours: list[str], error: type[Exception]
) -> None:
    user = await modelled.world.user("pynode")
    async with client(modelled, user.access_token) as ai:
        upstream.script(*behaviours)
        with pytest.raises(error) as failed:
            await ai.chat.completions.create(model="gpt-4", messages=TURNS)
        assert "key-of-the-installation" not in str(failed.value)
        answer = await ai.chat.completions.create(model="gpt-4", messages=TURNS)
        assert answer.choices[0].message.content == "You said: Hello there"


async def test_an_answer_that_breaks_off_ends_with_an_error_and_not_with_done(
    modelled: Served, upstream: ModelServer
) -> None:
    user = await modelled.world.user("pynode")
    upstream.script("cut:2")
    async with client(modelled, user.access_token) as ai:
        stream = await ai.chat.completions.create(model="gpt-4", messages=TURNS, stream=True)
        heard = []
        with pytest.raises(openai.APIError):
            async for chunk in stream:
                heard.append(chunk.choices[0].delta.content)
    assert "".join(heard) == "You said:"


async def test_an_answer_that_nobody_wants_is_stopped(modelled: Served, upstream: ModelServer) -> None:
    user = await modelled.world.user("pynode")
    told: list[str] = []
    modelled.world.runtime.answered.append(lambda answer: told.append(answer.status))
    upstream.script("endless")
    async with client(modelled, user.access_token) as ai:
        stream = await ai.chat.completions.create(model="gpt-4", messages=TURNS, stream=True)
        await anext(stream)
        await stream.close()
    async with asyncio.timeout(10):
        while not told:  # noqa: ASYNC110  # what is waited for knows nothing of tests
            await asyncio.sleep(0.01)
    assert told == ["stopped"]


async def test_a_plain_answer_that_nobody_waits_for_is_stopped(modelled: Served, upstream: ModelServer) -> None:
    user = await modelled.world.user("pynode")
    told: list[str] = []
    modelled.world.runtime.answered.append(lambda answer: told.append(answer.status))
    upstream.script("stall:1")
    async with client(modelled, user.access_token) as ai:
        with pytest.raises(openai.APITimeoutError):
            await ai.chat.completions.create(model="gpt-4", messages=TURNS, timeout=1.5)
    async with asyncio.timeout(10):
        while not told:  # noqa: ASYNC110  # what is waited for knows nothing of tests
            await asyncio.sleep(0.01)
    assert told == ["stopped"]


async def test_nothing_is_kept_but_the_use(served: Served) -> None:
    user = await served.world.user("pynode")
    async with client(served, user.access_token) as ai:
        answer = await ai.chat.completions.create(model="gpt-4", messages=TURNS)
    assert (await user.client.get("/api/chat/history")).json()["total"] == 0
    assert (await user.client.get(f"/api/chat/messages/{answer.id}")).status_code == 404
    used = (await user.client.get("/api/chat/usage")).json()["usage"]
    assert [(each["model"], each["requests"]) for each in used] == [("gpt-4", 1)]


async def test_a_user_has_one_budget_for_both_doors(tmp_path: Path, sqlite_template: Path) -> None:
    async with (
        worlds.embedded(tmp_path, sqlite_template, rate_limit_enabled=False, chat_daily_tokens=1_020) as world,
        serving(world) as served,
    ):
        user = await world.user("pynode")
        assert (await user.client.post("/api/chat", json={"message": "Hello there"})).status_code == 200
        async with client(served, user.access_token) as ai:
            with pytest.raises(openai.RateLimitError) as refused:
                await ai.chat.completions.create(model="gpt-4", messages=TURNS)
        assert "1020 tokens a day" in str(refused.value)
