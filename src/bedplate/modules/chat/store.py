"""Where chat is kept: the statements of this module, and the only place that knows of tables."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from datetime import datetime
from types import ModuleType
from typing import Any

from sqlalchemy import BindParameter, Executable, bindparam, func, insert, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bedplate.kernel.db import Database, Transaction, UtcTime, delete_by_parts
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.chat.models import BudgetRow, ChatMessageRow, UsageRow
from bedplate.modules.chat.public import AnswerStatus, Message, Outcome, Sampling, Source, Turn, Usage, UsageOfModel

MAXIMUM_SWEPT = 100
MAXIMUM_USAGE_ROWS = 5_000

PENDING = AnswerStatus.PENDING.value
COMPLETED = AnswerStatus.COMPLETED.value
FAILED = AnswerStatus.FAILED.value
STATUSES = {status.value: status for status in AnswerStatus}

COLUMNS = (
    ChatMessageRow.id,
    ChatMessageRow.user_id,
    ChatMessageRow.conversation_id,
    ChatMessageRow.message,
    ChatMessageRow.response,
    ChatMessageRow.model,
    ChatMessageRow.status,
    ChatMessageRow.prompt_tokens,
    ChatMessageRow.completion_tokens,
    ChatMessageRow.sources,
    ChatMessageRow.finish_reason,
    ChatMessageRow.problem,
    ChatMessageRow.created_at,
    ChatMessageRow.completed_at,
)

_user: BindParameter[str] = bindparam("user")
_now = bindparam("now", type_=UtcTime())
_INSERT = insert(ChatMessageRow)
_END = (
    update(ChatMessageRow)
    .where(ChatMessageRow.id == bindparam("message_id"), ChatMessageRow.status == PENDING)
    .values(
        status=bindparam("ended"),
        response=bindparam("response"),
        prompt_tokens=bindparam("prompt"),
        completion_tokens=bindparam("completion"),
        finish_reason=bindparam("reason"),
        problem=bindparam("problem"),
        completed_at=bindparam("at"),
    )
)
_FIND = select(*COLUMNS).where(ChatMessageRow.id == bindparam("message_id"), ChatMessageRow.user_id == _user)
_mine = (ChatMessageRow.user_id == _user, ChatMessageRow.status == COMPLETED)
_PAGE = (
    select(*COLUMNS)
    .where(*_mine)
    .order_by(ChatMessageRow.created_at.desc(), ChatMessageRow.id.desc())
    .limit(bindparam("limit"))
    .offset(bindparam("offset"))
)
_COUNT = select(func.count()).select_from(ChatMessageRow).where(*_mine)
_CONVERSATION = (
    select(ChatMessageRow.message, ChatMessageRow.response, ChatMessageRow.status)
    .where(ChatMessageRow.conversation_id == bindparam("conversation"), ChatMessageRow.user_id == _user)
    .order_by(ChatMessageRow.created_at.desc())
    .limit(bindparam("limit"))
)
_LEFT_BEHIND = (
    select(ChatMessageRow.id)
    # Written out: an index of pending rows alone is used only where that is known beforehand.
    .where(ChatMessageRow.status == literal_column(f"'{PENDING}'"), ChatMessageRow.claimed_until < _now)
    .order_by(ChatMessageRow.claimed_until)
    .limit(MAXIMUM_SWEPT)
)
_ALL_OF = select(ChatMessageRow.id).where(ChatMessageRow.user_id == _user)
_USAGE = (
    select(UsageRow.day, UsageRow.model, UsageRow.requests, UsageRow.prompt_tokens, UsageRow.completion_tokens)
    .where(UsageRow.user_id == _user, UsageRow.day >= bindparam("first"))
    .order_by(UsageRow.day.desc(), UsageRow.model)
    .limit(MAXIMUM_USAGE_ROWS)
)
_SETTLE = (
    update(BudgetRow)
    .where(BudgetRow.user_id == _user, BudgetRow.day == bindparam("on_day"))
    .values(tokens=BudgetRow.tokens + bindparam("difference"))
)


def _counting(dialect: ModuleType) -> Executable:
    """Add to what one has used of a model on a day."""
    new = dialect.insert(UsageRow)
    counted: Executable = new.on_conflict_do_update(
        index_elements=["user_id", "day", "model"],
        set_={
            "requests": UsageRow.requests + new.excluded.requests,
            "prompt_tokens": UsageRow.prompt_tokens + new.excluded.prompt_tokens,
            "completion_tokens": UsageRow.completion_tokens + new.excluded.completion_tokens,
        },
    )
    return counted


def _reserving(dialect: ModuleType) -> Executable:
    """The condition and the change are one statement: of fifty at the end of a budget none sees what is not left."""
    new = dialect.insert(BudgetRow).values(
        user_id=bindparam("user"), day=bindparam("on_day"), tokens=bindparam("wanted")
    )
    reserved: Executable = new.on_conflict_do_update(
        index_elements=["user_id", "day"],
        set_={"tokens": BudgetRow.tokens + new.excluded.tokens},
        where=BudgetRow.tokens + new.excluded.tokens <= bindparam("budget"),
    )
    return reserved


_COUNTING = {"sqlite": _counting(sqlite), "postgresql": _counting(postgresql)}
_RESERVING = {"sqlite": _reserving(sqlite), "postgresql": _reserving(postgresql)}


class ChatStore:
    """Messages, usage and budgets, in SQLite or PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._count_usage = _COUNTING[db.dialect.name]
        self._reserve = _RESERVING[db.dialect.name]

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """See `Database.transaction`."""
        return self._db.transaction()

    async def insert(
        self, tx: Transaction, message: Message, provider: str, sampling: Sampling, claimed_until: datetime
    ) -> None:
        """A pending message."""
        row = {
            "id": message.id,
            "user_id": message.user_id,
            "conversation_id": message.conversation_id,
            "message": message.message,
            "model": message.model,
            "provider": provider,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "status": message.status.value,
            "sources": [asdict(source) for source in message.sources],
            "created_at": message.created_at,
            "claimed_until": claimed_until,
        }
        await tx.execute(_INSERT, row)

    async def end(self, tx: Transaction, message_id: str, response: str | None, outcome: Outcome, at: datetime) -> bool:
        """With this outcome. False: it has ended before."""
        usage = outcome.usage
        values = {
            "message_id": message_id,
            "ended": outcome.status.value,
            "response": response,
            "prompt": None if usage is None else usage.prompt_tokens,
            "completion": None if usage is None else usage.completion_tokens,
            "reason": outcome.finish_reason,
            "problem": outcome.problem,
            "at": at,
        }
        return bool(await tx.execute(_END, values))

    async def count(self, tx: Transaction, user_id: str, day: str, model: str, usage: Usage) -> None:
        """One more answer."""
        row = {"user_id": user_id, "day": day, "model": model, "requests": 1}
        tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        await tx.execute(self._count_usage, row | tokens)

    async def reserve(self, tx: Transaction, user_id: str, day: str, wanted: int, budget: int) -> bool:
        """Take so many tokens out of a day's budget, if so many are left."""
        values = {"user": user_id, "on_day": day, "wanted": wanted, "budget": budget}
        return wanted <= budget and bool(await tx.execute(self._reserve, values))

    async def settle(self, tx: Transaction, user_id: str, day: str, reserved: int, used: int) -> None:
        """What was reserved becomes what was used."""
        await tx.execute(_SETTLE, {"user": user_id, "on_day": day, "difference": used - reserved})

    async def find(self, user_id: str, message_id: str) -> Message | None:
        row = await self._db.first(_FIND, {"message_id": message_id, "user": user_id})
        return None if row is None else _message(row)

    async def page(self, user_id: str, part: Slice) -> Page[Message]:
        """What is completed, newest first, at most 100, with the exact total."""
        part = part.bounded()
        rows = await self._db.all(_PAGE, {"user": user_id, "limit": part.limit, "offset": part.offset})
        total = part.total_if_last(len(rows))
        if total is None:
            total = int(await self._db.scalar(_COUNT, {"user": user_id}))
        return Page([_message(row) for row in rows], total)

    async def conversation(self, user_id: str, conversation_id: str, limit: int) -> list[tuple[Turn, Turn]] | None:
        """Its last completed questions with their answers, newest first. None: this user has no such conversation."""
        rows = await self._db.all(_CONVERSATION, {"conversation": conversation_id, "user": user_id, "limit": limit})
        if not rows:
            return None
        return [
            (Turn("user", message), Turn("assistant", response))
            for message, response, status in rows
            if status == COMPLETED
        ]

    async def usage(self, user_id: str, first_day: str) -> list[UsageOfModel]:
        """By day and model, newest day first."""
        rows = await self._db.all(_USAGE, {"user": user_id, "first": first_day})
        return [UsageOfModel(*row) for row in rows]

    async def delete_all(self, user_id: str) -> None:
        """Every message of one user, in transactions of its own."""
        await delete_by_parts(self._db, ChatMessageRow, ChatMessageRow.id, _ALL_OF.params(user=user_id))

    async def left_behind(self, now: datetime) -> Sequence[str]:
        """Pending messages whose time is over, the longest waiting 100."""
        return [row.id for row in await self._db.all(_LEFT_BEHIND, {"now": now})]


def _message(row: Sequence[Any]) -> Message:
    """A row of COLUMNS as a value."""
    (
        message_id,
        user_id,
        conversation_id,
        message,
        response,
        model,
        status,
        prompt,
        completion,
        sources,
        reason,
        problem,
        created_at,
        completed_at,
    ) = row
    return Message(
        message_id,
        user_id,
        conversation_id,
        message,
        response,
        model,
        STATUSES[status],
        None if prompt is None else Usage(prompt, completion or 0),
        [Source(**source) for source in sources],
        reason,
        problem,
        created_at,
        completed_at,
    )
