"""The statements: however many messages there are, each looks at few of them."""

import pytest
from sqlalchemy import Executable, text
from sqlalchemy.dialects import sqlite

from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.modules.chat import store

STATEMENTS = {
    "end": store._END,
    "find": store._FIND,
    "page": store._PAGE,
    "count": store._COUNT,
    "conversation": store._CONVERSATION,
    "left behind": store._LEFT_BEHIND,
    "all of a user": store._ALL_OF,
    "usage": store._USAGE,
    "settle": store._SETTLE,
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_statement_has_an_index(sqlite_db: SqliteDatabase, name: str) -> None:
    statement: Executable = STATEMENTS[name]
    compiled = statement.compile(dialect=sqlite.dialect())
    rows = await sqlite_db.all(text(f"EXPLAIN QUERY PLAN {str(compiled).replace('?', '1')}"))
    plan = " / ".join(str(row[-1]) for row in rows)
    assert "SEARCH" in plan and "SCAN" not in plan and "B-TREE FOR ORDER BY" not in plan, plan


async def test_the_sweep_looks_at_pending_ones_only(sqlite_db: SqliteDatabase) -> None:
    compiled = str(store._LEFT_BEHIND.compile(dialect=sqlite.dialect())).replace("?", "1")
    [row] = await sqlite_db.all(text(f"EXPLAIN QUERY PLAN {compiled}"))
    assert "ix_chat_messages_pending" in row[-1]
