"""Files' public face: values, problems and facades. Bytes do not pass through here: they go to and from `Blobs`."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable
from dataclasses import dataclass
from datetime import datetime

from bedplate.kernel.errors import Kind, Problem, TooLarge
from bedplate.kernel.paging import Page, Slice


@dataclass(frozen=True, slots=True)
class File:
    """`id` as it is printed: `file-…`. `size` in bytes. `mime_type` by what is in it. `blob`: its key in `Blobs`."""

    id: str
    owner_id: str
    filename: str
    size: int
    mime_type: str
    sha256: str
    blob: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a file that fits a question. `position`: the how-manieth of the file, from 0. `score`: higher is
    better, comparable within one search only."""

    file_id: str
    filename: str
    position: int
    text: str
    score: float


class FileMissing(Problem):
    """Unknown, deleted, not finished, or another user's."""

    kind = Kind.NOT_FOUND
    message = "File not found"


class FileTooLarge(TooLarge):
    """Details: limit (bytes)."""

    message = "File is larger than {limit} bytes"


class StorageQuotaExceeded(Problem):
    """Details: quota (bytes of all files of one user)."""

    kind = Kind.FORBIDDEN
    message = "Storage quota exceeded: {quota} bytes"


class TooManyUploads(Problem):
    """Of one user at the same time. Details: limit, retry_after (seconds)."""

    kind = Kind.TOO_MANY
    message = "More than {limit} uploads at the same time"


class UploadTooSlow(Problem):
    """Details: seconds."""

    kind = Kind.INVALID
    message = "The upload took longer than {seconds} seconds"


class TextNotReady(Problem):
    """The text of a file is still being read. Details: retry_after (seconds)."""

    kind = Kind.UNAVAILABLE
    message = "The text of a file is still being read"


@dataclass(frozen=True, slots=True)
class Upload:
    """A place for the bytes of a new file: write at most `limit` of them under `blob`, then finish or abandon.

    `largest`: what any file may have; `quota`: what all files of its owner may take.
    """

    file_id: str
    blob: str
    limit: int
    largest: int
    quota: int

    def refusal(self) -> Problem:
        """Why no more than the limit is taken."""
        if self.limit == self.largest:
            return FileTooLarge(limit=self.largest)
        return StorageQuotaExceeded(quota=self.quota)


class Files(ABC):
    """Files of all users. A user sees only his own."""

    @abstractmethod
    async def begin_upload(self, owner_id: str, filename: str, size: int | None = None) -> Upload:
        """Reserve a place. The name is made safe. `size`: if it is known beforehand. What is neither finished nor
        abandoned within an hour is swept. Raises FileTooLarge, StorageQuotaExceeded, TooManyUploads."""

    @abstractmethod
    async def finish_upload(self, file_id: str, size: int, sha256: str, mime_type: str) -> File:
        """The bytes are written and on the disk. Raises FileMissing, FileTooLarge, StorageQuotaExceeded: then the bytes
        are removed."""

    @abstractmethod
    async def abandon_upload(self, file_id: str) -> None:
        """Give the place up, and remove what was written. Nothing happens if it is finished or gone."""

    @abstractmethod
    async def get_file(self, owner_id: str, file_id: str) -> File:
        """Raises FileMissing."""

    @abstractmethod
    async def find_file(self, file_id: str) -> File | None:
        """Of any user: for whoever shows a signed link."""

    @abstractmethod
    async def list_files(self, owner_id: str, part: Slice) -> Page[File]:
        """Newest first, with the exact total."""

    @abstractmethod
    async def delete_file(self, owner_id: str, file_id: str) -> None:
        """At once for users; the bytes follow. Raises FileMissing."""


class Uploads(ABC):
    """Files as streams. No facade: the bytes go from this process to the storage, and only what is known of them to
    `Files`, wherever that runs."""

    @abstractmethod
    async def upload(self, owner_id: str, filename: str, chunks: AsyncIterable[bytes], size: int | None = None) -> File:
        """A new file of all these bytes; type and checksum are taken from them. Nothing is left of one that fails, and
        what `chunks` raises is raised. Raises FileTooLarge, StorageQuotaExceeded, TooManyUploads, UploadTooSlow,
        Unavailable."""


class Passages(ABC):
    """What can be read in files: text, Markdown, CSV and PDF."""

    @abstractmethod
    async def search(self, owner_id: str, file_ids: list[str], query: str, limit: int) -> list[Passage]:
        """The passages of these files (at most 20) that fit best, best first, at most `limit` (20). Where no word fits,
        the beginnings of the files. Files that hold no text give none; a file whose text is not read yet is read now.
        Raises FileMissing if one is not this owner's, InvalidField, TextNotReady."""
