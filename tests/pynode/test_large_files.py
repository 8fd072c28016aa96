"""Large files against a real process: memory stays where it is, and what is killed leaves nothing alone."""

import contextlib
import hashlib
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import create_engine, text

from tests.fakes.s3_server import S3Server
from tests.processes import Server

MIB = 2**20
SIZE = 200 * MIB
PIECE = bytes(range(256)) * 256  # 64 KiB
BOUNDARY = "a-boundary"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
EXTRA = 32 * MIB
LIMITS = {"BEDPLATE_MAX_FILE_BYTES": str(256 * MIB), "BEDPLATE_RATE_LIMIT_ENABLED": "false"}


def signed_in(server: Server) -> dict[str, str]:
    account = {"email": "large@example.com", "password": "SecurePass123!", "name": "Large"}
    answer = httpx2.post(f"{server.url}/api/auth/register", json=account, timeout=10)
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def form(size: int) -> Iterator[bytes]:
    yield HEAD
    for _ in range(size // len(PIECE)):
        yield PIECE
    yield TAIL


def upload(server: Server, headers: dict[str, str], size: int, length_is_told: bool = False) -> tuple[int, bytes]:
    """Status and body; with the whole of it sent, or with what was answered before."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    told = {"Content-Length": str(len(HEAD) + size + len(TAIL))} if length_is_told else {}
    sent = {**headers, **FORM, **told}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered before all was sent
        connection.request("POST", "/api/files/upload", form(size), sent, encode_chunked=not length_is_told)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def peak(server: Server) -> int:
    """The most memory that the process has ever had, in bytes."""
    line = next(line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


def warmed_up(server: Server, headers: dict[str, str]) -> int:
    """Memory after each operation was done once with little."""
    status, body = upload(server, headers, MIB)
    assert status == 201, body
    file = httpx2.Response(200, content=body).json()
    httpx2.get(f"{server.url}/api/files/{file['id']}/download", headers=headers, timeout=10)
    return psutil.Process(server.pid).memory_info().rss


def digest_of_download(url: str, headers: dict[str, str]) -> tuple[int, str]:
    size, sha256 = 0, hashlib.sha256()
    with httpx2.stream("GET", url, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        for chunk in answer.iter_bytes():
            size += len(chunk)
            sha256.update(chunk)
    return size, sha256.hexdigest()


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "folder":
        return {}
    server: S3Server = request.getfixturevalue("s3")
    return {"STORAGE_URL": server.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_200_mebibytes_go_in_and_out_in_a_bounded_memory(tmp_path: Path, storage: dict[str, str]) -> None:
    with Server(tmp_path, "serve", "pynode", **LIMITS, **storage) as server:
        headers = signed_in(server)
        before = warmed_up(server, headers)
        began = time.monotonic()
        status, body = upload(server, headers, SIZE)
        sent = time.monotonic() - began
        assert status == 201, body
        file: dict[str, Any] = httpx2.Response(200, content=body).json()
        assert file["size"] == SIZE
        began = time.monotonic()
        size, digest = digest_of_download(f"{server.url}/api/files/{file['id']}/download", headers)
        received = time.monotonic() - began
        expected = hashlib.sha256()
        for _ in range(SIZE // len(PIECE)):
            expected.update(PIECE)
        assert (size, digest) == (SIZE, expected.hexdigest())
        extra = peak(server) - before
        print(f"\n200 MiB: up {sent:.1f} s, down {received:.1f} s, {extra / MIB:.1f} MiB more memory at most")
        assert extra < EXTRA


@pytest.mark.faults
@pytest.mark.timeout(240)
@pytest.mark.parametrize("told", [False, True], ids=["chunked", "length-told"])
def test_a_gibibyte_is_stopped_in_a_bounded_memory(tmp_path: Path, told: bool) -> None:
    with Server(tmp_path, "serve", "pynode", **LIMITS) as server:
        headers = signed_in(server)
        before = warmed_up(server, headers)
        status, body = upload(server, headers, 1024 * MIB, length_is_told=told)
        assert (status, httpx2.Response(413, content=body).json()["code"]) == (413, "FILE_TOO_LARGE")
        assert peak(server) - before < EXTRA
        kept = [path for path in (server.data / "files").rglob("*") if path.is_file()]
        assert [path.stat().st_size for path in kept] == [MIB]
        assert httpx2.get(f"{server.url}/health", timeout=5).status_code == 200


@pytest.mark.parametrize(
    "point", ["files.upload.after_begin", "files.upload.after_write", "files.finish.before_commit"]
)
def test_a_process_that_dies_in_an_upload_leaves_nothing_that_is_not_swept(tmp_path: Path, point: str) -> None:
    with Server(tmp_path, "serve", "pynode", **LIMITS, BEDPLATE_TEST_FAILPOINT=f"{point}:exit") as server:
        headers = signed_in(server)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            upload(server, headers, MIB)
        assert server.wait() == 137
    engine = create_engine(f"sqlite:///{tmp_path / 'data' / 'bedplate.db'}")
    with engine.begin() as connection:
        assert connection.execute(text("SELECT status FROM files_files")).scalars().all() == ["uploading"]
        # As if it were two hours ago.
        connection.execute(text("UPDATE files_files SET created_at = created_at - 7200000000"))
    with Server(tmp_path, "serve", "pynode", **LIMITS) as server:
        wait_until(lambda: leftovers(engine, server.data / "files") == ([], [], 0), 20)
        assert httpx2.get(f"{server.url}/api/files", headers=headers, timeout=5).json()["total"] == 0
        assert upload(server, headers, MIB)[0] == 201
    engine.dispose()


@pytest.mark.parametrize(
    "point",
    [
        "files.delete.before_commit",
        "files.delete.after_commit",
        # What this process had in its hands waits for its lease.
        pytest.param("files.remove.before_bytes", marks=pytest.mark.faults),
        pytest.param("files.remove.after_bytes", marks=pytest.mark.faults),
        pytest.param("files.forgetting.before_commit", marks=pytest.mark.faults),
    ],
)
def test_a_process_that_dies_in_a_deletion_deletes_all_or_nothing(tmp_path: Path, point: str) -> None:
    with Server(tmp_path, "serve", "pynode", **LIMITS, BEDPLATE_TEST_FAILPOINT=f"{point}:exit") as server:
        headers = signed_in(server)
        status, body = upload(server, headers, MIB)
        assert status == 201
        path = f"/api/files/{httpx2.Response(200, content=body).json()['id']}"
        engine = create_engine(f"sqlite:///{tmp_path / 'data' / 'bedplate.db'}")
        # What was said of the upload is heard: in the hands of a killed process it would wait for its lease.
        wait_until(lambda: not waiting(engine), 10)
        with contextlib.suppress(httpx2.TransportError):
            httpx2.delete(f"{server.url}{path}", headers=headers, timeout=10)
        assert server.wait() == 137
    with Server(tmp_path, "serve", "pynode", **LIMITS) as server:
        status = httpx2.get(f"{server.url}{path}/download", headers=headers, timeout=5).status_code
        assert status == (200 if point.endswith("delete.before_commit") else 404)
        httpx2.delete(f"{server.url}{path}", headers=headers, timeout=10)
        wait_until(lambda: leftovers(engine, server.data / "files") == ([], [], 0), 40)
    engine.dispose()


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.05)


def waiting(engine: Any) -> int:
    """Events that are still to be delivered."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM kernel_outbox")).scalar_one())


def leftovers(engine: Any, folder: Path) -> tuple[list[str], list[str], int]:
    """Rows, bytes under keys, and what is counted. Half-written parts have an hour of their own."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id FROM files_files")).scalars().all()
        used = connection.execute(text("SELECT coalesce(sum(used + uploads), 0) FROM files_storage")).scalar_one()
    kept = [path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != ".parts"]
    return list(rows), kept, int(used)
