"""Uploads: from a client's stream to the storage, in the process that the client speaks to."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterable, AsyncIterator

from bedplate.kernel.blobs import Blobs, BlobTooLarge
from bedplate.kernel.errors import Problem
from bedplate.kernel.failpoints import reach
from bedplate.modules.files.public import File, FileMissing, Files, Upload, Uploads, UploadTooSlow
from bedplate.modules.files.types import HEAD, type_of

log = logging.getLogger("bedplate.files")

# Well within the hour after which an unfinished upload is swept: nobody writes any more when its bytes are removed.
UPLOAD_SECONDS = 1800.0
ABANDON_SECONDS = 5.0


class _Seen:
    """What passes by: its beginning and its checksum."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = chunks
        self._sha256 = hashlib.sha256()
        self.head = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            if len(self.head) < HEAD:
                self.head += chunk[: HEAD - len(self.head)]
            self._sha256.update(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


class StreamUploads(Uploads):
    def __init__(self, files: Files, blobs: Blobs) -> None:
        self._files = files
        self._blobs = blobs

    async def upload(self, owner_id: str, filename: str, chunks: AsyncIterable[bytes], size: int | None = None) -> File:
        upload = await self._files.begin_upload(owner_id, filename, size)
        try:
            await reach("files.upload.after_begin")
            return await self._receive(upload, filename, _Seen(chunks))
        except BaseException as failure:
            # By a task of its own: whoever gave up waiting does not stop it.
            await asyncio.shield(asyncio.create_task(self._abandon(upload, failure)))
            raise

    async def _receive(self, upload: Upload, filename: str, seen: _Seen) -> File:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                size = await self._blobs.write(upload.blob, seen, upload.limit)
        except TimeoutError:
            raise UploadTooSlow(seconds=round(UPLOAD_SECONDS)) from None
        except BlobTooLarge:
            raise upload.refusal() from None
        await reach("files.upload.after_write")
        mime_type = type_of(seen.head, filename)
        return await self._files.finish_upload(upload.file_id, size, seen.sha256, mime_type)

    async def _abandon(self, upload: Upload, failure: BaseException) -> None:
        try:
            async with asyncio.timeout(ABANDON_SECONDS):
                if isinstance(failure, FileMissing):
                    # It was swept, or its owner was deleted, while it came in: nobody else removes what is there now.
                    await self._blobs.delete(upload.blob)
                else:
                    await self._files.abandon_upload(upload.file_id)
        except (Problem, TimeoutError) as error:
            log.warning("an upload is left to the sweep", extra={"reason": type(error).__name__})
