"""Where files are kept track of: the statements on files and on what each user takes."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Executable, bindparam, delete, func, insert, or_, select, text, update

from bedplate.kernel.db import Database, Id, Transaction
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.files.models import FileRow, StorageRow
from bedplate.modules.files.public import File

UPLOADING, ABANDONED, STORED = "uploading", "abandoned", "stored"
UNREAD, READ, NONE = "unread", "read", "none"
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Content:
    """What is known of the bytes of a file once they are there."""

    size: int
    sha256: str
    mime_type: str
    text_status: str


@dataclass(frozen=True, slots=True)
class Gone:
    """A file that was removed: how much its owner takes less, and where its bytes are."""

    id: str
    owner_id: str
    size: int
    blob: str


# In the order of File's fields.
COLUMNS = (
    FileRow.id,
    FileRow.owner_id,
    FileRow.filename,
    FileRow.size,
    FileRow.mime_type,
    FileRow.sha256,
    FileRow.blob,
    FileRow.created_at,
)
GONE = (FileRow.id, FileRow.owner_id, FileRow.size, FileRow.blob)

_INSERT = insert(FileRow)
# One statement instead of a look and an insert; both engines know this form.
_ACCOUNT = text(
    "INSERT INTO files_storage (owner_id, used, uploads) VALUES (:owner, 0, 0) ON CONFLICT DO NOTHING"
).bindparams(bindparam("owner", type_=Id()))
_OF_OWNER = StorageRow.owner_id == bindparam("owner")
# The condition and the change are one: of many that try at once, each sees what the one before it has taken.
_RESERVE = (
    update(StorageRow)
    .where(
        _OF_OWNER,
        StorageRow.used + bindparam("least") <= bindparam("quota"),
        StorageRow.uploads < bindparam("uploads_limit"),
    )
    .values(used=StorageRow.used + bindparam("reserved"), uploads=StorageRow.uploads + 1)
    .returning(StorageRow.used)
)
_KEEP = (
    update(StorageRow)
    .where(_OF_OWNER, StorageRow.used + bindparam("more") <= bindparam("quota"))
    .values(used=StorageRow.used + bindparam("more"), uploads=StorageRow.uploads - 1)
)
_RELEASE = (
    update(StorageRow)
    .where(_OF_OWNER)
    .values(used=StorageRow.used - bindparam("freed"), uploads=StorageRow.uploads - bindparam("ended"))
)
_STANDING = select(StorageRow.used, StorageRow.uploads).where(_OF_OWNER)
_UNFINISHED = or_(FileRow.status == UPLOADING, FileRow.status == ABANDONED)
_THIS = FileRow.id == bindparam("file_id")
_RESERVED = select(FileRow.size).where(_THIS, FileRow.status == UPLOADING)
_FINISH = (
    update(FileRow)
    .where(_THIS, FileRow.status == UPLOADING)
    .values(
        status=STORED,
        size=bindparam("new_size"),
        sha256=bindparam("new_sha256"),
        mime_type=bindparam("new_type"),
        text_status=bindparam("new_text_status"),
    )
    .returning(*COLUMNS)
)
_DROP = delete(FileRow).where(_THIS, _UNFINISHED).returning(*GONE)
_DELETE = (
    delete(FileRow).where(_THIS, FileRow.owner_id == bindparam("owner"), FileRow.status == STORED).returning(*GONE)
)
_ABANDON = (
    update(FileRow).where(FileRow.owner_id == bindparam("owner"), FileRow.status == UPLOADING).values(status=ABANDONED)
)
_FIND = select(*COLUMNS).where(_THIS, FileRow.status == STORED)
_MINE = (FileRow.owner_id == bindparam("owner"), FileRow.status == STORED)
_PAGE = select(*COLUMNS).where(*_MINE).order_by(FileRow.created_at.desc(), FileRow.id.desc())
_PAGE = _PAGE.limit(bindparam("limit")).offset(bindparam("offset"))
_COUNT = select(func.count()).select_from(FileRow).where(*_MINE)
_SOME = select(FileRow.id).where(*_MINE).limit(AT_ONCE)
_STALE = select(FileRow.id).where(_UNFINISHED, FileRow.created_at < bindparam("before")).limit(AT_ONCE)


class SqlFiles:
    """In SQLite or PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """See `Database.transaction`."""
        return self._db.transaction()

    async def reserve(
        self, tx: Transaction, owner_id: str, size: int | None, quota: int, uploads_limit: int
    ) -> int | None:
        """Take so much (None: it is not known yet, but there must be room for a byte) and a place among the uploads
        under way. What the owner takes with it; None if there is no room, or no place."""
        await tx.execute(_ACCOUNT, {"owner": owner_id})
        wanted = {"least": 1 if size is None else size, "reserved": size or 0}
        row = await tx.first(_RESERVE, {"owner": owner_id, "quota": quota, "uploads_limit": uploads_limit, **wanted})
        return None if row is None else int(row[0])

    async def uploads(self, tx: Transaction, owner_id: str) -> int:
        """How many are under way."""
        row = await tx.first(_STANDING, {"owner": owner_id})
        return 0 if row is None else int(row[1])

    async def insert(self, tx: Transaction, file: File) -> None:
        """A file that is being uploaded. `size`: what is reserved for it."""
        row = {name: getattr(file, name) for name in ("id", "owner_id", "filename", "size", "blob", "created_at")}
        await tx.execute(_INSERT, {**row, "status": UPLOADING, "mime_type": "", "sha256": "", "text_status": NONE})

    async def finish(self, tx: Transaction, file_id: str, content: Content, quota: int) -> File | Gone | None:
        """Compare and swap: the file, stored. Gone, and it is removed, if its owner has no room for it; None if it is
        not being uploaded."""
        reserved = await tx.first(_RESERVED, {"file_id": file_id})
        values = {
            "new_size": content.size,
            "new_sha256": content.sha256,
            "new_type": content.mime_type,
            "new_text_status": content.text_status,
        }
        # First the file, then what its owner takes: in this order everywhere, so that no two wait for each other.
        row = None if reserved is None else await tx.first(_FINISH, {"file_id": file_id, **values})
        if reserved is None or row is None:
            return None
        file = File(*row)
        more = {"owner": file.owner_id, "more": file.size - reserved.size, "quota": quota}
        if await tx.execute(_KEEP, more):
            return file
        await tx.execute(_DELETE, {"file_id": file_id, "owner": file.owner_id})
        await self._release(tx, file.owner_id, freed=reserved.size, ended=1)
        return Gone(file.id, file.owner_id, reserved.size, file.blob)

    async def drop(self, tx: Transaction, file_id: str) -> Gone | None:
        """Remove a file that is not finished; None if there is none."""
        return await self._remove(tx, _DROP, {"file_id": file_id}, ended=1)

    async def delete(self, tx: Transaction, owner_id: str, file_id: str) -> Gone | None:
        """Remove a file of this owner that is stored; None if there is none."""
        return await self._remove(tx, _DELETE, {"file_id": file_id, "owner": owner_id}, ended=0)

    async def abandon(self, tx: Transaction, owner_id: str) -> None:
        """Nothing that this owner is uploading will ever be finished."""
        await tx.execute(_ABANDON, {"owner": owner_id})

    async def find(self, file_id: str) -> File | None:
        """As it is stored."""
        row = await self._db.first(_FIND, {"file_id": file_id})
        return None if row is None else File(*row)

    async def page(self, owner_id: str, part: Slice) -> Page[File]:
        """One owner's, newest first, at most 100, with the exact total."""
        part = part.bounded()
        rows = await self._db.all(_PAGE, {"owner": owner_id, "limit": part.limit, "offset": part.offset})
        total = part.total_if_last(len(rows))
        if total is None:
            total = int(await self._db.scalar(_COUNT, {"owner": owner_id}))
        return Page([File(*row) for row in rows], total)

    async def some(self, owner_id: str) -> Sequence[str]:
        """The ids of some of an owner's files; none: there are none."""
        return [row[0] for row in await self._db.all(_SOME, {"owner": owner_id})]

    async def stale(self, before: datetime) -> Sequence[str]:
        """The ids of some uploads that began before this and were never finished."""
        return [row[0] for row in await self._db.all(_STALE, {"before": before})]

    async def _remove(self, tx: Transaction, statement: Executable, which: dict[str, str], ended: int) -> Gone | None:
        row = await tx.first(statement, which)
        if row is None:
            return None
        gone = Gone(*row)
        await self._release(tx, gone.owner_id, freed=gone.size, ended=ended)
        return gone

    async def _release(self, tx: Transaction, owner_id: str, freed: int, ended: int) -> None:
        await tx.execute(_RELEASE, {"owner": owner_id, "freed": freed, "ended": ended})
