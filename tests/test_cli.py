"""The command line: the real command, as an operator runs it."""

import codecs
import errno
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console
from sqlalchemy import insert

from bedplate import __version__, compose, migrations
from bedplate.announcement import announce
from bedplate.kernel import sqlite
from bedplate.kernel.clock import Clock
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import DeadLetterRow
from bedplate.kernel.settings import Settings
from tests.commands import Commands
from tests.processes import COMMAND, Server, environment

PASSWORD = "a long enough password"
Ran = subprocess.CompletedProcess


_commands = Commands()


@pytest.fixture(scope="module", autouse=True)
def commands() -> Iterator[None]:
    with _commands:
        yield


def plain(folder: Path, *arguments: str, text: str = "", **settings: str) -> Ran[str]:
    """Run exactly this in `folder`."""
    return _commands.run(folder, arguments, text, settings)


def command(folder: Path, *arguments: str, text: str = "", **settings: str) -> Ran[str]:
    """Run a command with its data under `folder`."""
    return plain(folder, *arguments, "--data", str(folder / "data"), text=text, **settings)


def bedplate(folder: Path, *arguments: str, text: str = "", **settings: str) -> Ran[str]:
    """Run a command that is to succeed."""
    ran = command(folder, *arguments, text=text, **settings)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


def mistake(ran: Ran[str]) -> str:
    """The one line that a mistake of the operator ends with."""
    assert ran.returncode == 2, (ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr + ran.stdout
    lines = ran.stderr.splitlines()
    assert len(lines) == 1, ran.stderr
    assert lines[0].startswith("bedplate: ")
    return lines[0].removeprefix("bedplate: ")


@pytest.fixture
def unread() -> Iterator[socket.socket]:
    """A port that somebody else listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken


def test_without_a_command_it_says_what_there_is(tmp_path: Path) -> None:
    words = plain(tmp_path, "--help").stdout
    for name in ("up", "serve", "migrate", "routes", "doctor", "audit", "admin", "keys", "mail", "version"):
        assert re.search(rf"\b{name}\b", words), name
    assert "Usage" in plain(tmp_path).stdout + plain(tmp_path).stderr
    assert list(tmp_path.iterdir()) == [], "asking leaves nothing behind"


def test_every_command_explains_itself_and_takes_a_data_folder(tmp_path: Path) -> None:
    for name in ("up", "serve", "migrate", "routes", "doctor", "audit", "admin create", "keys create", "mail list"):
        ran = plain(tmp_path, *name.split(), "--help", COLUMNS="200")
        assert ran.returncode == 0, name
        assert "--data" in ran.stdout, name


def test_it_runs_as_a_command_and_as_a_module_from_any_folder(tmp_path: Path) -> None:
    for line in ([COMMAND], [sys.executable, "-m", "bedplate"]):
        ran = subprocess.run([*line, "version"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ran.stdout == f"{__version__}\n"


def test_a_mistake_is_one_line_of_the_installed_command(tmp_path: Path) -> None:
    line = [COMMAND, "serve", "cobold"]
    ran = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert mistake(ran).startswith("there is no system 'cobold'")


def test_up_serves_every_system_under_its_name_from_any_folder(tmp_path: Path) -> None:
    deep = tmp_path / "a folder so deep that no line of a terminal holds it".replace(" ", "-") / ("deeper-" * 15)
    deep.mkdir(parents=True)
    with Server(deep, "up") as server:
        words = (deep / "server-0.out").read_text()
        for name, docs in (("cobalt", "/docs"), ("pantstack", "/api/docs"), ("pynode", "/docs")):
            assert f"{server.url}/{name}" in words
            assert f"{server.url}/{name}{docs}" in words
            assert httpx2.get(f"{server.url}/{name}/health").json()["status"] == "healthy"
            assert httpx2.get(f"{server.url}/{name}{docs}").status_code == 200
        page = httpx2.get(server.url)
        assert page.headers["content-type"].startswith("text/html")
        assert 'href="/cobalt/docs"' in page.text
        assert 'href="/commerce/orders/asyncapi"' in page.text
        root = httpx2.get(f"{server.url}/commerce/orders/").json()
        assert (root["service"], root["documentation"]) == ("order-service", "/commerce/orders/docs")
        assert httpx2.get(f"{server.url}{root['events']}").status_code == 200
        for announced in ("pynode", "pynode/"):
            root = httpx2.get(f"{server.url}/{announced}").json()
            assert httpx2.get(f"{server.url}{root['docs']}").status_code == 200
        assert 'href="/pantstack/api/docs"' in page.text
        assert httpx2.get(f"{server.url}/nothing").status_code == 404
        assert f"bedplate admin create you@example.com --data {server.data}" in words
        assert (server.data / "bedplate.db").exists()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "Traceback" not in server.log


def test_the_first_start_makes_a_secret_that_only_the_owner_reads(tmp_path: Path) -> None:
    plain(tmp_path, "migrate", API_SECRET_KEY="")
    assert not (tmp_path / "bedplate-data" / "secret").exists(), "migrating needs none"
    with Server(tmp_path, "up", API_SECRET_KEY="") as server:
        secret = server.data / "secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert len(secret.read_text()) >= 32
        assert secret.read_text() not in server.log + (tmp_path / "server-0.out").read_text()


def test_serve_answers_at_exactly_the_documented_paths(tmp_path: Path) -> None:
    with Server(tmp_path, "serve", "cobalt") as server:
        assert httpx2.get(f"{server.url}/api/health").json() == {"status": "healthy"}
        assert httpx2.get(f"{server.url}/cobalt/health").status_code == 404
    with Server(tmp_path, "serve", "pantstack") as server:
        assert httpx2.get(f"{server.url}/api/v1/users").status_code == 401
    with Server(tmp_path, "serve", "pynode") as server:
        assert httpx2.get(f"{server.url}/api/users/me").status_code == 401


def test_a_start_that_is_interrupted_ends_without_a_traceback(tmp_path: Path) -> None:
    with Server(tmp_path, "up") as server:
        server.signal(signal.SIGINT)
        server.wait()
        assert "Traceback" not in server.log


def test_migrate_says_what_it_did(tmp_path: Path) -> None:
    assert bedplate(tmp_path, "migrate").stdout == f"database migrated to {migrations.HEAD}\n"
    assert bedplate(tmp_path, "migrate").stdout == f"database is at {migrations.HEAD}\n"


def test_a_database_ahead_of_the_code_is_one_line_for_every_command(tmp_path: Path) -> None:
    bedplate(tmp_path, "migrate")
    engine = sqlite.engine_for(str(tmp_path / "data" / "bedplate.db"))
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    for arguments in (("migrate",), ("up", "--port", "0"), ("mail", "list")):
        assert "at version 9999, which this Bedplate does not know" in mistake(command(tmp_path, *arguments))


def test_routes_lists_every_operation_with_its_source(tmp_path: Path) -> None:
    lines = bedplate(tmp_path, "routes").stdout.splitlines()
    listed: dict[str, set[tuple[str, str]]] = {}
    for line in lines:
        found = re.fullmatch(r"([A-Z]+) (/\S*) ([\w-]+) (\S+\.py):(\d+)", line)
        assert found, line
        listed.setdefault(found[3], set()).add((found[1], found[2]))
        assert (tmp_path / found[4]).resolve().is_file(), "the path leads there from here"
        source = (tmp_path / found[4]).resolve().read_text().splitlines()[int(found[5]) - 1]
        assert source.lstrip().startswith(("@", "async def", "def")), line
    for system in compose.blueprint(Settings(_env_file=None), Clock()):
        documented = {
            (method.upper(), path)
            for path, operations in system.app.openapi()["paths"].items()
            for method in operations
        }
        assert documented <= listed[system.name]
    assert ("WEBSOCKET", "/ws") in listed["pynode"]
    assert not (tmp_path / "data").exists(), "looking makes no database"


def test_doctor_finds_nothing_wrong_with_a_fresh_installation(tmp_path: Path) -> None:
    bedplate(tmp_path, "migrate")
    findings = json.loads(bedplate(tmp_path, "doctor", "--json").stdout)
    checks = ["settings", "storage", "database", "cache", "broker", "events", "files", "mail", "payments", "chat"]
    assert [each["check"] for each in findings] == checks
    assert all(each["ok"] for each in findings)
    deep = ("--data", str(tmp_path / "not" / "yet" / "there"))
    assert plain(tmp_path, "migrate", *deep).returncode == 0, "folders are made as deep as needed"
    assert plain(tmp_path, "doctor", "--json", *deep).returncode == 0
    table = bedplate(tmp_path, "doctor").stdout
    assert table.count("ok") >= 6
    assert "wrong" not in table


def test_doctor_changes_nothing(tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for settings, databases in (
        ({}, ["database"]),
        ({"API_SECRET_KEY": ""}, ["database"]),
        ({"DATABASE_URL": other}, ["database"]),
        ({"PAYMENTS_DATABASE_URL": other}, ["database", "payments_database"]),
    ):
        found = wrong(tmp_path, **settings)
        assert list(found) == databases
        for each in found.values():
            assert "schema missing" in each["finding"]
            assert "bedplate migrate" in each["remedy"]
        assert list(tmp_path.iterdir()) == [], "looking makes nothing"
    (tmp_path / "data").mkdir()
    empty = tmp_path / "data" / "bedplate.db"
    sqlite.engine_for(str(empty)).connect().close()
    assert "schema missing" in wrong(tmp_path)["database"]["finding"]
    assert migrations.version(f"sqlite:///{empty}") is None, "it does not migrate"
    assert [each.name for each in empty.parent.iterdir()] == ["bedplate.db"]


def test_dead_letters_are_listed_and_put_back(tmp_path: Path) -> None:
    bedplate(tmp_path, "migrate")
    assert json.loads(bedplate(tmp_path, "events", "dead", "list", "--json").stdout) == []
    letter = {"id": new_id(), "type": "PasswordResetRequested", "key": "a@example.com", "error": "ConnectionError"}
    letter["consumer"] = "mail"
    moments = {"created_at": datetime.now(UTC), "died_at": datetime.now(UTC)}
    engine = sqlite.engine_for(str(tmp_path / "data" / "bedplate.db"))
    with engine.connect() as connection:
        connection.execute(insert(DeadLetterRow), {**letter, "payload": {"email": "a@example.com"}, **moments})
    engine.dispose()
    [listed] = json.loads(bedplate(tmp_path, "events", "dead", "list", "--json").stdout)
    assert {name: listed[name] for name in letter} == letter
    assert listed["died_at"].endswith("Z")
    assert "ConnectionError" in bedplate(tmp_path, "events", "dead", "list", COLUMNS="200").stdout
    [noted] = [each for each in findings(tmp_path) if each["check"] == "events"]
    assert (noted["ok"], noted["finding"]) == (True, "1 dead letter, 0 waiting"), "it is no mistake of the settings"
    assert "bedplate events dead list" in noted["remedy"]
    assert "note" in bedplate(tmp_path, "doctor").stdout
    assert bedplate(tmp_path, "events", "dead", "replay", letter["id"]).stdout == "queued\n"
    assert json.loads(bedplate(tmp_path, "events", "dead", "list", "--json").stdout) == []
    assert "0 dead letters, 1 waiting" in str(findings(tmp_path))
    for unknown in (letter["id"], "1"):
        assert mistake(command(tmp_path, "events", "dead", "replay", unknown)) == f"there is no dead letter {unknown}"


def test_whoever_follows_events_is_told_from_when_on(tmp_path: Path) -> None:
    bedplate(tmp_path, "migrate")
    line = [COMMAND, "events", "tail", "--data", str(tmp_path / "data")]
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as tail:
        assert tail.stdout is not None and tail.stderr is not None
        try:
            assert tail.stderr.readline() == b"following; Ctrl-C ends it\n"
            tail.send_signal(signal.SIGINT)
            assert (*tail.communicate(timeout=20), tail.returncode) == (b"", b"", 0)
        finally:
            tail.kill()


def findings(folder: Path) -> list[dict[str, Any]]:
    """What the doctor finds where nothing is wrong."""
    found: list[dict[str, Any]] = json.loads(bedplate(folder, "doctor", "--json").stdout)
    return found


def wrong(folder: Path, **settings: str) -> dict[str, dict[str, Any]]:
    """What the doctor finds wrong."""
    ran = command(folder, "doctor", "--json", **settings)
    assert ran.returncode == 1, (ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr
    found = {each["check"]: each for each in json.loads(ran.stdout) if not each["ok"]}
    assert all(each["finding"] and each["remedy"] for each in found.values()), "it says how to mend it"
    return found


KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hunter2"}


def test_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    assert "did you mean BEDPLATE_DATA?" in wrong(tmp_path, BEDPLATE_DATE="x")["settings"]["finding"]
    assert "DATABASE_URL" in wrong(tmp_path, DATABASE_URL="mysql://host/name")["database"]["finding"]
    assert "database" in wrong(tmp_path, DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    orders_away = wrong(tmp_path, ORDERS_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert "cannot use" in orders_away["database"]["finding"]
    assert "REDIS_URL" in str(wrong(tmp_path, REDIS_URL="http://host"))
    assert "cache" in wrong(tmp_path, REDIS_URL="redis://127.0.0.1:1/0")
    assert "BROKER_URL" in wrong(tmp_path, BROKER_URL="http://host")["broker"]["finding"]
    assert "JPY" in wrong(tmp_path, COMMERCE_CURRENCY="JPY")["payments"]["finding"]
    nowhere = {"STRIPE_SECRET_KEY": "sk_test_nobody", "STRIPE_API_BASE": "http://127.0.0.1:1"}
    assert "STRIPE_SECRET_KEY" in wrong(tmp_path, **nowhere)["payments"]["remedy"]
    assert "SMTP_URL" in str(wrong(tmp_path, SMTP_URL="localhost:25"))
    assert "mail" in wrong(tmp_path, SMTP_URL="smtp://127.0.0.1:1")
    assert "STORAGE_URL" in str(wrong(tmp_path, STORAGE_URL="http://host"))
    assert "files" in wrong(tmp_path, STORAGE_URL="s3://bucket?endpoint=http://127.0.0.1:1", **KEYS)
    assert "mail" in wrong(tmp_path, ENVIRONMENT="production"), "nobody reads a mailbox there"
    assert "openai does not answer" in wrong(tmp_path, OPENAI_BASE_URL="http://127.0.0.1:1/v1")["chat"]["finding"]
    twice = '[{"name": "ollama", "base_url": "http://127.0.0.1:1/v1", "models": {"a": "b"}}]'
    assert "chat" in wrong(tmp_path, OLLAMA_BASE_URL="http://127.0.0.1:1", BEDPLATE_CHAT_PROVIDERS=twice)
    elsewhere = {f"BEDPLATE_ELSEWHERE__{name.upper()}": "http://127.0.0.1:1" for name in compose.FACADES}
    assert "bedplate serve internal" in wrong(tmp_path, **elsewhere)["services"]["remedy"]


def test_doctor_does_not_print_passwords(tmp_path: Path) -> None:
    for settings in (
        {"DATABASE_URL": "postgresql://user:hunter2@127.0.0.1:1/nothing"},
        {"REDIS_URL": "redis://:hunter2@127.0.0.1:1/0"},
        {"STORAGE_URL": "s3://bucket?endpoint=http://127.0.0.1:1", **KEYS},
        {"STORAGE_URL": "s3://key:hunter2@bucket"},
        {"SMTP_URL": "smtp://user:hunter2@127.0.0.1:1"},
        {"OPENAI_API_KEY": "hunter2", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"},
        {"BEDPLATE_CHAT_PROVIDERS": '[{"name": "mine", "api_key": "hunter2"}]'},
    ):
        ran = command(tmp_path, "doctor", **settings)
        assert "hunter2" not in ran.stdout + ran.stderr


def test_an_administrator_is_made_from_standard_input_and_can_sign_in(tmp_path: Path) -> None:
    ran = bedplate(
        tmp_path, "admin", "create", "root@example.com", "--username", "root", "--password-stdin", text=f"{PASSWORD}\n"
    )
    assert "administrator root@example.com created" in ran.stdout
    with Server(tmp_path, "serve", "cobalt") as server:
        answer = httpx2.post(f"{server.url}/api/auth/login", json={"username": "root", "password": PASSWORD})
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert httpx2.get(f"{server.url}/api/admin/stats", headers=headers).status_code == 200


def test_an_existing_account_becomes_an_administrator_and_whoever_had_it_is_out(tmp_path: Path) -> None:
    with Server(tmp_path, "serve", "cobalt") as server:
        alice = {"username": "alice", "email": "alice@example.com", "password": PASSWORD}
        registered = httpx2.post(f"{server.url}/api/auth/register", json=alice)
        before = {"Authorization": f"Bearer {registered.json()['access_token']}"}
        ran = bedplate(tmp_path, "admin", "create", "Alice@Example.com", "--password-stdin", text="another password\n")
        assert "is an administrator now, with this password" in ran.stdout
        assert httpx2.get(f"{server.url}/api/admin/stats", headers=before).status_code == 401
        login = {"username": "alice", "password": "another password"}
        answer = httpx2.post(f"{server.url}/api/auth/login", json=login)
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        assert httpx2.get(f"{server.url}/api/admin/stats", headers=headers).status_code == 200, "in a running server"


def test_an_administrator_with_a_taken_username_or_a_bad_password_is_refused(tmp_path: Path) -> None:
    create = ("admin", "create", "--password-stdin")
    bedplate(tmp_path, *create, "root@example.com", "--username", "root", text=PASSWORD)
    for arguments, text, words in (
        (("second@example.com", "--username", "ROOT"), PASSWORD, "Username already exists"),
        (("second@example.com",), "short", "Password must be at least 8 characters"),
        (("second@example.com",), "", "Password must be at least 8 characters"),
        (("no address",), PASSWORD, "Invalid email format"),
    ):
        ran = command(tmp_path, *create, *arguments, text=text)
        assert ran.returncode != 0
        assert ran.stderr == f"bedplate: {words}\n"


BROKER = {"BROKER_URL": "redis://127.0.0.1:1/0"}


def test_with_a_broker_no_account_is_made_where_no_service_looks(tmp_path: Path) -> None:
    for arguments in (("admin", "create", "root@example.com", "--password-stdin"), ("keys", "create", "shop")):
        words = mistake(command(tmp_path, *arguments, text=PASSWORD, **BROKER))
        assert "the database of the user service, and there is none in" in words
        assert not (tmp_path / "data").exists()
    bedplate(tmp_path, "migrate")
    bedplate(tmp_path, "keys", "create", "shop", **BROKER)


def announced(folder: Path, *arguments: str, **settings: str) -> str:
    """What a server prints before it serves."""
    line = [COMMAND, *arguments, "--port", "0", "--data", str(folder / arguments[-1])]
    with subprocess.Popen(
        line,
        cwd=folder,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        words = ""
        while not (address := re.search(r"http://[\d.]+:\d+", words)):
            words += process.stdout.readline()
        httpx2.get(f"{address[0]}/health", timeout=30)  # which is answered after all has been said
        process.kill()
        return words + process.stdout.read()


def test_only_where_accounts_are_it_says_how_to_make_an_administrator(tmp_path: Path) -> None:
    called = {f"BEDPLATE_ELSEWHERE__{name}": "http://127.0.0.1:1" for name in ("IDENTITY", "PAYMENTS")}
    assert "administrator" not in announced(tmp_path, "serve", "order-service", **BROKER, **called)
    words = announced(tmp_path, "serve", "user-service", **BROKER)
    assert "administrator, with the settings of this process: " in words
    assert "administrator: " in announced(tmp_path, "serve", "cobalt")


def test_the_second_address_of_pynode_is_that_of_its_websocket(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(_env_file=None)
    served = compose.served_by("pynode", settings)
    announce(Console(width=160), "pynode", served, "http://127.0.0.1", settings, created=False)
    shown = capsys.readouterr().out
    assert "http://127.0.0.1:3000/docs" in shown
    assert "ws://127.0.0.1:3001/ws" in shown
    assert "http://127.0.0.1:3001" not in shown


def test_a_password_of_broken_text_is_no_crash(tmp_path: Path) -> None:
    ran = subprocess.run(
        [COMMAND, "admin", "create", "root@example.com", "--password-stdin", "--data", str(tmp_path / "data")],
        cwd=tmp_path,
        env=environment(),
        input=b"\xff\xfe broken \x80 password\n",
        capture_output=True,
        timeout=60,
    )
    assert b"Traceback" not in ran.stderr


class Terminal:
    """A command on a terminal of its own, so that it can ask."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._terminal, inside = pty.openpty()
        self._process = subprocess.Popen(
            [COMMAND, *arguments, "--data", str(folder / "data")],
            cwd=folder,
            env=environment(TERM="dumb"),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 30
        before = self.shown.count(words)
        while self.shown.count(words) == before:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._terminal], [], [], left)[0], f"it did not say {words!r}"
            assert self._read(), f"it ended and did not say {words!r}"

    def _read(self) -> bool:
        """Take what it said since; `False` when it ended, which a terminal reports as an input/output error."""
        try:
            said = os.read(self._terminal, 1024)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            said = b""
        self.shown += self._decoder.decode(said)
        return said != b""

    def type(self, words: str) -> None:
        os.write(self._terminal, f"{words}\n".encode())

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        while select.select([self._terminal], [], [], 30)[0] and self._read():
            pass
        code = self._process.wait(30)
        os.close(self._terminal)
        return code


def test_on_a_terminal_the_password_is_asked_twice_and_not_shown(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "admin", "create", "root@example.com")
    terminal.wait_for("Password: ")
    terminal.type(PASSWORD)
    terminal.wait_for("Password again: ")
    terminal.type("something else")
    terminal.wait_for("Password: ")
    terminal.type(PASSWORD)
    terminal.wait_for("Password again: ")
    terminal.type(PASSWORD)
    terminal.wait_for("created")
    assert terminal.end() == 0
    assert PASSWORD not in terminal.shown


def test_an_id_is_whole_on_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    made = json.loads(bedplate(tmp_path, "keys", "create", "a-name-that-takes-all-of-the-place", "--json").stdout)
    terminal = Terminal(tmp_path, "keys", "list")
    assert terminal.end() == 0
    assert made["id"] in terminal.shown
    assert "…" not in terminal.shown


def test_addresses_are_whole_on_a_terminal_of_eighty_columns(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "up", "--port", "0")
    terminal.wait_for("administrator")
    terminal.interrupt()
    assert terminal.end() in (0, 130), "whether or not it serves already"
    for name, path in (("cobalt", "cobalt"), ("notification-worker", "commerce/notifications")):
        assert re.search(rf"^{name} +http://127.0.0.1:\d+/{path}( |\r)", terminal.shown, re.MULTILINE), terminal.shown
    assert re.search(
        r"^payment-service +http:\S+/commerce/payments  documentation: /docs\r$", terminal.shown, re.MULTILINE
    )
    assert f"data         {tmp_path / 'data'}" in terminal.shown


def test_service_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    key = bedplate(tmp_path, "keys", "create", "orders").stdout.strip()
    assert re.fullmatch(r"bp_[0-9a-f]{64}", key)
    other = json.loads(bedplate(tmp_path, "keys", "create", "billing", "--json").stdout)
    assert set(other) == {"id", "name", "key"}
    listed = json.loads(bedplate(tmp_path, "keys", "list", "--json").stdout)
    assert [(each["name"], each["revoked_at"]) for each in listed] == [("billing", None), ("orders", None)]
    assert key not in str(listed)
    bedplate(tmp_path, "keys", "revoke", other["id"])
    listed = json.loads(bedplate(tmp_path, "keys", "list", "--json").stdout)
    assert listed[0]["revoked_at"].endswith("Z")
    assert "orders" in bedplate(tmp_path, "keys", "list").stdout
    again = command(tmp_path, "keys", "revoke", other["id"])
    assert (again.returncode != 0, again.stderr) == (True, "bedplate: Service key not found\n")
    with Server(tmp_path, "serve", "pantstack") as server:
        for used, status in ((key, 200), (other["key"], 401)):
            assert httpx2.get(f"{server.url}/api/v1/users", headers={"X-API-Key": used}).status_code == status


def test_mail_of_the_mailbox_is_listed_and_shown(tmp_path: Path) -> None:
    ran = command(tmp_path, "mail", "list", "--json")
    assert ran.returncode == 2
    assert ran.stderr.startswith("bedplate: there is no installation in"), "nothing is created by looking"
    with Server(tmp_path, "serve", "pantstack") as server:
        for name in ("Alice", "Bob"):
            person = {"email": f"{name}@example.com".lower(), "name": name, "password": PASSWORD}
            assert httpx2.post(f"{server.url}/api/v1/users", json=person).status_code == 201
            deadline = time.monotonic() + 15
            while person["email"] not in str(listed := mails(tmp_path)) and time.monotonic() < deadline:
                pass  # each look takes a process
    assert [each["to"] for each in listed] == ["bob@example.com", "alice@example.com"]
    assert set(listed[0]) == {"id", "to", "subject", "text", "html", "created_at"}
    assert listed[0]["created_at"].endswith("Z")
    shown = json.loads(bedplate(tmp_path, "mail", "show", listed[0]["id"], "--json").stdout)
    assert shown == listed[0]
    words = bedplate(tmp_path, "mail", "show", listed[0]["id"]).stdout
    assert words.startswith("To: bob@example.com\nSubject: Verify your email address\n")
    assert "Hello Bob," in words
    assert "bob@example.com" in bedplate(tmp_path, "mail", "list").stdout
    missing = command(tmp_path, "mail", "show", "nothing")
    assert (missing.returncode != 0, missing.stderr) == (True, "bedplate: Mail not found\n")


def mails(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(bedplate(folder, "mail", "list", "--json").stdout)
    return found


def test_with_a_broker_no_mail_here_may_mean_that_it_is_kept_elsewhere(tmp_path: Path) -> None:
    bedplate(tmp_path, "migrate")
    assert bedplate(tmp_path, "mail", "list").stderr == ""
    ran = bedplate(tmp_path, "mail", "list", "--json", **BROKER)
    assert json.loads(ran.stdout) == []
    assert "mail is kept by the notification worker" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    ran = command(tmp_path, "doctor", "user-service", "--json", **BROKER)
    [mail] = [each for each in json.loads(ran.stdout) if each["check"] == "mail"]
    assert (mail["ok"], mail["finding"]) == (True, "kept by the notification worker, in another process")


def test_what_administrators_did_is_shown(tmp_path: Path) -> None:
    bedplate(tmp_path, "admin", "create", "root@example.com", "--password-stdin", text=PASSWORD)
    with Server(tmp_path, "serve", "pantstack") as server:
        login = {"email": "root@example.com", "password": PASSWORD}
        token = httpx2.post(f"{server.url}/api/v1/auth/login", json=login).json()["access_token"]
        answer = httpx2.post(
            f"{server.url}/api/v1/admin/maintenance",
            json={"enabled": True, "message": "Back at noon"},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.status_code == 200, answer.text
    entries = json.loads(bedplate(tmp_path, "audit", "--json").stdout)
    start = next(each for each in entries if each["action"] == "maintenance.start")
    assert start["details"] == {"message": "Back at noon"}
    assert start["at"].endswith("Z")
    assert "maintenance.start" in bedplate(tmp_path, "audit").stdout


def test_a_taken_port_is_one_line(tmp_path: Path, unread: socket.socket) -> None:
    port = str(unread.getsockname()[1])
    for arguments in (("up",), ("serve", "cobalt")):
        words = mistake(command(tmp_path, *arguments, "--port", port))
        assert words == f"port {port} on 127.0.0.1 is taken; choose another with --port"


def test_a_taken_port_of_the_websocket_names_its_setting(tmp_path: Path, unread: socket.socket) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 3000))
        except OSError:
            pytest.skip("port 3000, which is bound first, is taken on this machine")
    port = str(unread.getsockname()[1])
    words = mistake(command(tmp_path, "serve", "pynode", WS_PORT=port))
    assert words == f"port {port} on 127.0.0.1 is taken; choose another with WS_PORT"


def test_a_taken_port_of_commerce_names_what_chooses_another(tmp_path: Path) -> None:
    assert compose.another_port("commerce", "notification-worker") == "choose another with METRICS_PORT"
    assert "`bedplate serve user-service`" in compose.another_port("commerce", "user-service")
    assert "one of them" in mistake(command(tmp_path, "serve", "commerce", "--port", "9000")), "--port is no way out"
    words = mistake(command(tmp_path, "serve", "commerce", METRICS_PORT="3001"))
    assert words == "METRICS_PORT=3001 is the port of the order-service"


def test_each_mistake_is_one_clear_line(tmp_path: Path) -> None:
    up = ("up", "--port", "0")
    for arguments, settings, words in (
        (("serve", "cobold"), {}, "there is no system 'cobold'; there are cobalt, pantstack"),
        ((*up, "--host", "192.0.2.1"), {}, "cannot listen on 192.0.2.1"),
        (up, {"BEDPLATE_RATE_LIMITS_ENABLED": "x"}, "did you mean BEDPLATE_RATE_LIMIT_ENABLED?"),
        (up, {"COBALT_LOGIN_LIMIT": "often"}, "COBALT_LOGIN_LIMIT: write a limit as"),
        (up, {"DATABASE_URL": "nonsense"}, "DATABASE_URL is not a URL like"),
        (up, {"DATABASE_URL": "sqlite://"}, "DATABASE_URL is not a URL like"),
        (up, {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"}, "cannot use the database of DATABASE_URL"),
        (up, {"BROKER_URL": "http://host"}, "BROKER_URL is not a URL"),
        (up, {"COMMERCE_CURRENCY": "JPY"}, "JPY is not a currency"),
        (up, {"DATABASE_URL": "postgresql://127.0.0.1:1/x?sslmode=maybe"}, "DATABASE_URL cannot be used: `sslmode`"),
        (up, {"REDIS_URL": "http://host"}, "REDIS_URL is not a URL like"),
        (up, {"REDIS_URL": "redis://host:port"}, "REDIS_URL is not a URL like"),
        (up, {"OLLAMA_BASE_URL": "ollama:11434"}, "OLLAMA_BASE_URL: it must begin with http:// or https://"),
        (up, {"BEDPLATE_CHAT_PROVIDERS": '[{"name": "a"}]'}, "BEDPLATE_CHAT_PROVIDERS[0].base_url: Field required"),
        (up, {"WS_CORS_ORIGIN": "*"}, "WS_CORS_ORIGIN must name each origin"),
        (up, {"STORAGE_URL": "s3://"}, "STORAGE_URL is not a URL like s3://bucket"),
        (up, {"SMTP_URL": "smtp://host:port"}, "SMTP_URL is not a URL like"),
        (up, {"ENVIRONMENT": "production", "API_SECRET_KEY": "short"}, "ENVIRONMENT=production needs API_SECRET_KEY"),
        (up, {"BEDPLATE_ELSEWHERE__IDENTITIES": "http://x"}, "BEDPLATE_ELSEWHERE__IDENTITIES: there is no such module"),
        (up, {"BEDPLATE_ELSEWHERE__IDENTITY": "http://x"}, "set all of BEDPLATE_ELSEWHERE__IDENTITY"),
        ((*up, "--workers", "2"), {}, "several workers need REDIS_URL"),
    ):
        assert words in mistake(command(tmp_path, *arguments, **settings))


@pytest.mark.parametrize("folder", ["/proc/bedplate", "/dev/null/bedplate"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, folder: str) -> None:
    for arguments in (("up", "--port", "0"), ("migrate",), ("mail", "list")):
        assert folder in mistake(plain(tmp_path, *arguments, "--data", folder))


def test_a_folder_of_somebody_else_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    nobody = 65534 if os.getuid() == 0 else None
    for parent in (tmp_path, folder):  # the first may not even be looked into
        data = parent / "data"
        for arguments in (("up", "--port", "0"), ("migrate",), ("mail", "list")):
            ran = _commands.run(Path("/"), (*arguments, "--data", str(data)), "", {}, nobody)
            if nobody is not None or parent == folder:
                assert str(data) in mistake(ran)
    finding = _commands.run(Path("/"), ("doctor", "--json", "--data", str(folder / "data")), "", {}, nobody)
    assert finding.returncode == 1
    assert "is not writable" in finding.stdout


def test_the_log_is_one_line_of_json_for_each_request(tmp_path: Path) -> None:
    with Server(tmp_path, "serve", "cobalt") as server:
        answer = httpx2.get(f"{server.url}/api/auth/me?password=hunter2", headers={"X-Request-ID": "req-42"})
        assert answer.headers["x-request-id"] == "req-42"
        server.signal(signal.SIGTERM)
        server.wait()
        lines = [json.loads(line) for line in server.log.splitlines()]
    [line] = [line for line in lines if line.get("request_id") == "req-42"]
    assert line["message"] == "request"
    assert (line["method"], line["path"], line["status"], line["system"]) == ("GET", "/api/auth/me", 401, "cobalt")
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")
    assert 0 <= line["duration_ms"] < 10_000
    assert "hunter2" not in server.log
