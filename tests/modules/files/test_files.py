"""Files, through their facade and as streams, in each deployment."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import select

from bedplate import compose
from bedplate.kernel.blobs import PARTS
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.paging import Slice
from bedplate.models import FileRow
from bedplate.modules.files import uploads as uploading
from bedplate.modules.files.files import UPLOADS_LIMIT
from bedplate.modules.files.public import (
    FileMissing,
    FileTooLarge,
    StorageQuotaExceeded,
    TooManyUploads,
    Uploads,
    UploadTooSlow,
)
from bedplate.modules.files.uploads import StreamUploads
from bedplate.modules.identity.public import Registration, Users
from tests import factories
from tests.factories import PASSWORD
from tests.modules.files.cabinet import EVERYTHING, Cabinet, chunks, owner
from tests.modules.orders.shop import outcomes
from tests.security.crowd import at_once, on_both_engines

UNKNOWN = [f"file-{new_id()}", new_id(), "file-", "file-x", "", "../x", "file-\0", "\ud800"]


async def test_a_file_is_what_was_uploaded(cabinet: Cabinet) -> None:
    me, content = owner(), b"# Title\n\n" + b"text " * 100_000
    before = cabinet.clock.now()
    file = await cabinet.uploads.upload(me, "../notes/Read me.md", chunks(content[:7], content[7:]))
    assert file.id.startswith("file-")
    assert is_id(file.id.removeprefix("file-"))
    assert (file.owner_id, file.filename, file.size) == (me, "Read me.md", len(content))
    assert (file.mime_type, file.sha256) == ("text/markdown", hashlib.sha256(content).hexdigest())
    assert before <= file.created_at <= cabinet.clock.now()
    assert file.blob == f"users/{me}/uploads/{file.id.removeprefix('file-')}"
    assert await cabinet.content(file) == content
    assert await cabinet.files.get_file(me, file.id) == await cabinet.files.find_file(file.id) == file
    assert await cabinet.used(me) == (len(content), 0)


async def test_an_empty_file_is_a_file(cabinet: Cabinet) -> None:
    me = owner()
    file = await cabinet.store(me, b"")
    assert (file.size, file.sha256) == (0, hashlib.sha256().hexdigest())
    assert await cabinet.content(file) == b""
    await cabinet.assert_nothing_is_alone()


async def test_files_are_listed_newest_first_with_how_many_there_are(cabinet: Cabinet) -> None:
    me = owner()
    files = [await cabinet.store(me, str(number).encode()) for number in range(5)]
    await cabinet.store(owner(), b"another's")
    page = await cabinet.files.list_files(me, Slice(2, 1))
    assert ([file.id for file in page.items], page.total) == ([files[3].id, files[2].id], 5)
    assert (await cabinet.files.list_files(me, EVERYTHING)).items == files[::-1]
    assert (await cabinet.files.list_files(me, Slice(50, 50))).total == 5
    assert (await cabinet.files.list_files(owner(), EVERYTHING)).total == 0
    assert (await cabinet.files.list_files("no id", EVERYTHING)).total == 0


async def test_a_user_sees_only_his_own_files(cabinet: Cabinet) -> None:
    mine = await cabinet.store(owner(), b"secret")
    for stranger in (owner(), "no id", ""):
        with pytest.raises(FileMissing):
            await cabinet.files.get_file(stranger, mine.id)
        with pytest.raises(FileMissing):
            await cabinet.files.delete_file(stranger, mine.id)
    assert await cabinet.is_whole(mine)


async def test_what_cannot_be_an_id_is_missing(cabinet: Cabinet) -> None:
    for unknown in UNKNOWN[:-1] if cabinet.world.front is not cabinet.world.runtime else UNKNOWN:
        assert await cabinet.files.find_file(unknown) is None
        for act in (cabinet.files.get_file(owner(), unknown), cabinet.files.delete_file(owner(), unknown)):
            with pytest.raises(FileMissing):
                await act


async def test_a_deleted_file_is_gone_at_once_and_its_bytes_follow(cabinet: Cabinet) -> None:
    me = owner()
    file, kept = await cabinet.store(me, b"x" * 1000), await cabinet.store(me, b"y")
    await cabinet.files.delete_file(me, file.id)
    assert await cabinet.files.find_file(file.id) is None
    assert (await cabinet.files.list_files(me, EVERYTHING)).items == [kept]
    assert await cabinet.used(me) == (1, 0)
    await cabinet.world.deliver()
    assert await cabinet.blobs.size(file.blob) is None
    with pytest.raises(FileMissing):
        await cabinet.files.delete_file(me, file.id)
    await cabinet.assert_nothing_is_alone()


async def test_what_is_not_finished_is_nobodys_file(cabinet: Cabinet) -> None:
    me = owner()
    upload = await cabinet.files.begin_upload(me, "a.txt", 10)
    assert await cabinet.used(me) == (10, 1)
    assert (await cabinet.files.list_files(me, EVERYTHING)).total == 0
    assert await cabinet.files.find_file(upload.file_id) is None
    for act in (cabinet.files.get_file(me, upload.file_id), cabinet.files.delete_file(me, upload.file_id)):
        with pytest.raises(FileMissing):
            await act
    await cabinet.files.abandon_upload(upload.file_id)
    await cabinet.files.abandon_upload(upload.file_id)
    with pytest.raises(FileMissing):
        await cabinet.files.finish_upload(upload.file_id, 1, "0" * 64, "text/plain")
    assert await cabinet.used(me) == (0, 0)


async def test_an_upload_is_finished_once(cabinet: Cabinet) -> None:
    me = owner()
    upload = await cabinet.files.begin_upload(me, "a.txt")
    finishes = [lambda: cabinet.files.finish_upload(upload.file_id, 7, "0" * 64, "text/plain")] * 8
    finished, refusals = await outcomes(finishes)
    assert len(finished) == 1
    assert {type(refusal) for refusal in refusals} == {FileMissing}
    assert await cabinet.used(me) == (7, 0)
    await cabinet.files.abandon_upload(upload.file_id)
    assert await cabinet.files.find_file(upload.file_id) == finished[0]


# Limits


@on_both_engines
async def test_a_file_over_the_limit_is_refused_and_nothing_is_left(cabinet: Cabinet) -> None:
    me, files = owner(), cabinet.limited(largest=1000)
    uploads = StreamUploads(files, cabinet.blobs)
    assert (await uploads.upload(me, "a", chunks(bytes(1000)))).size == 1000
    with pytest.raises(FileTooLarge, match="larger than 1000 bytes"):
        await uploads.upload(me, "a", chunks(bytes(1000), b"x"))
    with pytest.raises(FileTooLarge):
        await files.begin_upload(me, "a", 1001)
    upload = await files.begin_upload(me, "a")
    with pytest.raises(FileTooLarge):
        await files.finish_upload(upload.file_id, 1001, "0" * 64, "")
    await cabinet.world.deliver()
    await cabinet.assert_nothing_is_alone()
    assert await cabinet.used(me) == (1000, 0)


@on_both_engines
async def test_a_file_over_the_quota_is_refused_and_nothing_is_left(cabinet: Cabinet) -> None:
    me, files = owner(), cabinet.limited(quota=1000)
    uploads = StreamUploads(files, cabinet.blobs)
    first = await uploads.upload(me, "a", chunks(bytes(600)))
    with pytest.raises(StorageQuotaExceeded, match="1000 bytes"):
        await uploads.upload(me, "a", chunks(bytes(401)))
    with pytest.raises(StorageQuotaExceeded):
        await files.begin_upload(me, "a", 401)
    await uploads.upload(me, "a", chunks(bytes(400)))
    with pytest.raises(StorageQuotaExceeded):
        await files.begin_upload(me, "a")
    assert (await uploads.upload(owner(), "a", chunks(bytes(1000)))).size == 1000, "each has his own"
    await files.delete_file(me, first.id)
    assert (await uploads.upload(me, "a", chunks(bytes(600)))).size == 600
    await cabinet.world.deliver()
    await cabinet.assert_nothing_is_alone()


@on_both_engines
@pytest.mark.parametrize("known", [True, False], ids=["size-known", "size-unknown"])
async def test_the_quota_is_exact_however_many_upload_at_once(cabinet: Cabinet, known: bool) -> None:
    me, number, fitting = owner(), 20, 7
    content = b"x" * 1000
    uploads = StreamUploads(cabinet.limited(quota=fitting * len(content) + 999), cabinet.blobs)
    everybody_writes = asyncio.Barrier(number)

    async def slowly() -> AsyncIterator[bytes]:
        yield content[:500]
        if not known:  # all of them have begun, with nothing reserved
            await everybody_writes.wait()
        yield content[500:]

    size = len(content) if known else None
    stored, refusals = await outcomes([lambda: uploads.upload(me, "a", slowly(), size)] * number)
    assert len(stored) == fitting
    assert {type(refusal) for refusal in refusals} == {StorageQuotaExceeded}
    assert await cabinet.used(me) == (fitting * len(content), 0)
    await cabinet.world.deliver()
    await cabinet.assert_nothing_is_alone()


@on_both_engines
async def test_uploads_at_the_same_time_are_bounded_for_each_user(cabinet: Cabinet) -> None:
    me = owner()
    begun, refusals = await outcomes([lambda: cabinet.files.begin_upload(me, "a")] * (UPLOADS_LIMIT + 8))
    assert len(begun) == UPLOADS_LIMIT
    assert {type(refusal) for refusal in refusals} == {TooManyUploads}
    await cabinet.files.begin_upload(owner(), "a")
    await cabinet.files.abandon_upload(begun[0].file_id)
    await cabinet.files.begin_upload(me, "a")


@on_both_engines
async def test_of_many_that_delete_a_file_one_does(cabinet: Cabinet) -> None:
    me = owner()
    file = await cabinet.store(me, b"x" * 100)

    async def delete(_: int) -> bool:
        try:
            await cabinet.files.delete_file(me, file.id)
        except FileMissing:
            return False
        return True

    assert sum(await at_once(delete, 20)) == 1
    assert await cabinet.used(me) == (0, 0)
    await cabinet.world.deliver()
    await cabinet.assert_nothing_is_alone()


@on_both_engines
async def test_what_finishes_deletes_and_is_swept_at_once_is_counted_right(cabinet: Cabinet) -> None:
    me = owner()
    files = [await cabinet.store(me, bytes(10)) for _ in range(10)]
    stale = [await cabinet.files.begin_upload(me, "a", 10) for _ in range(10)]
    cabinet.clock.advance(3601)
    acts = [
        *(lambda file=file: cabinet.files.delete_file(me, file.id) for file in files),
        *(lambda: cabinet.store(me, bytes(5)) for _ in range(10)),
        *(
            lambda upload=upload: cabinet.files.finish_upload(upload.file_id, 7, "0" * 64, "a/b")  # type: ignore[misc]
            for upload in stale
        ),
        *([cabinet.service.sweep] * 3),
    ]
    _, refusals = await outcomes(acts)
    # Unavailable: the clock has leapt, and what is being written looks an hour old.
    assert {type(refusal) for refusal in refusals} <= {FileMissing, Unavailable}
    assert await cabinet.used(me) == (await cabinet.stored(me), 0)


# What goes wrong


async def test_what_the_client_breaks_off_leaves_nothing(cabinet: Cabinet) -> None:
    me = owner()

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(300_000)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await cabinet.uploads.upload(me, "a", broken())
    await cabinet.world.deliver()
    assert (await cabinet.rows(), await cabinet.used(me)) == (0, (0, 0))
    await cabinet.assert_nothing_is_alone()


async def test_an_upload_that_is_cancelled_leaves_nothing(cabinet: Cabinet) -> None:
    me, begun = owner(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(300_000)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(cabinet.uploads.upload(me, "a", endless()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await cabinet.world.deliver()
    assert (await cabinet.rows(), await cabinet.used(me)) == (0, (0, 0))
    await cabinet.assert_nothing_is_alone()


@on_both_engines
async def test_an_upload_that_takes_too_long_is_given_up(cabinet: Cabinet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "UPLOAD_SECONDS", 0.05)

    async def endless() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(UploadTooSlow):
        await cabinet.uploads.upload(owner(), "a", endless())
    await cabinet.world.deliver()
    await cabinet.assert_nothing_is_alone()


@on_both_engines
async def test_what_nobody_finishes_is_swept_after_an_hour(cabinet: Cabinet) -> None:
    me = owner()
    old = await cabinet.files.begin_upload(me, "a", 10)
    await cabinet.blobs.write(old.blob, chunks(bytes(10)), 10)
    kept = await cabinet.store(me, b"stored")
    cabinet.clock.advance(1800)
    new = await cabinet.files.begin_upload(me, "a", 10)
    cabinet.clock.advance(1801)
    await cabinet.service.sweep()
    await cabinet.world.deliver()
    assert await cabinet.used(me) == (16, 1)
    assert await cabinet.blobs.size(old.blob) is None
    assert await cabinet.is_whole(kept)
    with pytest.raises(FileMissing):
        await cabinet.files.finish_upload(old.file_id, 10, "0" * 64, "a/b")
    await cabinet.files.finish_upload(new.file_id, 10, "0" * 64, "a/b")


@on_both_engines
async def test_an_upload_that_was_swept_while_it_came_in_leaves_no_bytes(cabinet: Cabinet) -> None:
    me = owner()

    async def very_slowly() -> AsyncIterator[bytes]:
        yield b"x"
        await cabinet.service.abandon_upload(await cabinet.db.scalar(select(FileRow.id)))  # as the sweep does
        await cabinet.world.deliver()
        yield b"y"

    with pytest.raises(FileMissing):
        await cabinet.uploads.upload(me, "a", very_slowly())
    await cabinet.world.deliver()
    assert await cabinet.rows() == 0
    await cabinet.assert_nothing_is_alone()


@on_both_engines
async def test_parts_of_killed_processes_are_swept_too(cabinet: Cabinet) -> None:
    part = cabinet.world.settings.data / "files" / PARTS / "left-behind"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    await cabinet.service.sweep()
    assert cabinet.bytes_kept() == [f"{PARTS}/left-behind"]
    cabinet.clock.advance(3601)
    await cabinet.service.sweep()
    assert cabinet.bytes_kept() == []


@on_both_engines
async def test_files_go_with_their_owner(cabinet: Cabinet) -> None:
    users = cabinet.world.runtime.get(Users)
    user = await users.register(Registration(email=factories.email(), password=PASSWORD))
    for number in range(3):
        await cabinet.store(user.id, bytes(number))
    other = await cabinet.store(owner(), b"another's")
    coming_in = await cabinet.files.begin_upload(user.id, "a", 5)
    await cabinet.blobs.write(coming_in.blob, chunks(bytes(5)), 5)
    await users.delete_user(user.id, user.id)
    await cabinet.world.deliver()
    assert (await cabinet.files.list_files(user.id, EVERYTHING)).total == 0
    with pytest.raises(FileMissing):
        await cabinet.files.finish_upload(coming_in.file_id, 5, "0" * 64, "a/b")
    assert await cabinet.blobs.size(coming_in.blob) == 5, "somebody may still be writing"
    cabinet.clock.advance(3601)
    await cabinet.service.sweep()
    await cabinet.world.deliver()
    assert cabinet.bytes_kept() == [other.blob]
    assert await cabinet.used(user.id) == (0, 0)


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_a_storage_that_takes_nothing_is_unavailable_and_counts_nothing(cabinet: Cabinet) -> None:
    me = owner()
    folder = cabinet.world.settings.data / "files"
    folder.write_text("not a folder")
    with pytest.raises(Unavailable):
        await cabinet.store(me, b"x")
    assert await cabinet.used(me) == (0, 0)
    with pytest.raises(Unavailable):
        await cabinet.blobs.ping()
    folder.unlink()
    await cabinet.store(me, b"x")


async def test_times_are_kept_in_utc(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), b"x")
    created = (await cabinet.files.get_file(file.owner_id, file.id)).created_at
    assert created.utcoffset() == timedelta(0)
    assert await cabinet.db.scalar(select(FileRow.created_at)) == created


def test_uploads_is_no_facade_that_is_served_elsewhere() -> None:
    assert Uploads not in {facade for facades in compose.FACADES.values() for facade in facades}
