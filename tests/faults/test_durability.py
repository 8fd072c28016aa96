"""What was acknowledged survives a power cut: it is on the disk before its answer is on the wire."""

import asyncio
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from bedplate import cli, compose
from bedplate.kernel import sqlite
from bedplate.kernel.settings import Settings
from tests.processes import Server
from tests.world import SECRET, World

PASSWORD = "SecurePass123!"
CALL = re.compile(r"^(\d+) +(.*)$")


def calls(trace: str) -> list[str]:
    """The system calls of a trace, in the order in which they ended, each in one piece."""
    begun: dict[str, str] = {}
    whole = []
    for line in trace.splitlines():
        match = CALL.match(line)
        if match is None:
            continue
        thread, call = match.groups()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
        else:
            whole.append(re.sub(r"^<\.\.\. \w+ resumed>", lambda _, t=thread: begun.pop(t, ""), call))
    return whole


def unsynced(trace: str) -> tuple[int, list[str]]:
    """How many writes were answered well, and which of them before the log of the database was on the disk."""
    answered, offenders = 0, []
    pending: dict[str, str] = {}
    synced: dict[str, bool] = {}
    for call in calls(trace):
        name, _, arguments = call.partition("(")
        descriptor = arguments.split("<")[0]
        request = re.search(r'"((?:POST|PUT|PATCH|DELETE) \S+) HTTP/1.1', call)
        if name in ("read", "recvfrom", "recvmsg") and request:
            pending[descriptor], synced[descriptor] = request[1], False
        elif name in ("fdatasync", "fsync") and "-wal>" in arguments and call.rstrip().endswith("= 0"):
            synced = dict.fromkeys(synced, True)
        elif name in ("write", "sendto", "sendmsg", "writev") and re.search(r'"HTTP/1.1 2\d\d', call):
            answered_request = pending.pop(descriptor, None)
            if answered_request:
                answered += 1
                if not synced[descriptor]:
                    offenders.append(answered_request)
    return answered, offenders


async def live(server: Server, number: int) -> int:
    """Everything that a person can write. How many answers said that it is written."""
    written = 0
    account = {"email": f"writer{number}@example.com", "password": PASSWORD}
    async with server.client() as client:
        cobalt = {"username": f"writer{number}", **account}
        steps = [
            ("POST", "/cobalt/api/auth/register", {"json": cobalt}),
            ("POST", "/cobalt/api/auth/login", {"json": {"username": cobalt["username"], "password": PASSWORD}}),
            ("POST", "/cobalt/api/auth/refresh", {}),
            ("POST", "/cobalt/api/auth/forgot-password", {"json": {"email": account["email"]}}),
            ("POST", "/cobalt/api/auth/logout", {}),
            (
                "POST",
                "/pantstack/api/v1/users",
                {"json": {**account, "email": f"other{number}@example.com", "name": "A"}},
            ),
            ("POST", "/pantstack/api/v1/auth/login", {"json": account}),
        ]
        for method, path, body in steps:
            answer = await client.request(method, path, **body)
            assert answer.is_success, answer.text
            written += 1
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        assert (await client.get("/cobalt/health")).status_code == 200  # an answer that is no write, in between
        assert (await client.post("/pantstack/api/v1/auth/logout")).is_success
    return written + 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.timeout(120)
async def test_every_write_is_on_the_disk_before_its_answer_is_on_the_wire(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tracer = ("strace", "-f", "-y", "-s", "64", "-o", str(trace), "-e", "trace=desc,network")
    with Server(tmp_path, "up", before=tracer, BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
        written = sum(await asyncio.gather(*(live(server, number) for number in range(6))))
        os.killpg(server.pid, signal.SIGTERM)
        await asyncio.to_thread(server.wait)
    answered, offenders = unsynced(trace.read_text(errors="replace"))
    assert (answered, offenders) == (written, [])


def test_a_write_that_is_answered_too_early_would_be_noticed() -> None:
    early = """7 read(15<socket:[1]>, "POST /a HTTP/1.1\\r\\n", 262144) = 90
7 write(15<socket:[1]>, "HTTP/1.1 201 Created\\r\\n", 60) = 60
7 fdatasync(9</d/bedplate.db-wal>) = 0"""
    lines = early.splitlines()
    assert unsynced(early) == (1, ["POST /a"])
    assert unsynced("\n".join((lines[0], lines[2], lines[1]))) == (1, [])
    torn = (
        '7 fdatasync(9</d/bedplate.db-wal> <unfinished ...>\n8 read(3</x>, "", 1) = 0\n7 <... fdatasync resumed>) = 0'
    )
    assert unsynced("\n".join((lines[0], torn, lines[1]))) == (1, [])


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_sqlite_writes_ahead_and_waits_for_the_disk(world: World) -> None:
    assert world.runtime.database is not None
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database = world.runtime.database
    assert {name: await database.scalar(text(f"PRAGMA {name}")) for name in wanted} == wanted
    async with database.transaction() as tx:
        assert {name: await tx.scalar(text(f"PRAGMA {name}")) for name in wanted} == wanted


@pytest.mark.parametrize("world", ["postgres+redis"], indirect=True)
async def test_postgresql_waits_for_the_disk(world: World) -> None:
    assert world.runtime.database is not None
    async with world.runtime.database.transaction() as tx:
        assert await tx.scalar(text("SHOW synchronous_commit")) in ("on", "remote_write", "remote_apply")


def test_this_sqlite_is_said_to_be_safe_only_from_the_version_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {(3, 40, 1): False, (3, 51, 2): False, (3, 51, 3): True, (3, 53, 0): True}
    for version, safe in versions.items():
        monkeypatch.setattr(sqlite.driver, "sqlite_version_info", version)
        assert sqlite.safe_for_several_processes() is safe, version


def test_several_workers_on_an_unsafe_sqlite_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compose.databases, "safe_for_several_processes", lambda: False)
    monkeypatch.setenv("BEDPLATE_RATE_LIMIT_ENABLED", "false")
    monkeypatch.setenv("BEDPLATE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["bedplate", "up", "--workers", "2", "--port", "0"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(said) == 1, said
    assert "PostgreSQL" in said[0]
    assert not (tmp_path / "data").exists()


def test_several_workers_on_postgresql_are_not_the_business_of_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose.databases, "safe_for_several_processes", lambda: False)
    url = "postgresql://somebody@127.0.0.1/somewhere"
    compose.may_have_several_workers(
        Settings(_env_file=None, secret=SECRET, database_url=url, rate_limit_enabled=False), None
    )
