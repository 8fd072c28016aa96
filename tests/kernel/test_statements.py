"""Statements are compiled once and run by the drivers; values and rows are those of SQLAlchemy's own connections."""

import asyncio
import gc
from typing import Any

import pytest
from sqlalchemy import bindparam, delete, func, insert, literal, select, text, update
from sqlalchemy.dialects.postgresql.asyncpg import dialect as Postgres
from sqlalchemy.dialects.sqlite.pysqlite import dialect as Sqlite

from bedplate.kernel.db import Database, UniqueViolation
from bedplate.kernel.errors import StorageFailed
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import InboxRow, OutboxRow
from bedplate.kernel.statements import Plans
from bedplate.models import UserRow
from tests.kernel.clocks import NOON
from tests.kernel.conftest import Opener

SOME = select(InboxRow.consumer, InboxRow.at).where(InboxRow.consumer.in_(bindparam("names", expanding=True)))
OURS = select(InboxRow.event_id).where(InboxRow.consumer.in_(["a", "b"]), InboxRow.at <= bindparam("now"))


def row(consumer: str) -> dict[str, Any]:
    return {"event_id": new_id(), "consumer": consumer, "at": NOON}


@pytest.mark.parametrize("dialect", [Postgres, Sqlite])
def test_a_statement_is_compiled_once_for_each_length_of_its_lists(dialect: Any) -> None:
    plans = Plans(dialect())
    two = plans.of(SOME, {"names": ["a", "b"]})
    assert plans.of(SOME, {"names": ["c", "d"]}) is two
    assert plans.of(SOME, {"names": ["c"]}) is not two
    assert two.values({"names": ["c", "d"]}) == ["c", "d"]
    assert plans.of(SOME, {"names": []}).values({"names": []}) == []


@pytest.mark.parametrize("dialect", [Postgres, Sqlite])
def test_what_stands_in_the_statement_and_what_is_given_come_in_order(dialect: Any) -> None:
    plans = Plans(dialect())
    plan = plans.of(OURS, {"now": NOON})
    values = plan.values({"now": NOON})
    assert plan.values({"now": NOON}) is not values
    assert sorted(map(str, values))[-2:] == ["a", "b"]
    assert len(values) == 3


@pytest.mark.parametrize("dialect", [Postgres, Sqlite])
def test_a_statement_of_a_single_use_is_forgotten_with_it(dialect: Any) -> None:
    plans = Plans(dialect())
    once = select(InboxRow.at).where(InboxRow.consumer == "a")
    plans.of(once, {})
    assert len(plans._known) == 1
    del once
    gc.collect()
    assert len(plans._known) == 0


def test_a_value_that_is_missing_is_said() -> None:
    with pytest.raises(Exception, match="now"):
        Plans(Sqlite()).of(OURS, {})


async def test_rows_are_read_by_name_by_place_and_as_tuples(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), [row("a"), row("b"), row("c")])
    found = await db.all(SOME.order_by(InboxRow.consumer), {"names": ["a", "c", "z"]})
    assert [(each.consumer, each[1]) for each in found] == [tuple(each) for each in found] == [("a", NOON), ("c", NOON)]
    assert await db.all(SOME, {"names": []}) == []
    assert (await db.first(select(InboxRow.consumer, func.count().label("many")).group_by(InboxRow.consumer)))._mapping[
        "many"
    ] == 1


async def test_values_of_every_type_come_back_as_they_were(db: Database) -> None:
    payload = {"text": "ünï 'quoted' \\ $1 ? :name", "list": [1, None, True, 2.5], "deep": {"a": []}}
    carried = {"id": new_id(), "consumer": "c", "type": "t", "key": "k", "payload": payload, "created_at": NOON}
    async with db.transaction() as tx:
        await tx.execute(insert(OutboxRow), carried | {"due_at": NOON, "attempts": 3})
        changed = update(OutboxRow).where(OutboxRow.consumer == "c").values(attempts=OutboxRow.attempts + 1)
        told = await tx.first(changed.returning(OutboxRow.id, OutboxRow.attempts, OutboxRow.payload))
        assert tuple(told or ()) == (carried["id"], 4, payload)
    kept = await db.first(select(OutboxRow.__table__))
    assert kept is not None
    assert (kept.id, kept.payload, kept.created_at, kept.claimed_until) == (carried["id"], payload, NOON, None)
    assert await db.scalar(select(literal(2.5))) == 2.5


async def test_the_first_of_several_changed_rows_leaves_none_unchanged(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(insert(InboxRow), [row("a"), row("b"), row("c")])
    async with db.transaction() as tx:
        assert await tx.first(delete(InboxRow).returning(InboxRow.consumer)) is not None
    assert await db.scalar(select(func.count()).select_from(InboxRow)) == 0


async def test_what_a_read_began_does_not_hold_its_view_of_the_rows(db: Database) -> None:
    for number in range(3):
        assert await db.scalar(select(func.count()).select_from(InboxRow)) == number
        await db.first(select(InboxRow.event_id, InboxRow.consumer))
        async with db.transaction() as tx:
            assert await tx.execute(insert(InboxRow), row("a")) == 1


async def test_columns_whose_default_is_left_to_us_are_a_mistake_and_not_a_null() -> None:
    from sqlalchemy import Column, Integer, MetaData, Table

    table = Table("t", MetaData(), Column("a", Integer, primary_key=True), Column("b", Integer, default=1))
    for dialect in (Postgres(), Sqlite()):  # type: ignore[no-untyped-call]
        with pytest.raises(TypeError, match="give the value"):
            Plans(dialect).of(insert(table), {"a": 1})


@pytest.mark.parametrize("open_database", ["postgresql"], indirect=True)
async def test_a_transaction_that_goes_on_after_a_failed_statement_is_not_taken_for_committed(db: Database) -> None:
    twice = row("a")
    with pytest.raises(StorageFailed):
        async with db.transaction() as tx:
            await tx.execute(insert(InboxRow), twice)
            with pytest.raises(UniqueViolation):
                await tx.execute(insert(InboxRow), twice)
    assert await db.scalar(select(func.count()).select_from(InboxRow)) == 0


@pytest.mark.parametrize("open_database", ["postgresql"], indirect=True)
async def test_whoever_gives_up_while_a_statement_runs_spoils_no_connection(open_database: Opener) -> None:
    """More often than there are connections, half of them inside a transaction."""
    db = open_database()
    before = db.connections()
    for number in range(25):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                if number % 2:
                    await db.first(text("SELECT pg_sleep(5)"))
                else:
                    async with db.transaction() as tx:
                        await tx.execute(insert(InboxRow), row("a"))
                        await tx.first(text("SELECT pg_sleep(5)"))
    assert db.connections() == before == 0
    answers = await asyncio.gather(*(db.scalar(select(literal(number))) for number in range(40)))
    assert answers == list(range(40))
    assert await db.scalar(select(func.count()).select_from(InboxRow)) == 0
    assert await db.scalar(select(func.count()).select_from(UserRow)) == 0
