"""Documents in MongoDB. Nothing here needs more than that one document changes at once: no replica set.

A stored document has its `body`, the lease (`owner`; `until` is 0 if there is none), the number of its last `change`,
what was `said` by event id (since `said_at`), and the `answers` by idempotency key. Times are whole microseconds and
money whole minor units, which every server compares alike.

The keys have a collection of their own. Before an effect is written with its answer, the claim names the document: who
finds a claim that has run out looks there, and before he takes it over makes sure that a late write fails.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from pymongo import AsyncMongoClient, IndexModel, ReturnDocument
from pymongo.errors import ConfigurationError, DuplicateKeyError, InvalidURI, OperationFailure, PyMongoError

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import PART, Database, UniqueViolation, microseconds, moment
from bedplate.kernel.documents import LEASE_SECONDS, Body, Documents, DocumentTransaction, Left, Taken
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.failpoints import reach
from bedplate.kernel.idempotency import IdempotencyKeyInWork, Once, Stored, judged
from bedplate.kernel.settings import OperatorError

ANSWER_SECONDS = 2.0
CONNECTIONS = 50
TIMES: dict[str, Any] = {
    "serverSelectionTimeoutMS": int(ANSWER_SECONDS * 1000),
    "connectTimeoutMS": int(ANSWER_SECONDS * 1000),
    "socketTimeoutMS": int(ANSWER_SECONDS * 1000),
    "waitQueueTimeoutMS": int(ANSWER_SECONDS * 1000),
}
NEWEST_FIRST = -1
FREE = {"$set": {"owner": None, "until": 0}}


class MongoDocuments(Documents):
    """`name`: of the collection. `indexes`: over fields of the body, the last two newest first.

    Raises:
        OperatorError: it is not a MongoDB URL with the name of a database.
    """

    engine = "MongoDB"

    def __init__(self, url: str, name: str, indexes: Sequence[Sequence[str]], queue: Database, clock: Clock) -> None:
        super().__init__(queue, clock)
        try:
            self._client: AsyncMongoClient[Body] = AsyncMongoClient(
                url, w="majority", journal=True, maxPoolSize=CONNECTIONS, connect=False, **TIMES
            )
            database = self._client.get_default_database()
        except (ConfigurationError, InvalidURI, ValueError):
            variable = f"{name.upper()}_DATABASE_URL"
            raise OperatorError(f"{variable} is not a URL like mongodb://host:27017/bedplate") from None
        self._all, self._keys = database[name], database[f"{name}_keys"]
        self._indexes = indexes

    async def prepare(self) -> None:
        async with _answering():
            for fields in self._indexes:
                ways = [1] * (len(fields) - 2) + [NEWEST_FIRST] * 2
                keys = [(f"body.{field}", way) for field, way in zip(fields, ways, strict=True)]
                await self._all.create_indexes([IndexModel(keys)])
            await self._all.create_indexes([IndexModel([("said_at", 1)], sparse=True)])
            await self._keys.create_indexes([IndexModel([("created", 1)])])

    async def find(self, document_id: str) -> Body | None:
        """As it was last written."""
        async with _answering():
            found = await self._all.find_one({"_id": document_id}, {"body": 1})
        return None if found is None else found.get("body")

    async def page(self, wanted: Body, order: Sequence[str], limit: int, offset: int) -> list[Body]:
        """Those whose bodies have these values, the greatest first by the fields of `order`."""
        async with _answering():
            found = self._all.find(_in_body(wanted), {"body": 1}).sort([(f"body.{each}", -1) for each in order])
            return [each["body"] for each in await found.skip(offset).limit(limit).to_list()]

    async def count(self, wanted: Body) -> int:
        """How many there are."""
        async with _answering():
            return await self._all.count_documents(_in_body(wanted))

    async def hold(self, document_id: str, owner: str) -> Body | None:
        now = self._now()
        free = {"_id": document_id, "until": {"$lt": now}}
        lease = {"owner": owner, "until": now + int(LEASE_SECONDS * 1_000_000)}
        async with _answering():
            found = await self._all.find_one_and_update(
                free, {"$set": lease}, {"body": 1}, return_document=ReturnDocument.AFTER
            )
            if found is not None:
                body: Body = found["body"]
                return body
        if await self.find(document_id) is None:
            return None
        raise Taken

    async def let_go(self, document_id: str, owner: str) -> None:
        async with _answering():
            await self._all.update_one({"_id": document_id, "owner": owner}, FREE)

    async def write(self, tx: DocumentTransaction) -> None:
        if tx.answer is not None:
            await self._intend(tx)
            await reach("documents.write.after_intent")
        await self._put(tx)

    async def _put(self, tx: DocumentTransaction) -> None:
        said = {event["id"]: event for event in tx.said}
        answers = {tx.answer.once.key: tx.answer.stored} if tx.answer is not None else {}
        since = {"said_at": self._now()} if said else {}
        async with _answering():
            if tx.found:
                change = {f"said.{name}": event for name, event in said.items()}
                change |= {f"answers.{key}": stored for key, stored in answers.items()}
                done = await self._all.update_one(
                    {"_id": tx.id, "owner": tx.owner},
                    {"$set": {**FREE["$set"], "body": tx.body, **since, **change}, "$inc": {"change": 1}},
                )
                if not done.matched_count:
                    raise Unavailable()
                return
            new = {"_id": tx.id, "body": tx.body, **FREE["$set"], "change": 1}
            try:
                await self._all.insert_one({**new, **since, "said": said, "answers": answers})
            except DuplicateKeyError:
                if tx.answer is not None:
                    raise IdempotencyKeyInWork(retry_after=1) from None
                raise UniqueViolation("id") from None

    async def left(self, document_id: str) -> Left:
        async with _answering():
            found = await self._all.find_one({"_id": document_id}, {"said": 1, "change": 1}) or {}
        said = found.get("said") or {}
        return Left([said[event_id] for event_id in sorted(said)], found.get("change"))

    async def moved(self, document_id: str, left: Left) -> bool:
        unchanged = {"_id": document_id, "change": left.mark}
        async with _answering():
            done = await self._all.update_one(unchanged, {"$set": {"said": {}}, "$unset": {"said_at": ""}})
        return bool(done.matched_count)

    async def waiting(self, limit: int) -> Sequence[str]:
        async with _answering():
            found = self._all.find({"said_at": {"$gt": 0}}, {"_id": 1}).sort([("said_at", 1)]).limit(limit)
            return [each["_id"] for each in await found.to_list()]

    async def claim(self, once: Once, now: datetime, until: datetime) -> Stored | None:
        row = {"_id": once.key, "fingerprint": once.fingerprint, "until": microseconds(until)}
        async with _answering():
            try:
                await self._keys.insert_one({**row, "created": microseconds(now)})
                return None
            except DuplicateKeyError:
                found = await self._keys.find_one({"_id": once.key})
            if found is None:  # given up a moment ago
                raise IdempotencyKeyInWork(retry_after=1)
            stored = found.get("stored") or await self._answer_in(found)
            held_until = moment(int(found["until"]))
            if judged(once, found["fingerprint"], stored, held_until, now) is not None:
                return stored
            if "document" in found and (stored := await self._fence(found)) is not None:
                return stored
            same = {"_id": once.key, "until": found["until"], "stored": None, "document": found.get("document")}
            mine = {"$set": {"until": microseconds(until)}, "$unset": {"document": "", "owner": ""}}
            if not (await self._keys.update_one(same, mine)).matched_count:
                raise IdempotencyKeyInWork(retry_after=1)
        return None

    async def release(self, once: Once, until: datetime, refusal: Stored | None) -> None:
        # If a document is named, whether there is an effect may be unknown: it is found out when the claim runs out.
        mine = {"_id": once.key, "until": microseconds(until), "stored": None, "document": None}
        async with _answering():
            if refusal is not None:
                await self._keys.update_one(mine, {"$set": {"stored": refusal}})
            else:
                await self._keys.delete_one(mine)

    async def forget(self, before: datetime) -> None:
        old = {"created": {"$lt": microseconds(before)}}
        async with _answering():
            while found := await self._keys.find(old, {"document": 1}).limit(PART).to_list():
                for each in found:
                    if "document" in each:
                        gone = {"$unset": {f"answers.{each['_id']}": ""}}
                        await self._all.update_one({"_id": each["document"]}, gone)
                await self._keys.delete_many({"_id": {"$in": [each["_id"] for each in found]}})

    async def ping(self) -> None:
        async with _answering():
            await self._client.admin.command("ping")

    async def close(self) -> None:
        await self._client.close()

    async def _intend(self, tx: DocumentTransaction) -> None:
        """Note in the claim where the answer is going to be, and from whom."""
        assert tx.answer is not None
        mine = {"_id": tx.answer.once.key, "until": tx.answer.until, "stored": None, "document": None}
        async with _answering():
            done = await self._keys.update_one(mine, {"$set": {"document": tx.id, "owner": tx.owner}})
        if not done.matched_count:
            raise IdempotencyKeyInWork(retry_after=1)

    async def _answer_in(self, claim: Body) -> Stored | None:
        found = await self._all.find_one({"_id": claim.get("document")}, {"answers": 1}) or {}
        stored: Stored | None = found.get("answers", {}).get(claim["_id"])
        return stored

    async def _fence(self, claim: Body) -> Stored | None:
        """Whoever named this document will not write it any more; what he wrote before."""
        try:
            await self._all.insert_one({"_id": claim["document"]})  # without a body: it is none, and takes the id
        except DuplicateKeyError:
            held = {"_id": claim["document"], "owner": claim["owner"]}
            await self._all.update_one(held, FREE)
        return await self._answer_in(claim)

    def _now(self) -> int:
        return microseconds(self._clock.now())


def _in_body(wanted: Body) -> dict[str, Any]:
    return {f"body.{field}": value for field, value in wanted.items()}


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Whatever the driver reports as a failure of the server is Unavailable: it may have done what it was asked."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except OperationFailure as refused:
        raise Unavailable() from refused
    except (PyMongoError, OSError) as away:
        raise Unavailable() from away
