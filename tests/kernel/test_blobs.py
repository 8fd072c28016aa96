"""Blobs, in a folder and on a server that speaks the S3 protocol."""

import asyncio
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bedplate.kernel.blobs import PARTS, PIECE, STRAY_SECONDS, BlobMissing, Blobs, BlobTooLarge, FolderBlobs, safe_key
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.s3 import Bucket, S3Blobs
from bedplate.kernel.settings import OperatorError
from tests.factories import TurnableClock
from tests.fakes.s3_server import BUCKET, S3Server

KEY = "users/0195/uploads/0196"
LIMIT = 2**30
MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "files"


@pytest.fixture(params=["folder", "s3"])
async def blobs(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Blobs]:
    made: Blobs
    if request.param == "s3":
        made = S3Blobs(request.getfixturevalue("s3").url, "key", "secret")
    else:
        made = FolderBlobs(folder, TurnableClock())
    yield made
    await made.close()


@pytest.fixture
async def local(folder: Path) -> AsyncIterator[FolderBlobs]:
    made = FolderBlobs(folder, TurnableClock())
    yield made
    await made.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def failing(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise ConnectionResetError("the client went away")


async def whole(blobs: Blobs, key: str = KEY, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([piece async for piece in blobs.read(key, start, length)])


def everything_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def files_in(folder: Path) -> list[Path]:
    return [path for path in everything_in(folder) if path.is_file()]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * MIB, 5 * MIB + 1, 12 * MIB])
async def test_what_was_written_is_read(blobs: Blobs, size: int) -> None:
    content = noise(size)
    sliced = [content[at : at + 65_536] for at in range(0, size, 65_536)]
    assert await blobs.write(KEY, chunks(*sliced), LIMIT) == size
    assert await blobs.size(KEY) == size
    assert hashlib.sha256(await whole(blobs)).digest() == hashlib.sha256(content).digest()


async def test_any_range_can_be_read(blobs: Blobs) -> None:
    content = noise(3 * MIB + 7)
    await blobs.write(KEY, chunks(content), LIMIT)
    for start, length in ((0, 1), (5, 10), (PIECE - 1, 2), (2 * MIB - 3, 2 * MIB), (len(content) - 1, 1), (MIB, None)):
        end = None if length is None else start + length
        assert await whole(blobs, KEY, start, length) == content[start:end]
    assert await whole(blobs, KEY, 0, 0) == b""
    assert await whole(blobs, KEY, len(content), None) == b""
    assert await whole(blobs, KEY, len(content) - 2, 99) == content[-2:]


async def test_what_is_written_again_replaces_what_was_there(blobs: Blobs) -> None:
    await blobs.write(KEY, chunks(b"before"), LIMIT)
    await blobs.write(KEY, chunks(b"after"), LIMIT)
    assert await whole(blobs) == b"after"


async def test_what_is_not_there_is_missing(blobs: Blobs) -> None:
    assert await blobs.size(KEY) is None
    with pytest.raises(BlobMissing):
        await whole(blobs)
    await blobs.delete(KEY)
    await blobs.write(KEY, chunks(b"x"), LIMIT)
    await blobs.delete(KEY)
    await blobs.delete(KEY)
    assert await blobs.size(KEY) is None


@pytest.mark.parametrize("size", [10, 7 * MIB])
async def test_more_than_the_limit_is_refused_and_nothing_is_kept(blobs: Blobs, size: int) -> None:
    await blobs.write(KEY, chunks(bytes(size)), size)
    await blobs.delete(KEY)
    with pytest.raises(BlobTooLarge):
        await blobs.write(KEY, chunks(*[bytes(MIB)] * (size // MIB), bytes(size % MIB), b"x"), size)
    assert await blobs.size(KEY) is None


@pytest.mark.parametrize("size", [10, 12 * MIB])
async def test_what_was_cut_off_leaves_nothing(
    blobs: Blobs, request: pytest.FixtureRequest, folder: Path, size: int
) -> None:
    with pytest.raises(ConnectionResetError):
        await blobs.write(KEY, failing(noise(size)), LIMIT)
    assert await blobs.size(KEY) is None
    if isinstance(blobs, S3Blobs):
        assert request.getfixturevalue("s3").begun() == []
    else:
        assert files_in(folder) == []


async def test_a_cancelled_write_leaves_nothing(blobs: Blobs, request: pytest.FixtureRequest, folder: Path) -> None:
    handed_on = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield noise(11 * MIB)
        yield noise(6 * MIB)
        handed_on.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(blobs.write(KEY, endless(), LIMIT))
    await handed_on.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await blobs.size(KEY) is None
    if isinstance(blobs, S3Blobs):
        assert request.getfixturevalue("s3").begun() == []
    else:
        assert files_in(folder) == []


async def test_many_at_once_do_not_mix(blobs: Blobs) -> None:
    contents = [noise(100_000 + number) for number in range(20)]
    keys = [f"users/{number}/uploads/x" for number in range(20)]
    written = (
        blobs.write(key, chunks(content[:777], content[777:]), LIMIT)
        for key, content in zip(keys, contents, strict=True)
    )
    await asyncio.gather(*written)
    assert await asyncio.gather(*(whole(blobs, key) for key in keys)) == contents


async def test_of_two_that_write_the_same_key_one_is_there_whole(blobs: Blobs) -> None:
    contents = [noise(400_000), noise(500_000)]
    await asyncio.gather(*(blobs.write(KEY, chunks(content), LIMIT) for content in contents))
    assert await whole(blobs) in contents


async def test_a_storage_that_works_says_so(blobs: Blobs) -> None:
    await blobs.ping()
    await blobs.sweep()


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".parts/x", "a/.b", "a\0b", "a\nb", "a b", "ü", "x" * 513],
)
async def test_a_key_that_leads_elsewhere_is_a_defect(local: FolderBlobs, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        safe_key(key)
    for act in (local.size(key), local.delete(key), local.write(key, chunks(b"x"), LIMIT), whole(local, key)):
        with pytest.raises(ValueError, match="not a key"):
            await act


# The folder


async def test_files_are_readable_for_their_owner_only(local: FolderBlobs, folder: Path) -> None:
    await local.write(KEY, chunks(b"x"), LIMIT)
    modes = {(path.is_file(), stat.S_IMODE(path.stat().st_mode)) for path in everything_in(folder)}
    assert modes == {(True, 0o600), (False, 0o700)}


async def test_what_is_half_written_is_not_seen(local: FolderBlobs) -> None:
    seen: list[int | None] = []

    async def looking() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(PIECE)
            seen.append(await local.size(KEY))

    await local.write(KEY, looking(), LIMIT)
    assert seen == [None, None, None]
    assert await local.size(KEY) == 3 * PIECE


async def test_only_what_is_old_and_half_written_is_swept(local: FolderBlobs, folder: Path) -> None:
    await local.write(KEY, chunks(b"kept"), LIMIT)
    old, new = folder / PARTS / "old", folder / PARTS / "new"
    for part in (old, new):
        part.write_bytes(b"half")
    before = local._clock.timestamp() - STRAY_SECONDS - 1
    for path in (old, folder / KEY):
        os.utime(path, (before, before))
    await local.sweep()
    assert not old.exists()
    assert new.exists()
    assert await whole(local) == b"kept"


async def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("not a folder")
    blobs = FolderBlobs(tmp_path / "files", TurnableClock())
    for act in (blobs.ping(), blobs.write(KEY, chunks(b"x"), LIMIT), blobs.size(KEY), blobs.delete(KEY), whole(blobs)):
        with pytest.raises(Unavailable):
            await act
    await blobs.close()


SYNCS = """
import asyncio, pathlib, sys
from bedplate.kernel.blobs import FolderBlobs
from bedplate.kernel.clock import Clock

async def one():
    yield b"acknowledged"

async def main():
    blobs = FolderBlobs(pathlib.Path(sys.argv[1]), Clock())
    await blobs.write("users/a/uploads/b", one(), 100)
    print("acknowledged", flush=True)

asyncio.run(main())
"""


def test_what_is_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    line = ["strace", "-f", "-y", "-e", "trace=fsync,rename,write", "-o", str(trace)]
    subprocess.run(
        [*line, sys.executable, "-c", SYNCS, str(tmp_path / "files")], check=True, capture_output=True, timeout=60
    )
    calls = trace.read_text().splitlines()

    def first(*words: str) -> int:
        return next(at for at, call in enumerate(calls) if all(word in call for word in words))

    content = first("fsync(", "/.parts/")
    renamed = first("rename(", "/uploads/b")
    folder = first("fsync(", "/users/a/uploads>")
    answered = first("write(1", "acknowledged")
    assert first("fsync(", "/users/a>") < renamed, "the new folder is known before something lies in it"
    assert content < renamed < folder < answered


FULL = """
import asyncio, pathlib, resource, signal, sys
from bedplate.kernel.blobs import FolderBlobs
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Unavailable

# As on a full disk: no file may grow beyond a mebibyte, and the kernel says so when it is written.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

async def chunks(number):
    for _ in range(number):
        yield bytes(2**18)

async def main():
    folder = pathlib.Path(sys.argv[1])
    blobs = FolderBlobs(folder, Clock())
    await blobs.write("kept", chunks(2), 2**30)
    try:
        await blobs.write("large", chunks(9), 2**30)
    except Unavailable:
        print("unavailable")
    print(sorted(path.name for path in folder.rglob("*") if path.is_file()))
    print(sum([len(piece) async for piece in blobs.read("kept")]))
    await blobs.write("again", chunks(2), 2**30)

asyncio.run(main())
"""


def test_a_full_disk_is_unavailable_and_what_was_there_stays(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "files")], check=True, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.splitlines() == ["unavailable", "['kept']", str(2**19)]


async def test_memory_does_not_grow_with_the_size(local: FolderBlobs) -> None:
    piece = bytes(65_536)

    async def large() -> AsyncIterator[bytes]:
        for _ in range(1600):
            yield piece

    tracemalloc.start()
    try:
        await local.write(KEY, large(), LIMIT)
        async for _ in local.read(KEY):
            pass
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()


# S3


async def test_every_key_begins_with_the_prefix_of_the_url(s3: S3Server) -> None:
    blobs = S3Blobs(s3.url.replace(BUCKET, f"{BUCKET}/some/where/"), "key", "secret")
    await blobs.write(KEY, chunks(b"x"), LIMIT)
    assert s3.keys() == [f"some/where/{KEY}"]
    assert await whole(blobs) == b"x"
    await blobs.ping()


async def test_a_bucket_that_is_not_there_is_unavailable(s3: S3Server) -> None:
    blobs = S3Blobs(s3.url.replace(BUCKET, "another-bucket"), "key", "secret")
    for act in (blobs.ping(), blobs.write(KEY, chunks(b"x"), LIMIT), blobs.write(KEY, chunks(bytes(12 * MIB)), LIMIT)):
        with pytest.raises(Unavailable):
            await act


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with S3Server() as server:
        blobs = S3Blobs(server.url, "key", "secret")
        await blobs.ping()
    for act in (blobs.ping(), blobs.size(KEY), whole(blobs), blobs.write(KEY, chunks(bytes(12 * MIB)), LIMIT)):
        with pytest.raises(Unavailable):
            await act


async def test_a_server_that_hangs_can_be_given_up(s3: S3Server) -> None:
    blobs = S3Blobs(s3.url, "key", "secret")
    s3.freeze()
    try:
        for act in (blobs.ping(), blobs.write(KEY, chunks(b"x"), LIMIT)):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await act
    finally:
        s3.thaw()
    await blobs.ping()


def test_the_url_of_a_bucket_is_read_whole() -> None:
    assert Bucket.of("s3://b") == Bucket("b", "", None, "us-east-1")
    assert Bucket.of("s3://b/p/q/?endpoint=https://h:9000&region=eu-1") == Bucket("b", "p/q/", "https://h:9000", "eu-1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://",
        "s3:bucket",
        "http://b",
        "s3://key:secret@b",
        "s3://b?endpoint=h:9000",
        "s3://b?x=1",
        "s3://b?endpoint",
        "s3://[b",
    ],
)
def test_the_url_of_no_bucket_is_an_operators_mistake(url: str) -> None:
    with pytest.raises(OperatorError, match="STORAGE_URL is not a URL like s3://"):
        S3Blobs(url)
