"""Dev-PyNode API reference: AI Chat. Streaming, conversations, files, usage and models are additions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from bedplate.kernel.clock import iso
from bedplate.kernel.errors import InvalidField, Problem
from bedplate.kernel.http import Text
from bedplate.kernel.paging import MAXIMUM_OFFSET, Slice
from bedplate.modules.chat.public import AnswerStatus, Message, Outcome, Question, Sampling
from bedplate.systems.pynode import answers
from bedplate.systems.pynode.deps import Caller, ChatDep, CompletionsDep, FeedsDep
from bedplate.systems.pynode.errors import error_body

router = APIRouter(tags=["chat"])

MAXIMUM_FILES = 20
# The id of the last event. A browser that comes back with it is told (204) not to come again.
END = "end"

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True)]


class ChatIn(BaseModel):
    """`stream`: answer with server-sent events. `conversation_id`: go on with an earlier one. `file_ids`: put passages
    of these files before the model."""

    message: Text
    model: Annotated[Text, Field(min_length=1, max_length=100)] = "gpt-4"
    temperature: Annotated[Number, Field(ge=0, le=2)] = 0.7
    max_tokens: Annotated[Count, Field(ge=1, le=4096)] = 1000
    stream: bool = False
    conversation_id: Annotated[Text, Field(max_length=64)] | None = None
    file_ids: Annotated[list[Annotated[Text, Field(max_length=64)]], Field(max_length=MAXIMUM_FILES)] = []

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "message": "Hello, how can you help me?",
                "model": "gpt-4",
                "temperature": 0.7,
                "max_tokens": 1000,
            }
        }
    )

    def question(self) -> Question:
        sampling = Sampling(self.temperature, self.max_tokens)
        return Question(self.message, self.model, sampling, self.conversation_id, self.file_ids)


class UsageOut(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    model_config = ConfigDict(from_attributes=True)


class SourceOut(BaseModel):
    """A passage that was put before the model. `position`: the how-manieth of its file, from 0."""

    file_id: str
    filename: str
    position: int
    excerpt: str

    model_config = ConfigDict(from_attributes=True)


class ChatOut(BaseModel):
    """`message`: the answer."""

    id: str
    message: str
    model: str
    usage: UsageOut
    created_at: datetime
    conversation_id: str
    sources: list[SourceOut]


class HistoryEntryOut(BaseModel):
    id: str
    message: str
    response: str
    model: str
    created_at: datetime
    conversation_id: str

    model_config = ConfigDict(from_attributes=True)


class HistoryOut(BaseModel):
    messages: list[HistoryEntryOut]
    total: int
    limit: int
    offset: int


class ChatMessageOut(BaseModel):
    """`response`, `usage` and `completed_at` are there when it is completed, `error` (a code) when it has failed."""

    id: str
    message: str
    response: str | None
    model: str
    status: AnswerStatus
    usage: UsageOut | None
    sources: list[SourceOut]
    error: str | None
    created_at: datetime
    completed_at: datetime | None
    conversation_id: str


class ModelUsageOut(BaseModel):
    """`day`: YYYY-MM-DD, in UTC."""

    day: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int

    model_config = ConfigDict(from_attributes=True)


class UsageListOut(BaseModel):
    usage: list[ModelUsageOut]
    days: int


class ModelOut(BaseModel):
    """`provider`: by whom it is answered."""

    id: str
    provider: str

    model_config = ConfigDict(from_attributes=True)


class ModelListOut(BaseModel):
    models: list[ModelOut]


STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or as server-sent events `start`, `delta`, then `done` or `error`",
        "content": answers.EVENTS,
    }
}
ENDED: dict[int | str, dict[str, Any]] = {204: {"description": "The client has had all of it"}}
MessageId = Annotated[Text, Field(max_length=64)]


@router.post("/api/chat", response_model=ChatOut, responses=STREAM)
async def send_message(body: ChatIn, caller: Caller, chat: ChatDep, feeds: FeedsDep) -> ChatOut | Response:
    message = await chat.ask(caller.user.id, body.question())
    if body.stream:
        parts = answers.growing(feeds, message.id)
        return answers.EventStream(_events(message, parts, 0))
    text, outcome = await answers.whole(answers.growing(feeds, message.id))
    return ChatOut(**begun_out(message), message=text, **ended_out(outcome))


@router.get("/api/chat/history", response_model=HistoryOut)
async def history(
    caller: Caller,
    chat: ChatDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=MAXIMUM_OFFSET)] = 0,
) -> dict[str, object]:
    found = await chat.history(caller.user.id, Slice(limit, offset))
    return {"messages": found.items, "total": found.total, "limit": limit, "offset": offset}


@router.get("/api/chat/messages/{message_id}", response_model=ChatMessageOut)
async def get_message(message_id: MessageId, caller: Caller, chat: ChatDep) -> dict[str, object]:
    message = await chat.get_message(caller.user.id, message_id)
    return {
        "id": message.id,
        "message": message.message,
        "response": message.response,
        "model": message.model,
        "status": message.status,
        "usage": message.usage,
        "sources": message.sources,
        "error": _code(message),
        "created_at": message.created_at,
        "completed_at": message.completed_at,
        "conversation_id": message.conversation_id,
    }


@router.get("/api/chat/messages/{message_id}/stream", response_class=answers.EventStream, responses={**STREAM, **ENDED})
async def follow_message(
    message_id: MessageId,
    caller: Caller,
    chat: ChatDep,
    feeds: FeedsDep,
    last_event_id: Annotated[str, Header(description="The id of the last event that was received")] = "",
) -> Response:
    message = await chat.get_message(caller.user.id, message_id)
    if last_event_id == END:
        return Response(status_code=204)
    position = _position(last_event_id)
    parts = answers.rest_of(feeds, chat, message, position)
    return answers.EventStream(_events(message, parts, position))


@router.get("/api/chat/usage", response_model=UsageListOut)
async def usage(caller: Caller, chat: ChatDep, days: Annotated[int, Query(ge=1, le=92)] = 30) -> dict[str, object]:
    return {"usage": await chat.usage(caller.user.id, days), "days": days}


@router.get("/api/chat/models", response_model=ModelListOut)
async def list_models(caller: Caller, completions: CompletionsDep) -> dict[str, object]:
    return {"models": await completions.list_models()}


def begun_out(message: Message) -> dict[str, Any]:
    """What is known of an answer when it begins."""
    return {
        "id": message.id,
        "model": message.model,
        "created_at": message.created_at,
        "conversation_id": message.conversation_id,
    }


def ended_out(outcome: Outcome) -> dict[str, Any]:
    """What is known when it has ended, beside its text."""
    return {"usage": answers.tokens(outcome.usage), "sources": [asdict(source) for source in outcome.sources]}


async def _events(
    message: Message, parts: AsyncGenerator[answers.Part, None], position: int
) -> AsyncGenerator[bytes, None]:
    """What was received before `position` is not sent again; the last event has no text."""
    begun = {**begun_out(message), "created_at": iso(message.created_at)}
    yield answers.event(begun, "start", str(position))
    try:
        async with aclosing(parts):
            async for part in parts:
                if part.text:
                    yield answers.event({"text": part.text}, "delta", str(part.position))
                if part.outcome is not None:
                    yield answers.event({**begun, **ended_out(part.outcome)}, "done", END)
    except Problem as problem:
        yield answers.event(error_body(problem), "error", END)


def _code(message: Message) -> str | None:
    """As what the failure of an answer was told."""
    if message.outcome is not None:
        try:
            message.outcome.checked()
        except Problem as problem:
            return str(error_body(problem)["code"])
    return None


def _position(last_event_id: str) -> int:
    if not last_event_id:
        return 0
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 9):
        raise InvalidField(field="Last-Event-ID", reason="Last-Event-ID must be the id of an event of this stream")
    return int(last_event_id)
