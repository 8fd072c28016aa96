"""Dev-PyNode API reference: File Management. Downloads, by token and by the signed `url`, are additions."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from bedplate.kernel.attachments import Attachment
from bedplate.kernel.blobs import Blobs
from bedplate.kernel.errors import NotAllowed, Problem
from bedplate.kernel.http import BodyLimit, Text
from bedplate.kernel.multipart import FileForm
from bedplate.kernel.paging import MAXIMUM_OFFSET, Slice
from bedplate.kernel.settings import Settings
from bedplate.modules.files.public import File, FileMissing, FileTooLarge
from bedplate.systems.pynode.deps import BlobsDep, Caller, FilesDep, LinksDep, UploadsDep

router = APIRouter(tags=["files"])

# Around the bytes of the file: boundaries, headers, and room for a file that is too large to be found so.
AROUND = 1_048_576
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
DOWNLOAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The range that was asked for"},
    304: {"description": "It has not changed"},
    416: {"description": "There is no such range"},
}


class FileOut(BaseModel):
    """`mime_type`: by what is in it. `url`: opens it without a token, for an hour or as long as is set."""

    id: str
    filename: str
    size: int
    mime_type: str
    url: str
    created_at: datetime


class FileListOut(BaseModel):
    files: list[FileOut]
    total: int
    limit: int
    offset: int


class FileDeletedOut(BaseModel):
    message: str = "File deleted successfully"


@router.post("/api/files/upload", status_code=201, response_model=FileOut, openapi_extra=UPLOAD)
async def upload_file(request: Request, caller: Caller, uploads: UploadsDep, links: LinksDep) -> FileOut:
    form = FileForm(request, "file")
    try:
        file = await uploads.upload(caller.user.id, await form.filename(), form.chunks())
    except Problem:
        await form.drain()
        raise
    return _shown(file, request, links)


@router.get("/api/files", response_model=FileListOut)
async def list_files(
    request: Request,
    caller: Caller,
    files: FilesDep,
    links: LinksDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=MAXIMUM_OFFSET)] = 0,
) -> FileListOut:
    found = await files.list_files(caller.user.id, Slice(limit, offset))
    shown = [_shown(file, request, links) for file in found.items]
    return FileListOut(files=shown, total=found.total, limit=limit, offset=offset)


@router.get("/api/files/{file_id}", response_model=FileOut)
async def get_file(file_id: Text, request: Request, caller: Caller, files: FilesDep, links: LinksDep) -> FileOut:
    return _shown(await files.get_file(caller.user.id, file_id), request, links)


@router.delete("/api/files/{file_id}", response_model=FileDeletedOut)
async def delete_file(file_id: Text, caller: Caller, files: FilesDep) -> FileDeletedOut:
    await files.delete_file(caller.user.id, file_id)
    return FileDeletedOut()


@router.head("/api/files/{file_id}/download", include_in_schema=False)
@router.get("/api/files/{file_id}/download", response_class=Response, responses=DOWNLOAD)
async def download_file(file_id: Text, request: Request, caller: Caller, files: FilesDep, blobs: BlobsDep) -> Response:
    return await _attachment(await files.get_file(caller.user.id, file_id), blobs).answer(request)


@router.head("/files/{file_id}", include_in_schema=False)
@router.get("/files/{file_id}", response_class=Response, responses=DOWNLOAD)
async def open_link(
    file_id: Text,
    request: Request,
    files: FilesDep,
    blobs: BlobsDep,
    links: LinksDep,
    expires: Annotated[str, Query(max_length=20)],
    signature: Annotated[str, Query(max_length=64)],
) -> Response:
    if not links.holds(file_id, expires, signature):
        raise NotAllowed()
    file = await files.find_file(file_id)
    if file is None:
        raise FileMissing()
    return await _attachment(file, blobs).answer(request)


def body_limits(settings: Settings) -> Mapping[tuple[str, str], BodyLimit]:
    """Uploads may be larger than other requests."""
    largest = settings.max_file_bytes
    return {("POST", "/api/files/upload"): BodyLimit(largest + AROUND, lambda: FileTooLarge(limit=largest))}


def _attachment(file: File, blobs: Blobs) -> Attachment:
    return Attachment(
        file.filename,
        file.size,
        file.mime_type,
        file.sha256,
        lambda start, length: blobs.read(file.blob, start, length),
    )


def _shown(file: File, request: Request, links: LinksDep) -> FileOut:
    base = request.app.state.public_url or str(request.base_url)
    link = links.issue(file.id, request.app.state.link_seconds)
    return FileOut(
        id=file.id,
        filename=file.filename,
        size=file.size,
        mime_type=file.mime_type,
        url=f"{base.rstrip('/')}/files/{file.id}?expires={link.expires}&signature={link.signature}",
        created_at=file.created_at,
    )
