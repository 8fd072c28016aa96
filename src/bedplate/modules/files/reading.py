"""Reading: the text of files becomes passages, soon after the upload or when they are asked for."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from datetime import timedelta
from weakref import WeakValueDictionary

from sqlalchemy import bindparam, func, select, update

from bedplate.kernel.blobs import BlobMissing, Blobs
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, Record
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.failpoints import reach
from bedplate.kernel.ids import is_id
from bedplate.kernel.outbox import Delivery, Listener
from bedplate.modules.files.events import FileDeleted, FileStored
from bedplate.modules.files.models import FileRow
from bedplate.modules.files.public import FileMissing, Passage, Passages, TextNotReady
from bedplate.modules.files.store import NONE, READ, STORED, UNREAD
from bedplate.modules.files.texts import passages_of, text_in
from bedplate.modules.files.words import words_in, words_of

log = logging.getLogger("bedplate.files")

MAXIMUM_FILES = 20
MAXIMUM_PASSAGES = 20
# Files that are read at once, of one owner one: each PDF is a process.
AT_ONCE = 2
# A server that stops, and what else is mended in the same round, do not wait for long.
WHILE_SECONDS = 1.0
# Within what a call from another process may take.
ASKED_SECONDS = 2.0
RETRY_SECONDS = 2
LEFT_BEHIND = timedelta(minutes=1)
GIVEN_UP = timedelta(days=1)
# More than these are left to be caught up with.
WAITING = 64

_UNREAD = (FileRow.status == STORED, FileRow.text_status == UNREAD)
_TO_READ = select(FileRow.owner_id, FileRow.mime_type, FileRow.blob).where(FileRow.id == bindparam("file_id"), *_UNREAD)
_DONE = update(FileRow).where(FileRow.id == bindparam("which"), *_UNREAD).values(text_status=bindparam("now_it_is"))
_OWNED = select(FileRow.id, FileRow.text_status).where(
    FileRow.id.in_(bindparam("ids", expanding=True)),
    FileRow.owner_id == bindparam("owner"),
    FileRow.status == STORED,
)
_BEHIND = (
    select(FileRow.id)
    .where(
        FileRow.text_status == UNREAD,
        FileRow.created_at < bindparam("before"),
        FileRow.created_at > bindparam("after"),
    )
    .order_by(func.random())  # one that cannot be read holds up no other
    .limit(AT_ONCE)
)


class Reading(Passages):
    """Close it at the end: what is being read then is left unread."""

    def __init__(self, db: Database, blobs: Blobs, clock: Clock) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._words = words_in(db)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._owners: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def listeners(self) -> list[Listener]:
        """Files are read when they are stored, and forgotten when they are gone."""
        return [
            Listener("files.reading", FileStored, self._stored),
            Listener("files.forgetting", FileDeleted, self._deleted),
        ]

    async def search(self, owner_id: str, file_ids: list[str], query: str, limit: int) -> list[Passage]:
        wanted = list(dict.fromkeys(file_ids))
        if len(wanted) > MAXIMUM_FILES:
            raise InvalidField(field="file_ids", reason=f"At most {MAXIMUM_FILES} files can be searched at once")
        if not wanted:
            return []
        if not is_id(owner_id):
            raise FileMissing()
        owned = {row.id: row.text_status for row in await self._db.all(_OWNED, {"ids": wanted, "owner": owner_id})}
        if len(owned) < len(wanted):
            raise FileMissing()
        await self._read_now([file_id for file_id, status in owned.items() if status == UNREAD])
        limit = min(max(limit, 1), MAXIMUM_PASSAGES)
        rows = await self._words.search(owner_id, wanted, words_of(query), limit)
        return [Passage(*row) for row in rows or await self._words.beginnings(owner_id, wanted, limit)]

    async def catch_up(self) -> None:
        """Read what was left unread: by a process that was killed, or because too much came at once."""
        now = self._clock.now()
        for row in await self._db.all(_BEHIND, {"before": now - LEFT_BEHIND, "after": now - GIVEN_UP}):
            await self._read_a_while(row.id)

    async def read(self, file_id: str) -> None:
        """Read this file, if it is unread. Of many that want it at once one reads."""
        task = self._under_way.get(file_id)
        if task is None:
            task = self._under_way[file_id] = asyncio.create_task(self._read(file_id))
            task.add_done_callback(lambda done: self._ended(file_id, done))
        await asyncio.shield(task)

    def _ended(self, file_id: str, done: asyncio.Task[None]) -> None:
        del self._under_way[file_id]
        if not done.cancelled() and (error := done.exception()) is not None:
            # Perhaps nobody waits any more who would say so.
            log.warning("a file could not be read", extra={"file": file_id, "reason": type(error).__name__})

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stored(self, delivery: Delivery) -> None:
        await self._read_a_while(delivery.event.file_id)

    async def _deleted(self, delivery: Delivery) -> None:
        await reach("files.forgetting.before_commit")
        await self._words.clear(delivery.event.file_id)
        await reach("files.forgetting.after_commit")

    async def _read_a_while(self, file_id: str) -> None:
        """Others wait for who waits here: what takes longer goes on without."""
        if len(self._under_way) >= WAITING:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WHILE_SECONDS):
                await self.read(file_id)

    async def _read_now(self, file_ids: Sequence[str]) -> None:
        if not file_ids:
            return
        try:
            async with asyncio.timeout(ASKED_SECONDS):
                await asyncio.gather(*(self.read(file_id) for file_id in file_ids))
        except TimeoutError:
            raise TextNotReady(retry_after=RETRY_SECONDS) from None

    async def _read(self, file_id: str) -> None:
        row = await self._db.first(_TO_READ, {"file_id": file_id})
        if row is None:
            return
        # First the owner's turn: whoever has much to be read, or what takes long, waits for himself.
        async with self._owners.setdefault(row.owner_id, asyncio.Lock()), self._turns:
            if await self._db.first(_TO_READ, {"file_id": file_id}) is not None:
                await self._keep(file_id, await self._passages(row))

    async def _passages(self, row: Record) -> list[str]:
        try:
            async with contextlib.aclosing(self._blobs.read(row.blob)) as chunks:
                text = await text_in(row.mime_type, chunks)
        except BlobMissing:  # it is being deleted
            return []
        return await asyncio.to_thread(passages_of, text)

    async def _keep(self, file_id: str, passages: list[str]) -> None:
        await reach("files.reading.before_commit")
        async with self._db.transaction() as tx:
            # Only if it is unread, and still there: of two processes that have read it the first one writes.
            if await tx.execute(_DONE, {"which": file_id, "now_it_is": READ if passages else NONE}):
                await self._words.write(tx, file_id, passages)
        await reach("files.reading.after_commit")
