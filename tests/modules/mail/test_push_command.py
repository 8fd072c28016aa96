"""`bedplate mail push`: the push messages of a user, as an operator sees them."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert, select

from bedplate.kernel import sqlite
from bedplate.kernel.ids import new_id
from bedplate.models import PushRow, UserRow
from tests.commands import Commands

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def test_push_messages_of_a_user_are_listed_newest_first(tmp_path: Path) -> None:
    user_id, event_ids = new_id(), [new_id() for _ in range(3)]
    whose = {event_ids[0]: user_id, event_ids[1]: new_id(), event_ids[2]: user_id}

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = commands.run(tmp_path, (*arguments, "--data", str(tmp_path / "data")), "", {"COLUMNS": "200"})
        assert (done.returncode, done.stderr) == (0, "")
        return done

    with Commands() as commands:
        ran("migrate")
        engine = sqlite.engine_for(str(tmp_path / "data" / "bedplate.db"))
        with engine.connect() as connection:
            for number, (event_id, owner) in enumerate(whose.items()):
                row = {"id": new_id(), "user_id": owner, "event_id": event_id, "title": "Payment Failed"}
                told = {"body": f"[bold]{number}[/] of 3", "created_at": NOON + timedelta(seconds=number)}
                connection.execute(insert(PushRow), row | told)
        engine.dispose()
        newest, oldest = json.loads(ran("mail", "push", user_id, "--json").stdout)
        assert newest.keys() == {"id", "event_id", "title", "body", "created_at"}
        assert (newest["event_id"], newest["created_at"]) == (event_ids[2], "2026-11-22T12:00:02Z")
        assert (oldest["event_id"], oldest["body"]) == (event_ids[0], "[bold]0[/] of 3")
        table = ran("mail", "push", user_id).stdout
        assert "[bold]2[/] of 3" in table, "what a message says is not markup"
        assert table.index("[bold]2") < table.index("[bold]0")
        assert "[bold]1" not in table, "that is somebody else's"
        assert len(json.loads(ran("mail", "push", user_id, "--limit", "1", "--json").stdout)) == 1
        for nobody in (new_id(), "1"):
            done = commands.run(tmp_path, ("mail", "push", nobody, "--data", str(tmp_path / "data")), "", {})
            assert (done.returncode, done.stdout, done.stderr) == (1, "", "bedplate: User not found\n")
        root = ("admin", "create", "root@example.com", "--password-stdin", "--data", str(tmp_path / "data"))
        assert commands.run(tmp_path, root, "a long enough password", {}).returncode == 0
        engine = sqlite.engine_for(str(tmp_path / "data" / "bedplate.db"))
        with engine.connect() as connection:
            somebody = connection.execute(select(UserRow.id)).scalar_one()
        engine.dispose()
        assert json.loads(ran("mail", "push", somebody, "--json").stdout) == []
