"""Blobs: bytes under keys, written and read as streams, in a folder of this machine or (`s3.py`) on an S3 server.

What was acknowledged is on the disk, whole: before that nothing is seen under the key.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Kind, Problem, Unavailable

log = logging.getLogger("bedplate.blobs")

P = ParamSpec("P")
T = TypeVar("T")

PIECE = 256 * 1024
STRAY_SECONDS = 3600
THREADS = 4
PARTS = ".parts"
LONGEST_KEY = 512
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z", re.ASCII)


class BlobMissing(Problem):
    """There is nothing under this key."""

    kind = Kind.NOT_FOUND
    message = "Not found"


class BlobTooLarge(Exception):
    """More came than the limit; nothing is kept of it."""


class Blobs(ABC):
    """Keys are ASCII words with slashes between them, made by modules, never by clients. All raise Unavailable if the
    storage does not answer, is full or broken."""

    @abstractmethod
    async def write(self, key: str, chunks: AsyncIterable[bytes], limit: int) -> int:
        """Put all of this under the key; what was there is replaced. How many bytes it was. Whatever `chunks` raises
        is raised here, and nothing is kept. Raises BlobTooLarge."""

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` on, to the end or so many. Raises BlobMissing before the first of them."""

    @abstractmethod
    async def size(self, key: str) -> int | None:
        """How many bytes there are under this key; None: there is nothing."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Nothing happens if there is nothing."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable if nothing can be stored."""

    @abstractmethod
    async def sweep(self) -> None:
        """Remove what processes that were killed have left half written."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of threads and connections."""


def safe_key(key: str) -> str:
    """The key itself. ValueError for what could lead out of the storage: no client can cause it, only a defect."""
    if len(key) > LONGEST_KEY or not _KEY.match(key):
        raise ValueError("not a key of a blob")
    return key


class FolderBlobs(Blobs):
    """Files of one folder, readable for their owner only. Written beside it, synced, then renamed."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._pool = ThreadPoolExecutor(THREADS, "blobs")

    async def write(self, key: str, chunks: AsyncIterable[bytes], limit: int) -> int:
        path = self._path(key)
        part, file = await self._off_loop(self._new_part)
        try:
            size = 0
            async for piece in in_pieces(chunks, limit):
                size += len(piece)
                await self._off_loop(file.write, piece)
            await self._off_loop(_finish, file, part, path)
        except BaseException:
            await self._off_loop(_discard, file, part)
            raise
        return size

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        file = await self._off_loop(_open, self._path(key), start)
        try:
            left = length
            while left is None or left > 0:
                piece = await self._off_loop(file.read, PIECE if left is None else min(PIECE, left))
                if not piece:
                    break
                if left is not None:
                    left -= len(piece)
                yield piece
        finally:
            file.close()

    async def size(self, key: str) -> int | None:
        return await self._off_loop(_size, self._path(key))

    async def delete(self, key: str) -> None:
        await self._off_loop(_delete, self._path(key))

    async def ping(self) -> None:
        await self._off_loop(self._try)

    async def sweep(self) -> None:
        before = self._clock.timestamp() - STRAY_SECONDS
        await self._off_loop(_sweep, self._folder / PARTS, before)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _path(self, key: str) -> Path:
        return self._folder / safe_key(key)

    def _try(self) -> None:
        # Looking makes no folder: the first file does.
        if self._folder.exists():
            part, file = self._new_part()
            _discard(file, part)
        elif not os.access(next(each for each in self._folder.parents if each.exists()), os.W_OK | os.X_OK):
            raise PermissionError(self._folder)

    def _new_part(self) -> tuple[Path, BinaryIO]:
        part = self._folder / PARTS / secrets.token_hex(16)
        _make_folder(part.parent)
        return part, os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")

    async def _off_loop(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))
        cancelled = False
        while not future.done():
            # Cancelled or not, a thread may be in the file: nobody closes or removes it before it has come out.
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            future.exception()
            raise asyncio.CancelledError
        try:
            return future.result()
        except OSError as error:
            log.error("the folder for files cannot be used", extra={"reason": type(error).__name__}, exc_info=error)
            raise Unavailable() from error


async def in_pieces(chunks: AsyncIterable[bytes], limit: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in larger pieces, each worth a thread or a request. Raises BlobTooLarge at once."""
    gathered: list[bytes] = []
    size = 0
    async for chunk in chunks:
        limit -= len(chunk)
        if limit < 0:
            raise BlobTooLarge()
        gathered.append(chunk)
        size += len(chunk)
        if size >= PIECE:
            yield b"".join(gathered)
            gathered, size = [], 0
    if size:
        yield b"".join(gathered)


def _finish(file: BinaryIO, part: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    _make_folder(path.parent)
    os.replace(part, path)
    _sync_folder(path.parent)


def _discard(file: BinaryIO, part: Path) -> None:
    with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
        file.close()
    part.unlink(missing_ok=True)


def _open(path: Path, start: int) -> BinaryIO:
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise BlobMissing() from None
    file.seek(start)
    return file


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    _sync_folder(path.parent)


def _sweep(parts: Path, before: float) -> None:
    for part in _files_of(parts):
        with contextlib.suppress(FileNotFoundError):  # it is finished at this moment
            if part.stat().st_mtime < before:
                part.unlink()


def _files_of(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return


def _make_folder(folder: Path) -> None:
    """With those above it, each known to the disk before something lies in it."""
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another thread or process makes the same
            each.mkdir(mode=0o700)
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
