"""Feeds of answers for a process that has neither the chat module nor a Redis: it asks again and again what is new."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.feeds import FeedGone, Feeds, Piece
from bedplate.modules.chat.public import AnswerGone, Heard, Listening

# Less than the time-out of a call between processes.
WAIT_SECONDS = 1.5


class ListeningService(Listening):
    """On the feeds of the process that answers."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    async def listen(self, answer_id: str, position: int) -> Heard:
        try:
            async with (
                asyncio.timeout(WAIT_SECONDS),
                aclosing(self._feeds.follow(answer_id, position)) as pieces,  # type: ignore[type-var]
            ):
                async for piece in pieces:
                    outcome = None if piece.outcome is None else dict(piece.outcome)
                    return Heard(piece.text, piece.position, outcome)
        except FeedGone:
            raise AnswerGone() from None
        except TimeoutError:
            pass
        return Heard("", position, None)


class FarFeeds(Feeds):
    """Followed here, written where the chat module runs."""

    def __init__(self, listening: Listening) -> None:
        self._listening = listening

    async def open(self, feed_id: str) -> None:
        raise Unavailable()

    async def add(self, feed_id: str, text: str) -> None:
        raise Unavailable()

    async def end(self, feed_id: str, outcome: Mapping[str, Any]) -> None:
        raise Unavailable()

    async def follow(self, feed_id: str, position: int = 0) -> AsyncIterator[Piece]:
        position = max(position, 0)
        while True:
            try:
                heard = await self._listening.listen(feed_id, position)
            except (AnswerGone, Unavailable):
                raise FeedGone from None
            position = heard.position
            if heard.text or heard.outcome is not None:
                yield Piece(heard.text, position, heard.outcome)
            if heard.outcome is not None:
                return
