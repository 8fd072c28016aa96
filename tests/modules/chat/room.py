"""A room to chat in: the module on one database and one model server, with files that only their owners see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from bedplate.kernel.db import Database
from bedplate.kernel.feeds import Feeds, MemoryFeeds
from bedplate.kernel.ids import new_id
from bedplate.models import BudgetRow, ChatMessageRow, UsageRow
from bedplate.modules.chat.answers import RUNNING, WAITING, Answers
from bedplate.modules.chat.chat import ChatService
from bedplate.modules.chat.completions import CompletionsService
from bedplate.modules.chat.offline import Offline
from bedplate.modules.chat.openai_compatible import OpenAiCompatible
from bedplate.modules.chat.provider import Patience
from bedplate.modules.chat.public import Answered, Begun, Message, Outcome, Question, Sampling, Turn
from bedplate.modules.chat.registry import Registry
from bedplate.modules.chat.store import ChatStore
from bedplate.modules.files.public import FileMissing, Passage, Passages
from tests.factories import TurnableClock
from tests.fakes.model_server import ModelServer

KEY = "sk-canary-3b1f8e"
MODEL = "gpt-4"
QUICK = Patience(first=0.3, idle=0.3, total=1.0, pauses=(0.02, 0.05))
PATIENT = Patience()


class Shelf(Passages):
    """Files of several owners, as the files module answers for them."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, str, str]] = {}

    def put(self, owner_id: str, text: str, filename: str = "notes.txt") -> str:
        file_id = f"file-{new_id()}"
        self.files[file_id] = (owner_id, filename, text)
        return file_id

    async def search(self, owner_id: str, file_ids: list[str], query: str, limit: int) -> list[Passage]:
        if any(file_id not in self.files or self.files[file_id][0] != owner_id for file_id in file_ids):
            raise FileMissing()
        found = [(file_id, *self.files[file_id]) for file_id in file_ids]
        return [Passage(file_id, filename, 0, text, 1.0) for file_id, _, filename, text in found][:limit]


@dataclass
class Room:
    db: Database
    clock: TurnableClock
    upstream: ModelServer
    feeds: Feeds
    store: ChatStore
    registry: Registry
    answers: Answers
    chat: ChatService
    completions: CompletionsService
    shelf: Shelf
    told: list[Answered] = field(default_factory=list)

    async def ask(self, user_id: str | None, message: str = "Hello there", **other: Any) -> Message:
        tokens = other.pop("max_tokens", 1000)
        question = Question(message, other.pop("model", MODEL), Sampling(max_tokens=tokens), **other)
        return await self.chat.ask(user_id, question)

    async def begin(self, message: str = "Hello there", caller: str = "program") -> Begun:
        return await self.completions.begin(caller, [Turn("user", message)], MODEL, Sampling())

    async def heard(self, answer: Message | Begun, position: int = 0) -> tuple[str, Outcome]:
        """All of an answer, once it has ended."""
        text, outcome = "", None
        async with (
            asyncio.timeout(20),
            aclosing(self.feeds.follow(answer.id, position)) as pieces,  # type: ignore[type-var]
        ):
            async for piece in pieces:
                text, outcome = text + piece.text, piece.outcome
        assert outcome is not None
        return text, Outcome.of(outcome)

    async def answered(self, user_id: str | None, message: str = "Hello there", **other: Any) -> tuple[str, Outcome]:
        return await self.heard(await self.ask(user_id, message, **other))

    async def failed(self, answer: Message | Begun) -> str:
        """The problem with which it has failed."""
        _, outcome = await self.heard(answer)
        assert outcome.problem is not None
        return outcome.problem

    async def rows(self, table: Any) -> list[Any]:
        return list(await self.db.all(select(table.__table__)))

    async def messages(self) -> list[Any]:
        return await self.rows(ChatMessageRow)

    async def usage_rows(self) -> list[Any]:
        return await self.rows(UsageRow)

    async def charged(self) -> int:
        """Tokens in all budgets."""
        return sum(row.tokens for row in await self.rows(BudgetRow))

    async def asked(self, count: int) -> None:
        """As soon as the model has been asked so many times."""
        async with asyncio.timeout(10):
            while len(self.upstream.requests) < count:  # noqa: ASYNC110  # what is waited for knows nothing of tests
                await asyncio.sleep(0.01)

    def prompts(self) -> list[list[dict[str, str]]]:
        """What was sent to the model."""
        return [each.body["messages"] for each in self.upstream.requests if each.body]


@asynccontextmanager
async def open_room(
    db: Database,
    upstream: ModelServer,
    clock: TurnableClock,
    *,
    patience: Patience = PATIENT,
    daily_tokens: int = 0,
    running: int = RUNNING,
    waiting: int = WAITING,
    feeds: Feeds | None = None,
) -> AsyncIterator[Room]:
    provider = OpenAiCompatible("openai", upstream.base_url, KEY, patience)
    registry = Registry([(provider, {MODEL: "their-gpt"})], Offline())
    feeds = feeds or MemoryFeeds(clock)
    store, shelf, told = ChatStore(db), Shelf(), list[Answered]()
    answers = Answers(store, registry, feeds, clock, daily_tokens, told.append, running, waiting)
    chat = ChatService(store, registry, answers, shelf, clock)
    completions = CompletionsService(registry, answers, clock)
    try:
        yield Room(db, clock, upstream, feeds, store, registry, answers, chat, completions, shelf, told)
    finally:
        upstream.held.set()
        await answers.stop(0.2)
        await registry.close()


def someone() -> str:
    """Another user each time."""
    return new_id()
