"""Dev-PyNode API reference: AI Chat. Following an answer while it grows, and when it is long finished."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from starlette.responses import StreamingResponse

from bedplate.kernel.feeds import FeedGone, Feeds
from bedplate.modules.chat.public import Chat, Message, ModelUnavailable, Outcome, Usage

PING_SECONDS = 15.0
PING = b": ping\n\n"
MEDIA_TYPE = "text/event-stream"
# One event of a stream, as an OpenAPI document describes it.
EVENTS: dict[str, Any] = {
    MEDIA_TYPE: {
        "itemSchema": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("data", "event", "id")},
            "required": ["data"],
        }
    }
}
AGAIN_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Part:
    """Some of an answer, and where it ends. `outcome`: of the last one, whose text may be empty."""

    text: str
    position: int
    outcome: Outcome | None = None


async def growing(feeds: Feeds, answer_id: str, position: int = 0) -> AsyncGenerator[Part, None]:
    """An answer from there on, as it grows. Raises what it fails with; ModelUnavailable if there is nothing to
    follow."""
    try:
        async with aclosing(feeds.follow(answer_id, position)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                outcome = Outcome.of(piece.outcome).checked() if piece.outcome is not None else None
                yield Part(piece.text, piece.position, outcome)
    except FeedGone:
        raise ModelUnavailable(retry_after=AGAIN_SECONDS) from None


async def rest_of(feeds: Feeds, chat: Chat, message: Message, position: int) -> AsyncGenerator[Part, None]:
    """The answer to somebody's message from there on: as it was stored, or as it grows if it is not finished. Raises
    what it fails with; ModelUnavailable if nobody goes on with it."""
    if message.outcome is None and message.user_id is not None:
        try:
            async with aclosing(feeds.follow(message.id, position)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    outcome = Outcome.of(piece.outcome).checked() if piece.outcome is not None else None
                    position = piece.position
                    yield Part(piece.text, position, outcome)
            return
        except FeedGone:
            message = await chat.get_message(message.user_id, message.id)
    if message.outcome is None:
        raise ModelUnavailable(retry_after=AGAIN_SECONDS)
    response = message.response or ""
    yield Part(response[position:], max(position, len(response)), message.outcome.checked())


async def whole(parts: AsyncGenerator[Part, None]) -> tuple[str, Outcome]:
    """The text of an answer and its outcome, once it is finished."""
    texts: list[str] = []
    async with aclosing(parts):
        async for part in parts:
            texts.append(part.text)
            if part.outcome is not None:
                return "".join(texts), part.outcome
    raise ModelUnavailable(retry_after=AGAIN_SECONDS)


def tokens(usage: Usage | None) -> dict[str, int]:
    """As the document and OpenAI's API print them."""
    used = usage or Usage(0, 0)
    return {**asdict(used), "total_tokens": used.total_tokens}


def event(data: Mapping[str, Any], name: str = "", event_id: str = "") -> bytes:
    """One server-sent event."""
    head = (f"event: {name}\n" if name else "") + (f"id: {event_id}\n" if event_id else "")
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(StreamingResponse):
    """Server-sent events, with a comment now and then where nothing comes, so that nobody in between hangs up."""

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[bytes, None], status_code: int = 200) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(_with_pings(events), status_code, headers)


async def _with_pings(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.create_task(_next(events))
            done, _ = await asyncio.wait([waiting], timeout=PING_SECONDS)
            if not done:
                yield PING
                continue
            chunk = waiting.result()
            waiting = None
            if not chunk:
                return
            yield chunk
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiting
        await events.aclose()


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    """The next event, empty after the last: a task cannot end with StopAsyncIteration."""
    return await anext(events, b"")
