"""OpenAI's API as another door to the same models, an addition: whoever has a client for it has one for Dev-PyNode.

`api_key` is a user's access token or a service key. Answers are counted and not kept.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, Field

from bedplate.kernel.errors import Problem
from bedplate.kernel.feeds import Feeds
from bedplate.kernel.http import Text
from bedplate.modules.chat.public import Begun, Completions, Sampling, Turn, UnknownModel
from bedplate.systems.pynode import answers
from bedplate.systems.pynode.callers import account_of
from bedplate.systems.pynode.chat import Count, Number
from bedplate.systems.pynode.deps import CallerOrProgram, CompletionsDep, FeedsDep
from bedplate.systems.pynode.errors import OpenAIEnvelope, failure_of

router = APIRouter(tags=["openai"])

MAXIMUM_TURNS = 200
LOOK_SECONDS = 1.0
DONE = b"data: [DONE]\n\n"
_envelope = OpenAIEnvelope()


class PartIn(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class TurnIn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[PartIn], Field(max_length=64)]

    def turn(self) -> Turn:
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, content)


class StreamOptionsIn(BaseModel):
    include_usage: bool = False


class CompletionIn(BaseModel):
    """What OpenAI's API takes and models here have no use for is ignored."""

    model: Annotated[Text, Field(min_length=1, max_length=100)]
    messages: Annotated[list[TurnIn], Field(min_length=1, max_length=MAXIMUM_TURNS)]
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[
        Annotated[Count, Field(ge=1, le=4096)] | None,
        Field(validation_alias=AliasChoices("max_completion_tokens", "max_tokens")),
    ] = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptionsIn | None = None

    @property
    def sampling(self) -> Sampling:
        default = Sampling()
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        temperature = default.temperature if self.temperature is None else self.temperature
        return Sampling(temperature, self.max_tokens or default.max_tokens, self.top_p, stop)


class AnswerOut(BaseModel):
    role: Literal["assistant"]
    content: str


class ChoiceOut(BaseModel):
    index: int
    message: AnswerOut
    finish_reason: str


class CompletionUsageOut(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionOut(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceOut]
    usage: CompletionUsageOut


class OpenAIModelOut(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class OpenAIModelListOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModelOut]


STREAM: dict[int | str, dict[str, Any]] = {200: {"model": CompletionOut, "content": answers.EVENTS}}


@router.post("/v1/chat/completions", responses=STREAM, response_model=CompletionOut)
async def create_completion(
    body: CompletionIn, request: Request, caller: CallerOrProgram, completions: CompletionsDep, feeds: FeedsDep
) -> Response:
    turns = [turn.turn() for turn in body.messages]
    begun = await completions.begin(account_of(caller), turns, body.model, body.sampling)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return answers.EventStream(_chunks(completions, feeds, begun, usage=usage))
    with _stopped_if_nobody_waits(request, completions, begun.id):
        text, outcome = await answers.whole(answers.growing(feeds, begun.id))
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": outcome.finish_reason or "stop",
    }
    answer = {**_head(begun, "chat.completion"), "choices": [choice], "usage": answers.tokens(outcome.usage)}
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get("/v1/models", response_model=OpenAIModelListOut)
async def list_models(caller: CallerOrProgram, completions: CompletionsDep) -> OpenAIModelListOut:
    found = await completions.list_models()
    return OpenAIModelListOut(data=[OpenAIModelOut(id=model.id, owned_by=model.provider) for model in found])


@router.get("/v1/models/{model_id}", response_model=OpenAIModelOut)
async def get_model(model_id: Text, caller: CallerOrProgram, completions: CompletionsDep) -> OpenAIModelOut:
    for model in await completions.list_models():
        if model.id == model_id:
            return OpenAIModelOut(id=model.id, owned_by=model.provider)
    raise UnknownModel()


@contextmanager
def _stopped_if_nobody_waits(request: Request, completions: Completions, answer_id: str) -> Iterator[None]:
    """Stop the answer if the client goes away. Whether it has is looked at when a second has passed: most answers to
    programs have come by then, and looking costs."""
    looking: list[asyncio.Task[None]] = []

    async def look() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        await completions.stop(answer_id)

    later = asyncio.get_running_loop().call_later(LOOK_SECONDS, lambda: looking.append(asyncio.create_task(look())))
    try:
        yield
    finally:
        later.cancel()
        for task in looking:
            task.cancel()


async def _chunks(completions: Completions, feeds: Feeds, begun: Begun, *, usage: bool) -> AsyncGenerator[bytes, None]:
    """The answer as it grows. One that nobody listens to any more is stopped."""
    head = _head(begun, "chat.completion.chunk")
    try:
        yield _chunk(head, {"role": "assistant", "content": ""}, None, usage=usage)
        async with aclosing(answers.growing(feeds, begun.id)) as parts:
            async for part in parts:
                if part.text:
                    yield _chunk(head, {"content": part.text}, None, usage=usage)
                if part.outcome is not None:
                    yield _chunk(head, {}, part.outcome.finish_reason or "stop", usage=usage)
                    if usage:
                        yield answers.event({**head, "choices": [], "usage": answers.tokens(part.outcome.usage)})
        yield DONE
    except Problem as problem:
        yield answers.event(_envelope.body(failure_of(problem)))
    finally:
        await completions.stop(begun.id)


def _head(begun: Begun, kind: str) -> dict[str, Any]:
    return {"id": begun.id, "object": kind, "created": int(begun.created_at.timestamp()), "model": begun.model}


def _chunk(head: dict[str, Any], delta: dict[str, str], finish_reason: str | None, *, usage: bool) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return answers.event({**head, "choices": [choice], **({"usage": None} if usage else {})})
