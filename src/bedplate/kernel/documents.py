"""Documents: what is kept in a store that changes one document at a time, such as MongoDB or Redis.

A transaction is about one document: it holds it under a lease, changes it in memory, and writes it in one step that
fails if the lease has gone to somebody else. What was said is written with the document; from there it is moved to the
outbox of a SQL database, each event once and in order per document.
"""

import asyncio
import contextlib
import logging
import random
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from sqlalchemy import Executable

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, Effects, Unit, microseconds, moment
from bedplate.kernel.errors import Problem, Unavailable
from bedplate.kernel.failpoints import reach
from bedplate.kernel.idempotency import Answers, Once, Stored
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import move
from bedplate.kernel.rounds import Rounds

log = logging.getLogger("bedplate.documents")

# How long a process that died holds up one document; and how long somebody waits for a document, which is longer.
LEASE_SECONDS = 5.0
WAIT_SECONDS = 6.0
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
# How often it is looked for events that were left in a document, and for how many at a time.
LOOK_SECONDS = 5.0
MAXIMUM_MOVED = 100
TRIES = 5

Body = dict[str, Any]


class Taken(Exception):
    """Somebody else holds the document."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered under an idempotency key, written with its effect."""

    once: Once
    until: int
    stored: Stored


@dataclass(frozen=True, slots=True)
class Left:
    """Events that are still in a document. `mark`: by which the store knows later whether these are all."""

    events: Sequence[Body]
    mark: Any


class DocumentTransaction(Unit):
    """All or nothing, about one document. `body`: as it is to be written, if it is `changed`; None: there is none.
    `held`: under this transaction's lease. `found`: it was there before."""

    def __init__(self, documents: "Documents") -> None:
        super().__init__(documents.queue.routes)
        self._documents = documents
        self.owner = new_id()
        self.id = ""
        self.body: Body | None = None
        self.held = self.found = self.changed = False
        self.said: list[Body] = []
        self.answer: Answer | None = None
        self.turn: asyncio.Lock | None = None

    async def take(self, document_id: str) -> Body | None:
        """The document, which nobody else changes before this transaction ends; None if there is none. Raises
        Unavailable: somebody holds it for longer than a transaction takes."""
        if not self.id:
            self.id, self.held = document_id, True  # or perhaps: an answer may be lost
            self.body = await self._documents.take(self, document_id)
            self.found = self.body is not None
        assert self.id == document_id, "a transaction is about one document"
        return self.body

    def put(self, document_id: str, body: Body) -> None:
        """A new document, or what has become of the one that was taken."""
        self.id, self.body, self.changed = document_id, body, True

    async def queue(self, insertion: Executable, rows: list[dict[str, Any]]) -> None:
        first = rows[0]
        event = {name: first[name] for name in ("id", "type", "key", "payload")}
        consumers = [row["consumer"] for row in rows]
        self.said.append({**event, "at": microseconds(first["created_at"]), "consumers": consumers})


class Documents(Answers):
    """The documents of one module, in its own store. `queue`: the SQL database from which its events are delivered; all
    processes that share the store share it."""

    engine: ClassVar[str]

    def __init__(self, queue: Database, clock: Clock) -> None:
        self.queue = queue
        self._clock = clock
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._rounds = Rounds(self._turn, "events wait in their documents: they cannot be moved to the outbox")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DocumentTransaction]:
        """One transaction: written at the end of the block, left without a trace by an exception.

        Raises:
            Unavailable: the store did not answer (the outcome is unknown), or somebody else has taken the document
                over meanwhile (nothing was changed).
        """
        tx = DocumentTransaction(self)
        try:
            yield tx
            assert tx.changed or tx.answer is None, "an answer is written with its effect"
            if tx.changed:
                await self.write(tx)
            else:
                await self._let_go(tx)
        except BaseException:
            await self._let_go(tx)
            raise
        finally:
            if tx.turn is not None:
                tx.turn.release()
        if tx.said and tx.changed:
            await self._move_now(tx.id)
        elif tx.said:  # nothing became true with it
            await self._enqueue(tx.said)
        await self.queue.tell(Effects(frozenset(), tx.emitted))

    async def take(self, tx: DocumentTransaction, document_id: str) -> Body | None:
        """Hold a document as soon as nobody else does. Raises Unavailable."""
        turn, pause = self._turns.setdefault(document_id, asyncio.Lock()), FIRST_PAUSE
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turn.acquire()  # of this process one after the other, so that only one asks again and again
                tx.turn = turn
                while True:
                    try:
                        return await self.hold(document_id, tx.owner)
                    except Taken:
                        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, LONGEST_PAUSE)
        except TimeoutError:
            raise Unavailable() from None

    async def move(self, document_id: str) -> None:
        """Bring what was said with a document to the outbox. In order: a document is read as a whole, and what was
        read is written there before it is gone from here. Raises Unavailable."""
        for _ in range(TRIES):  # whoever has added to it meanwhile moves it too
            left = await self.left(document_id)
            if not left.events:
                return
            await reach("documents.move.before_queue")
            await self._enqueue(left.events)
            await reach("documents.move.after_queue")
            if await self.moved(document_id, left):
                return

    async def drain(self) -> bool:
        """Bring what is left of everything, a hundred documents at most. Whether there may be more."""
        failed: Exception | None = None
        ids = await self.waiting(MAXIMUM_MOVED)
        for document_id in ids:
            try:
                await self.move(document_id)
            except Exception as error:  # it holds up no other
                failed = error
        if failed is not None:
            raise failed
        return len(ids) == MAXIMUM_MOVED

    async def start(self) -> None:
        """From now on look for what a process that died has left behind."""
        await self._rounds.start()

    async def stop(self) -> None:
        """Within a second. What is left is moved after the next start, or by another process."""
        await self._rounds.stop()

    async def finish(self, tx: Unit, once: Once, until: datetime, answer: Stored) -> None:
        assert isinstance(tx, DocumentTransaction)
        tx.answer = Answer(once, microseconds(until), answer)

    async def prepare(self) -> None:
        """What is done once before the store is used. Raises Unavailable."""

    async def weakness(self) -> str:
        """Why this server could lose what it has confirmed, in a few words; nothing if it says that it keeps it."""
        return ""

    @abstractmethod
    async def hold(self, document_id: str, owner: str) -> Body | None:
        """Take a lease and read the document; None if there is none. Raises Taken, Unavailable."""

    @abstractmethod
    async def let_go(self, document_id: str, owner: str) -> None:
        """End a lease, if it is still this owner's. What comes late from him changes nothing."""

    @abstractmethod
    async def write(self, tx: DocumentTransaction) -> None:
        """In one step: the document, what was said, the answer, and the end of the lease.
        Raises UniqueViolation (a new document's id is taken), IdempotencyKeyInWork, Unavailable."""

    @abstractmethod
    async def left(self, document_id: str) -> Left:
        """What was said with it and is still there, in that order."""

    @abstractmethod
    async def moved(self, document_id: str, left: Left) -> bool:
        """Forget these. False: there are others."""

    @abstractmethod
    async def waiting(self, limit: int) -> Sequence[str]:
        """Documents in which events are left, the longest waiting first."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable if the store does not answer."""

    @abstractmethod
    async def close(self) -> None:
        """Close every connection."""

    async def _let_go(self, tx: DocumentTransaction) -> None:
        if tx.held:
            with contextlib.suppress(Problem):  # then the lease runs out
                await self.let_go(tx.id, tx.owner)

    async def _move_now(self, document_id: str) -> None:
        try:
            await self.move(document_id)
        except Problem as away:  # it is committed, and will be moved
            log.warning("events wait in a document", extra={"reason": type(away).__name__})
            self._rounds.wake.set()

    async def _enqueue(self, events: Iterable[Body]) -> None:
        await move(self.queue, [row for event in events for row in _rows(event)], self._clock.now())

    async def _turn(self) -> float:
        return 0.0 if await self.drain() else LOOK_SECONDS


def _rows(event: Body) -> list[dict[str, Any]]:
    at = moment(event["at"])
    row = {name: event[name] for name in ("id", "type", "key", "payload")}
    return [{**row, "consumer": each, "created_at": at, "due_at": at, "attempts": 0} for each in event["consumers"]]
