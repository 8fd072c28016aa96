"""Idempotency keys: one effect for one key, whatever happens to the requests that carry it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from sqlalchemy import func, insert, select

from bedplate.kernel.db import Database, Transaction
from bedplate.kernel.documents import Documents, DocumentTransaction
from bedplate.kernel.errors import InvalidField, NotAllowed, Unavailable
from bedplate.kernel.idempotency import (
    IN_WORK,
    KEPT,
    Idempotency,
    IdempotencyKeyInWork,
    IdempotencyKeyReused,
    IdempotencyRow,
    Keep,
    Once,
    SqlAnswers,
)
from bedplate.kernel.ids import new_id
from bedplate.kernel.mongo import MongoDocuments
from bedplate.kernel.outbox import InboxRow
from bedplate.kernel.redis_documents import RedisDocuments, Shelf
from tests.kernel.clocks import StillClock
from tests.kernel.conftest import opening

NUMBER = TypeAdapter(int)
SECRET = "a-secret-of-this-test"
ASKED = Once.of(SECRET, "alice POST /orders", "key-1", {"amount": 1})


class Till:
    """Something with an effect that can be counted: a row for each sale."""

    def __init__(self, db: Database, clock: StillClock, documents: Documents | None = None) -> None:
        self.db = db
        self.documents = documents
        self.keys = Idempotency(documents or SqlAnswers(db), clock)
        self.clock = clock
        self.sold = asyncio.Event()
        self.may_sell = asyncio.Event()
        self.may_sell.set()

    async def sell(self, once: Once | None, error: Exception | None = None) -> int:
        async def work(keep: Keep[int]) -> int:
            self.sold.set()
            await asyncio.wait_for(self.may_sell.wait(), 10)
            if error is not None:
                raise error
            async with (self.documents or self.db).transaction() as tx:
                number = await self._book(tx)
                await keep(tx, number)
            return number

        return await self.keys.run(once, NUMBER, work)

    async def _book(self, tx: Transaction | DocumentTransaction) -> int:
        if isinstance(tx, DocumentTransaction):
            number, sale = await self.sales() + 1, new_id()
            if isinstance(self.documents, RedisDocuments):
                await tx.take(sale)
            tx.put(sale, {"id": sale})
            return number
        row = {"event_id": new_id(), "consumer": "sale", "at": self.clock.now()}
        await tx.execute(insert(InboxRow), row)
        return int(await tx.scalar(select(func.count()).select_from(InboxRow)))

    async def sales(self) -> int:
        if isinstance(self.documents, MongoDocuments):
            return await self.documents.count({"id": {"$exists": True}})
        if isinstance(self.documents, RedisDocuments):
            return (await self.documents.newest("sales", 1, 0))[1]
        return int(await self.db.scalar(select(func.count()).select_from(InboxRow)))


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


Open = Callable[[], Till]


@pytest.fixture(params=["sqlite", "postgresql", "mongodb", "redis"])
async def open_till(
    request: pytest.FixtureRequest, clock: StillClock, tmp_path: Path, sqlite_template: Path
) -> AsyncIterator[Open]:
    """Opens one till, in each store, as often as it is called: each time as another process would."""
    opened: list[Documents] = []
    store = {"mongodb": "empty_mongo", "redis": "empty_store"}.get(request.param)
    url = request.getfixturevalue(store) if store is not None else ""

    def opener() -> Till:
        if request.param == "mongodb":
            opened.append(MongoDocuments(url, "sales", [], open_database(), clock))
        elif request.param == "redis":
            opened.append(RedisDocuments(url, "sales", lambda _: Shelf((), {"sales": 1}), open_database(), clock))
        return Till(open_database(), clock, opened[-1] if opened else None)

    engine = "postgresql" if request.param == "postgresql" else "sqlite"
    async with opening(engine, request, tmp_path, sqlite_template) as open_database:
        yield opener
    for documents in opened:
        await documents.close()


@pytest.fixture
def till(open_till: Open) -> Till:
    return open_till()


async def test_without_a_key_every_request_has_its_effect(till: Till) -> None:
    assert [await till.sell(None) for _ in range(3)] == [1, 2, 3]


async def test_the_same_request_gets_the_first_answer_again(till: Till) -> None:
    assert [await till.sell(ASKED) for _ in range(3)] == [1, 1, 1]
    assert await till.sales() == 1


@pytest.mark.parametrize(
    ("scope", "key", "body", "same_key"),
    [
        ("alice POST /orders", "key-1", {"amount": 2}, True),
        ("alice POST /orders", "key-2", {"amount": 1}, False),
        ("bob POST /orders", "key-1", {"amount": 1}, False),
        ("alice POST /payments", "key-1", {"amount": 1}, False),
    ],
)
async def test_another_request_is_refused_and_another_key_is_another(
    till: Till, scope: str, key: str, body: object, same_key: bool
) -> None:
    await till.sell(ASKED)
    other = Once.of(SECRET, scope, key, body)
    assert (other.key == ASKED.key) == same_key
    if same_key:
        with pytest.raises(IdempotencyKeyReused):
            await till.sell(other)
    else:
        assert await till.sell(other) == 2


def test_the_order_of_a_bodys_keys_does_not_matter_and_the_secret_does() -> None:
    one, other = Once.of(SECRET, "s", "k", {"a": 1, "b": 2}), Once.of(SECRET, "s", "k", {"b": 2, "a": 1})
    assert one == other
    elsewhere = Once.of("another secret", "s", "k", {"a": 1, "b": 2})
    assert elsewhere.key != one.key and elsewhere.fingerprint != one.fingerprint


async def test_a_refusal_is_an_answer_and_a_failure_is_none(till: Till) -> None:
    refusal = InvalidField(field="amount", reason="Too much")
    for _ in range(2):
        with pytest.raises(InvalidField, match="Too much"):
            await till.sell(ASKED, refusal)
    with pytest.raises(InvalidField, match="Too much"):
        await till.sell(ASKED)
    for number, failure in enumerate((Unavailable(), NotAllowed(), ZeroDivisionError()), start=1):
        again = Once.of(SECRET, "alice", f"failed-{number}", None)
        with pytest.raises(type(failure)):
            await till.sell(again, failure)
        assert await till.sell(again) == number


async def test_of_many_at_once_one_has_the_effect_and_the_others_wait_or_get_its_answer(open_till: Open) -> None:
    tills = [open_till() for _ in range(2)]
    answers = await asyncio.gather(*(tills[number % 2].sell(ASKED) for number in range(20)), return_exceptions=True)
    assert {answer for answer in answers if isinstance(answer, int)} == {1}
    assert all(isinstance(answer, int | IdempotencyKeyInWork) for answer in answers), answers
    assert await tills[0].sales() == 1
    assert await tills[1].sell(ASKED) == 1


async def test_what_is_in_work_is_refused_until_its_time_is_over(till: Till, clock: StillClock) -> None:
    till.may_sell.clear()
    slow = asyncio.create_task(till.sell(ASKED))
    await asyncio.wait_for(till.sold.wait(), 10)
    with pytest.raises(IdempotencyKeyInWork) as refused:
        await till.sell(ASKED)
    assert refused.value.details["retry_after"] == IN_WORK.total_seconds()
    till.may_sell.set()
    assert await slow == 1
    assert await till.sell(ASKED) == 1


async def test_whoever_was_overtaken_has_no_effect_any_more(till: Till, clock: StillClock) -> None:
    till.may_sell.clear()
    slow = asyncio.create_task(till.sell(ASKED))
    await asyncio.wait_for(till.sold.wait(), 10)
    clock.advance(IN_WORK.total_seconds() + 1)
    faster = Till(till.db, clock, till.documents)
    assert await faster.sell(ASKED) == 1
    till.may_sell.set()
    with pytest.raises(IdempotencyKeyInWork):
        await slow
    assert await till.sales() == 1
    assert await till.sell(ASKED) == 1, "its failure has not freed the key"


async def test_a_key_is_kept_for_a_day(till: Till, clock: StillClock) -> None:
    await till.sell(ASKED)
    clock.advance(KEPT.total_seconds() - 1)
    await till.keys.forget_old()
    assert await till.sell(ASKED) == 1
    clock.advance(2)
    await till.keys.forget_old()
    if till.documents is None:
        assert await till.db.scalar(select(func.count()).select_from(IdempotencyRow)) == 0
    assert await till.sell(ASKED) == 2
