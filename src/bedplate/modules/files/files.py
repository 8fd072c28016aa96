"""Files: the implementation of the Files facade."""

from datetime import timedelta

from bedplate.kernel.blobs import Blobs
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Transaction
from bedplate.kernel.errors import Problem
from bedplate.kernel.failpoints import reach
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.outbox import Delivery, Listener, emit
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.files.events import FileDeleted, FileStored
from bedplate.modules.files.names import safe_name
from bedplate.modules.files.public import (
    File,
    FileMissing,
    Files,
    FileTooLarge,
    StorageQuotaExceeded,
    TooManyUploads,
    Upload,
)
from bedplate.modules.files.store import NONE, UNREAD, Content, Gone, SqlFiles
from bedplate.modules.files.types import READABLE
from bedplate.modules.identity.events import UserDeleted

PREFIX = "file-"
# Of one user at the same time. What is under way may take more than the quota until it is finished.
UPLOADS_LIMIT = 32
RETRY_SECONDS = 10
SWEPT_AFTER = timedelta(hours=1)


class FilesService(Files):
    """`largest`: bytes of one file; `quota`: of all files of one user."""

    def __init__(self, store: SqlFiles, blobs: Blobs, clock: Clock, largest: int, quota: int) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._largest = largest
        self._quota = quota

    def listeners(self) -> list[Listener]:
        """Bytes follow their rows, and files their owners."""
        return [
            Listener("files.bytes", FileDeleted, self._remove_bytes),
            Listener("files.owners", UserDeleted, self._remove_all),
        ]

    async def begin_upload(self, owner_id: str, filename: str, size: int | None = None) -> Upload:
        if size is not None and size > self._largest:
            raise FileTooLarge(limit=self._largest)
        name, number, now = safe_name(filename), new_id(), self._clock.now()
        blob = f"users/{owner_id}/uploads/{number}"
        file = File(PREFIX + number, owner_id, name, size or 0, "", "", blob, now)
        async with self._store.transaction() as tx:
            used = await self._store.reserve(tx, owner_id, size, self._quota, UPLOADS_LIMIT)
            if used is None:
                raise await self._no_place(tx, owner_id)
            await self._store.insert(tx, file)
        limit = min(self._largest, self._quota - used + file.size)
        return Upload(file.id, blob, limit, self._largest, self._quota)

    async def finish_upload(self, file_id: str, size: int, sha256: str, mime_type: str) -> File:
        if size > self._largest:
            await self.abandon_upload(file_id)
            raise FileTooLarge(limit=self._largest)
        content = Content(size, sha256, mime_type, UNREAD if mime_type in READABLE and size else NONE)
        async with self._store.transaction() as tx:
            outcome = await self._store.finish(tx, file_id, content, self._quota)
            if outcome is None:
                raise FileMissing()
            if isinstance(outcome, Gone):
                await self._let_go(tx, outcome)
            else:
                await emit(tx, FileStored(file_id), self._clock.now())
            await reach("files.finish.before_commit")
        await reach("files.finish.after_commit")
        if isinstance(outcome, Gone):
            raise StorageQuotaExceeded(quota=self._quota)
        return outcome

    async def abandon_upload(self, file_id: str) -> None:
        async with self._store.transaction() as tx:
            await self._let_go(tx, await self._store.drop(tx, file_id))

    async def get_file(self, owner_id: str, file_id: str) -> File:
        file = await self.find_file(file_id)
        if file is None or file.owner_id != owner_id:
            raise FileMissing()
        return file

    async def find_file(self, file_id: str) -> File | None:
        return await self._store.find(file_id) if is_file_id(file_id) else None

    async def list_files(self, owner_id: str, part: Slice) -> Page[File]:
        return await self._store.page(owner_id, part) if is_id(owner_id) else Page([], 0)

    async def delete_file(self, owner_id: str, file_id: str) -> None:
        if not is_file_id(file_id) or not is_id(owner_id):
            raise FileMissing()
        async with self._store.transaction() as tx:
            gone = await self._store.delete(tx, owner_id, file_id)
            if gone is None:
                raise FileMissing()
            await self._let_go(tx, gone)
            await reach("files.delete.before_commit")
        await reach("files.delete.after_commit")

    async def sweep(self) -> None:
        """Remove uploads that nobody has finished, and what they have left in the storage."""
        while stale := await self._store.stale(self._clock.now() - SWEPT_AFTER):
            for file_id in stale:
                await self.abandon_upload(file_id)
        await self._blobs.sweep()

    async def _no_place(self, tx: Transaction, owner_id: str) -> Problem:
        if await self._store.uploads(tx, owner_id) >= UPLOADS_LIMIT:
            return TooManyUploads(limit=UPLOADS_LIMIT, retry_after=RETRY_SECONDS)
        return StorageQuotaExceeded(quota=self._quota)

    async def _let_go(self, tx: Transaction, gone: Gone | None) -> None:
        """In the transaction that removes a row it is said where its bytes are: a crash leaves neither alone."""
        if gone is not None:
            await emit(tx, FileDeleted(gone.id, gone.blob), self._clock.now())

    async def _remove_bytes(self, delivery: Delivery) -> None:
        # Again and again is as good as once: no id is ever given to another file.
        await reach("files.remove.before_bytes")
        await self._blobs.delete(delivery.event.blob)
        await reach("files.remove.after_bytes")

    async def _remove_all(self, delivery: Delivery) -> None:
        owner_id = delivery.event.user_id
        async with self._store.transaction() as tx:
            await self._store.abandon(tx, owner_id)
        while some := await self._store.some(owner_id):
            async with self._store.transaction() as tx:
                for file_id in some:
                    await self._let_go(tx, await self._store.delete(tx, owner_id, file_id))


def is_file_id(text: str) -> bool:
    """Whether text can be a file's id: any other is not worth a query."""
    return text.startswith(PREFIX) and is_id(text.removeprefix(PREFIX))
