"""Blobs on an S3 server: Amazon's, MinIO, or any other that speaks the protocol."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from bedplate.kernel.blobs import BlobMissing, Blobs, in_pieces, safe_key
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.settings import OperatorError

if TYPE_CHECKING:
    from obstore.store import S3Config

log = logging.getLogger("bedplate.s3")

# The least that S3 takes as a part of an upload. What is smaller as a whole is sent in one request.
PART = 5 * 1024 * 1024
PARTS_AT_ONCE = 2
RANGE = 2 * 1024 * 1024
CONNECT_SECONDS = 3
REQUEST_SECONDS = 30
RETRIES = 3
ABORT_SECONDS = 10.0
WRONG = "STORAGE_URL is not a URL like s3://bucket?endpoint=https://host:9000&region=us-east-1"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where blobs are kept. `endpoint` None: Amazon's own; `prefix`: what every key begins with."""

    name: str
    prefix: str
    endpoint: str | None
    region: str

    @classmethod
    def of(cls, url: str) -> "Bucket":
        """Raises OperatorError."""
        try:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        except ValueError:
            raise OperatorError(WRONG) from None
        endpoint = query.pop("endpoint", None)
        region = query.pop("region", "us-east-1")
        prefix = parts.path.strip("/")
        known = endpoint is None or urlsplit(endpoint).scheme in ("http", "https")
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or query or not known:
            raise OperatorError(WRONG)
        return cls(parts.netloc, f"{prefix}/" if prefix else "", endpoint, region)


class S3Blobs(Blobs):
    """`access_key` None: what the machine itself is allowed to.

    An upload that was cut off leaves nothing to be seen; what a killed process has sent of a large one is invisible
    too, and is removed by the bucket's rule for incomplete uploads.
    """

    def __init__(
        self,
        url: str,
        access_key: str | None = None,
        secret_key: str | None = None,
        session_token: str | None = None,
    ) -> None:
        bucket = Bucket.of(url)
        self._prefix = bucket.prefix
        # A server of one's own is asked by path: it seldom has a name for each bucket.
        config: S3Config = {"region": bucket.region, "virtual_hosted_style_request": bucket.endpoint is None}
        if bucket.endpoint is not None:
            config["endpoint"] = bucket.endpoint
        if access_key is not None:
            config["access_key_id"] = access_key
            config["secret_access_key"] = secret_key or ""
        if session_token is not None:
            config["session_token"] = session_token
        self._store = S3Store(
            bucket.name,
            config=config,
            client_options={
                "allow_http": bucket.endpoint is not None and bucket.endpoint.startswith("http:"),
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=REQUEST_SECONDS)},
        )

    async def write(self, key: str, chunks: AsyncIterable[bytes], limit: int) -> int:
        path, size = self._path(key), 0
        beginning: deque[bytes] = deque()
        async with contextlib.aclosing(in_pieces(chunks, limit)) as pieces:
            async for piece in pieces:
                size += len(piece)
                beginning.append(piece)
                if size > PART:
                    return await self._write_parts(path, beginning, pieces)
        with _reachable():
            await obstore.put_async(self._store, path, b"".join(beginning), use_multipart=False)
        return size

    async def _write_parts(self, path: str, beginning: deque[bytes], rest: AsyncIterator[bytes]) -> int:
        # The library gives up a begun upload only if its source fails: so it is fed from here, and told.
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        size = 0

        async def fed() -> AsyncIterator[bytes]:
            while piece := await queue.get():
                yield piece
            if piece is None:
                raise _GivenUp()

        sending = asyncio.create_task(self._send(path, fed()))
        try:
            while beginning:
                size += await _put(queue, beginning.popleft(), sending)
            async for piece in rest:
                size += await _put(queue, piece, sending)
            await _put(queue, b"", sending)
            with _reachable():
                await asyncio.shield(sending)
        except BaseException:
            await asyncio.shield(_give_up(queue, sending))
            raise
        return size

    async def _send(self, path: str, pieces: AsyncIterator[bytes]) -> None:
        await obstore.put_async(self._store, path, pieces, chunk_size=PART, max_concurrency=PARTS_AT_ONCE)

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        path = self._path(key)
        size = await self.size(key)
        if size is None:
            raise BlobMissing()
        end = size if length is None else min(start + length, size)
        # Each range is a request with time-outs and retries of its own, however slowly the reader takes it.
        while start < end:
            with _reachable():
                piece = await obstore.get_range_async(self._store, path, start=start, end=min(start + RANGE, end))
            yield bytes(piece)
            start += len(piece)

    async def size(self, key: str) -> int | None:
        with _reachable():
            try:
                return (await obstore.head_async(self._store, self._path(key)))["size"]
            except FileNotFoundError:
                return None

    async def delete(self, key: str) -> None:
        with _reachable(), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, self._path(key))

    async def ping(self) -> None:
        with _reachable():
            await obstore.list_with_delimiter_async(self._store, prefix=f"{self._prefix}ping")

    async def sweep(self) -> None:
        """Nothing is left that could be seen."""

    async def close(self) -> None:
        """The library closes what is idle by itself."""

    def _path(self, key: str) -> str:
        return self._prefix + safe_key(key)


class _GivenUp(Exception):
    """The source of an upload has failed."""


async def _put(queue: "asyncio.Queue[bytes | None]", piece: bytes, sending: "asyncio.Task[None]") -> int:
    """Hand on a piece, unless the upload has failed meanwhile and nobody takes it. Its size."""
    handing = asyncio.create_task(queue.put(piece))
    try:
        await asyncio.wait([handing, sending], return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not handing.done():
            handing.cancel()
    if sending.done():
        with _reachable():
            sending.result()
    return len(piece)


async def _give_up(queue: "asyncio.Queue[bytes | None]", sending: "asyncio.Task[None]") -> None:
    if not sending.done():
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)
        await asyncio.wait([sending], timeout=ABORT_SECONDS)
    sending.cancel()
    if sending.done() and not sending.cancelled():
        sending.exception()


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        # Only the kind of it: the text holds the address, and may hold what the server has said.
        log.error("the storage does not answer as it should", extra={"reason": type(error).__name__})
        raise Unavailable() from error
