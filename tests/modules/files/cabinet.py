"""A cabinet: files of one deployment, the storage behind them, and what the database says of both."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from sqlalchemy import func, select, text

from bedplate.kernel.blobs import Blobs
from bedplate.kernel.db import Database
from bedplate.kernel.ids import new_id
from bedplate.kernel.paging import Slice
from bedplate.models import FileRow, PassageRow, StorageRow
from bedplate.modules.files.files import FilesService
from bedplate.modules.files.public import File, Files, Passages, Uploads
from bedplate.modules.files.reading import Reading
from bedplate.modules.files.store import STORED, SqlFiles
from tests.factories import TurnableClock
from tests.world import World

EVERYTHING = Slice(100, 0)
MIB = 2**20


@dataclass
class Cabinet:
    """`uploads`: as the systems use them. `service` and `reading`: the modules' own work, which nobody calls."""

    world: World
    files: Files
    passages: Passages
    uploads: Uploads
    blobs: Blobs
    db: Database
    clock: TurnableClock
    service: FilesService
    reading: Reading

    @classmethod
    def of(cls, world: World) -> Self:
        front, behind = world.front, world.runtime
        assert behind.database is not None
        service, reading = behind.get(Files), behind.get(Passages)
        assert isinstance(service, FilesService)
        assert isinstance(reading, Reading)
        return cls(
            world,
            front.get(Files),
            front.get(Passages),
            front.uploads,
            front.blobs,
            behind.database,
            world.clock,
            service,
            reading,
        )

    def limited(self, largest: int = 50 * MIB, quota: int = 1024 * MIB) -> Files:
        """The same files with other limits."""
        return FilesService(SqlFiles(self.db), self.blobs, self.clock, largest, quota)

    async def store(self, owner_id: str, content: bytes, filename: str = "a.txt") -> File:
        return await self.uploads.upload(owner_id, filename, chunks(content))

    async def content(self, file: File) -> bytes:
        return b"".join([piece async for piece in self.blobs.read(file.blob)])

    async def is_whole(self, file: File) -> bool:
        """Whether the bytes are there that the row speaks of."""
        return hashlib.sha256(await self.content(file)).hexdigest() == file.sha256

    async def used(self, owner_id: str) -> tuple[int, int]:
        """Bytes and uploads under way, as they are counted."""
        columns = select(StorageRow.used, StorageRow.uploads)
        row = await self.db.first(columns.where(StorageRow.owner_id == owner_id))
        return (row[0], row[1]) if row is not None else (0, 0)

    async def stored(self, owner_id: str) -> int:
        """Bytes of all that is stored, added up."""
        mine = select(func.coalesce(func.sum(FileRow.size), 0))
        return int(await self.db.scalar(mine.where(FileRow.owner_id == owner_id, FileRow.status == STORED)))

    async def rows(self) -> int:
        """Files of all users, in whatever status."""
        return int(await self.db.scalar(select(func.count()).select_from(FileRow)))

    async def passages_kept(self) -> int:
        return int(await self.db.scalar(select(func.count()).select_from(PassageRow)))

    async def indexed(self) -> int:
        """Passages in the full-text index."""
        return int(await self.db.scalar(text("SELECT count(*) FROM files_words")))

    def bytes_kept(self) -> list[str]:
        """The keys of everything in the storage, what is half written included."""
        folder = self.world.settings.data / "files"
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    async def assert_nothing_is_alone(self) -> None:
        """Every row has its bytes, all bytes have their row, and what is counted is what is there."""
        rows = await self.db.all(select(FileRow.__table__))
        assert sorted(row.blob for row in rows) == self.bytes_kept()
        for row in rows:
            assert row.status == STORED
            assert await self.blobs.size(row.blob) == row.size
        for row in await self.db.all(select(StorageRow.__table__)):
            assert (row.used, row.uploads) == (await self.stored(row.owner_id), 0)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def owner() -> str:
    """The id of a user. Files do not ask whether there is one."""
    return new_id()
