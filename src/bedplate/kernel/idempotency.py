"""Idempotency keys: a client that lost an answer asks again with the same key, and there is no second effect.

The answer is stored in the transaction of the effect, so there is no moment in which one exists without the other. A
request in work holds its key for at most fifteen seconds; a process that dies frees it by then.
"""

import contextlib
import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter
from sqlalchemy import JSON, String, bindparam, delete, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Base, Database, Transaction, UniqueViolation, Unit, UtcTime, delete_by_parts
from bedplate.kernel.errors import Kind, Problem

T = TypeVar("T")
Keep = Callable[[Unit, T], Awaitable[None]]
Stored = dict[str, Any]

KEPT = timedelta(hours=24)
IN_WORK = timedelta(seconds=15)
MAXIMUM_KEY = 255
# What says nothing about the request itself may come out otherwise the next time.
NOT_KEPT = frozenset({Kind.UNAVAILABLE, Kind.FAILED, Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.TOO_MANY})


class IdempotencyKeyReused(Problem):
    kind = Kind.INVALID
    message = "This Idempotency-Key was used for another request"


class IdempotencyKeyInWork(Problem):
    """Details: retry_after (seconds)."""

    kind = Kind.CONFLICT
    message = "A request with this Idempotency-Key is being worked on"


@dataclass(frozen=True, slots=True)
class Once:
    """A client's key with whose and for what it is, and what was asked: digests, from which neither can be read."""

    key: str
    fingerprint: str

    @classmethod
    def of(cls, secret: str, scope: str, key: str, body: Any) -> "Once":
        """`scope`: the caller and the operation. Keyed, because a card number can be guessed from a plain digest."""

        def digest(*parts: bytes) -> str:
            return hmac.new(secret.encode(), b"\0".join(parts), hashlib.sha256).hexdigest()

        content = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        return cls(digest(b"key", scope.encode(), key.encode()), digest(b"body", content))


class Answers(ABC):
    """Where the keys of one module lie, and what was answered: with the effects that these are answers to."""

    @abstractmethod
    async def claim(self, once: Once, now: datetime, until: datetime) -> Stored | None:
        """The stored answer, or None: the key is the caller's, who may be overtaken after `until`.
        Raises IdempotencyKeyReused, IdempotencyKeyInWork, Unavailable."""

    @abstractmethod
    async def finish(self, tx: Unit, once: Once, until: datetime, answer: Stored) -> None:
        """Store the answer with the effect of `tx`. Raises IdempotencyKeyInWork, now or at the end of `tx`: somebody
        has overtaken the caller, and the effect is undone."""

    @abstractmethod
    async def release(self, once: Once, until: datetime, refusal: Stored | None) -> None:
        """There is no effect: store the refusal, or free the key; unless the caller was overtaken."""

    @abstractmethod
    async def forget(self, before: datetime) -> None:
        """Keys from before that time."""


def judged(once: Once, fingerprint: str, answer: Stored | None, until: datetime, now: datetime) -> Stored | None:
    """What a key that is known comes to: its answer; None if whoever holds it may be overtaken.
    Raises IdempotencyKeyReused, IdempotencyKeyInWork."""
    if fingerprint != once.fingerprint:
        raise IdempotencyKeyReused()
    if answer is None and until >= now:
        raise IdempotencyKeyInWork(retry_after=max(1, round((until - now).total_seconds())))
    return answer


class Idempotency:
    """The keys of one module, in its own database."""

    def __init__(self, answers: Answers, clock: Clock) -> None:
        self._answers = answers
        self._clock = clock

    async def run(self, once: Once | None, answer: TypeAdapter[T], work: Callable[[Keep[T]], Awaitable[T]]) -> T:
        """What `work` returns, or has returned before under this key. `work` calls `keep(tx, value)` in the
        transaction of its effect.

        Raises:
            IdempotencyKeyReused: the key stands for another request.
            IdempotencyKeyInWork: the same request is being worked on.
            Problem: what `work` raised, now or before.
        """
        if once is None:
            return await work(_nothing_to_keep)
        now = self._clock.now()
        until = now + IN_WORK
        stored = await self._answers.claim(once, now, until)
        if stored is not None:
            return _answer(stored, answer)

        async def keep(tx: Unit, value: T) -> None:
            await self._answers.finish(tx, once, until, {"value": answer.dump_python(value, mode="json")})

        try:
            return await work(keep)
        except BaseException as error:
            with contextlib.suppress(Problem):  # the database may be away: then the claim runs out
                await self._answers.release(once, until, _refusal(error))
            raise

    async def forget_old(self) -> None:
        """Keys are kept for 24 hours."""
        await self._answers.forget(self._clock.now() - KEPT)


def _refusal(error: BaseException) -> Stored | None:
    if not isinstance(error, Problem) or error.kind in NOT_KEPT:
        return None
    return {"problem": type(error).__name__, "details": error.details}


async def _nothing_to_keep(tx: Unit, value: Any) -> None:
    """There is no key."""


def _answer(stored: Stored, answer: TypeAdapter[T]) -> T:
    if "problem" in stored:
        raise Problem.known[stored["problem"]](**stored["details"])
    return answer.validate_python(stored["value"])


class IdempotencyRow(Base):
    __tablename__ = "kernel_idempotency"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    claimed_until: Mapped[datetime] = mapped_column(UtcTime)
    created_at: Mapped[datetime] = mapped_column(UtcTime, index=True)


_FIND = select(IdempotencyRow.fingerprint, IdempotencyRow.answer, IdempotencyRow.claimed_until).where(
    IdempotencyRow.key == bindparam("once")
)
_TAKE_OVER = (
    update(IdempotencyRow)
    .where(
        IdempotencyRow.key == bindparam("once"),
        IdempotencyRow.answer.is_(None),
        IdempotencyRow.claimed_until < bindparam("now"),
    )
    .values(claimed_until=bindparam("until"))
)
# Whoever took so long that somebody else took over finds the claim's end moved, and changes nothing.
_MINE = (
    IdempotencyRow.key == bindparam("once"),
    IdempotencyRow.answer.is_(None),
    IdempotencyRow.claimed_until == bindparam("claim", type_=UtcTime()),
)
_FINISH = update(IdempotencyRow).where(*_MINE).values(answer=bindparam("stored"))
_RELEASE = delete(IdempotencyRow).where(*_MINE)
_INSERT = insert(IdempotencyRow)


class SqlAnswers(Answers):
    """In SQLite or PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(self, once: Once, now: datetime, until: datetime) -> Stored | None:
        row = {"key": once.key, "fingerprint": once.fingerprint, "claimed_until": until, "created_at": now}
        try:
            async with self._db.transaction() as tx:
                await tx.execute(_INSERT, {**row, "answer": None})
            return None
        except UniqueViolation:
            found = await self._db.first(_FIND, {"once": once.key})
        if found is None:  # given up a moment ago
            raise IdempotencyKeyInWork(retry_after=1)
        stored = judged(once, found.fingerprint, found.answer, found.claimed_until, now)
        if stored is not None:
            return stored
        async with self._db.transaction() as tx:
            if not await tx.execute(_TAKE_OVER, {"once": once.key, "now": now, "until": until}):
                raise IdempotencyKeyInWork(retry_after=1)
        return None

    async def finish(self, tx: Unit, once: Once, until: datetime, answer: Stored) -> None:
        assert isinstance(tx, Transaction)
        if not await tx.execute(_FINISH, {"once": once.key, "claim": until, "stored": answer}):
            raise IdempotencyKeyInWork(retry_after=1)

    async def release(self, once: Once, until: datetime, refusal: Stored | None) -> None:
        mine = {"once": once.key, "claim": until}
        async with self._db.transaction() as tx:
            if refusal is not None:
                await tx.execute(_FINISH, {**mine, "stored": refusal})
            else:
                await tx.execute(_RELEASE, mine)

    async def forget(self, before: datetime) -> None:
        old = select(IdempotencyRow.key).where(IdempotencyRow.created_at < before)
        await delete_by_parts(self._db, IdempotencyRow, IdempotencyRow.key, old)
