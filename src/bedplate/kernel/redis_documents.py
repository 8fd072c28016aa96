"""Documents in Redis, which is to keep what it confirms: with an append-only file, and without evicting anything.

A document is JSON under one key. Beside it lie the lease, what was said (a list), the lists that it is in (sorted sets,
by a number of its own), the names that it is known by, and the answers by idempotency key. One script changes all of
them, or nothing if the lease or the key's claim has gone to somebody else. All keys are in one database of one server.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, microseconds, moment
from bedplate.kernel.documents import LEASE_SECONDS, Body, Documents, DocumentTransaction, Left, Taken
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.idempotency import IN_WORK, KEPT, IdempotencyKeyInWork, Once, Stored, judged
from bedplate.kernel.settings import OperatorError

ANSWER_SECONDS = 2.0
CONNECTIONS = 50
KEPT_SECONDS = int(KEPT.total_seconds())

# KEYS: lease, document. ARGV: owner, milliseconds.
HOLD = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return {0} end
return {1, redis.call('GET', KEYS[2])}
"""
# KEYS: lease, document, said, waiting, names, key, then the lists. ARGV: owner, document, id, now, the claim, the
# answer, how many events, these, how many names, these, then a number for each list, or nothing: it is in it no more.
WRITE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'lost' end
if ARGV[5] ~= '' then
  if redis.call('GET', KEYS[6]) ~= ARGV[5] then return 'overtaken' end
  redis.call('SET', KEYS[6], ARGV[6], 'KEEPTTL')
end
redis.call('SET', KEYS[2], ARGV[2])
local at = 7
for _ = 1, tonumber(ARGV[at]) do at = at + 1; redis.call('RPUSH', KEYS[3], ARGV[at]) end
if at > 7 then redis.call('ZADD', KEYS[4], 'NX', ARGV[4], ARGV[3]) end
at = at + 1
for _ = 1, tonumber(ARGV[at]) do at = at + 1; redis.call('HSET', KEYS[5], ARGV[at], ARGV[3]) end
for list = 7, #KEYS do
  at = at + 1
  if ARGV[at] == '' then redis.call('ZREM', KEYS[list], ARGV[3])
  else redis.call('ZADD', KEYS[list], ARGV[at], ARGV[3]) end
end
redis.call('DEL', KEYS[1])
return 'done'
"""
# KEYS: said, waiting. ARGV: id, then what is forgotten.
MOVED = """
for each = 2, #ARGV do redis.call('LREM', KEYS[1], 1, ARGV[each]) end
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
# KEYS: one. ARGV: what it is to be now, and what it becomes (nothing: it is deleted).
SWAP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where a document is found besides under its id. `names`: others that it has, which it keeps. `lists`: those that
    it can be in, with its number in each, or None while it is not in it."""

    names: Sequence[str]
    lists: Mapping[str, int | None]


class RedisDocuments(Documents):
    """`name`: of the module, which its keys begin with. `shelf`: where a document belongs.

    Raises:
        OperatorError: it is not a Redis URL.
    """

    engine = "Redis"

    def __init__(self, url: str, name: str, shelf: Callable[[Body], Shelf], queue: Database, clock: Clock) -> None:
        super().__init__(queue, clock)
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=ANSWER_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),  # what was written is not to be written again blindly
            )
        except ValueError:
            raise OperatorError(f"{name.upper()}_DATABASE_URL is not a URL like redis://host:6379/0") from None
        self._redis: Any = Redis(connection_pool=pool)  # its types are those of all its modes at once
        scripts = (HOLD, WRITE, MOVED, SWAP)
        self._hold, self._write, self._moved, self._swap = (self._redis.register_script(each) for each in scripts)
        self._prefix = f"bedplate:{name}:"
        self._shelf = shelf

    async def find(self, document_id: str) -> Body | None:
        """As it was last written."""
        async with _answering():
            return _read(await self._redis.get(self._key("document", document_id)))

    async def named(self, name: str) -> str | None:
        """The id of the document that has this name."""
        async with _answering():
            found = await self._redis.hget(self._key("names"), name)
        return None if found is None else found.decode()

    async def newest(self, name: str, limit: int, offset: int) -> tuple[list[Body], int]:
        """A part of a list, the greatest number first, and how many are in it."""
        key = self._key("list", name)
        async with _answering():
            ids = await self._redis.zrevrange(key, offset, offset + limit - 1)
            return await self._bodies(ids), await self._redis.zcard(key)

    async def idle(self, name: str, below: int, limit: int, offset: int) -> tuple[list[Body], bool]:
        """A part of a list, the smallest numbers first: those in which no event is left; and whether it is the last."""
        async with _answering():
            key = self._key("list", name)
            ids = await self._redis.zrangebyscore(key, "-inf", f"({below}", start=offset, num=limit)
            waiting = await self._redis.zmscore(self._key("waiting"), ids) if ids else []
            idle = [each for each, since in zip(ids, waiting, strict=True) if since is None]
            return await self._bodies(idle), len(ids) < limit

    async def hold(self, document_id: str, owner: str) -> Body | None:
        keys = [self._key("lease", document_id), self._key("document", document_id)]
        async with _answering():
            held, *found = await self._hold(keys=keys, args=[owner, int(LEASE_SECONDS * 1000)])
        if not held:
            raise Taken
        return _read(found[0] if found else None)

    async def let_go(self, document_id: str, owner: str) -> None:
        async with _answering():
            await self._swap(keys=[self._key("lease", document_id)], args=[owner, "", 0])

    async def write(self, tx: DocumentTransaction) -> None:
        assert tx.held
        assert tx.body is not None
        shelf = self._shelf(tx.body)
        places = [self._key(each, tx.id) for each in ("lease", "document", "said")]
        claim = answer = b""
        key = ""
        if tx.answer is not None:
            once = tx.answer.once
            key = once.key
            claim = self._claim(once.fingerprint, tx.answer.until, None)
            answer = self._claim(once.fingerprint, tx.answer.until, tx.answer.stored)
        said = [orjson.dumps(event) for event in tx.said]
        keys = [*places, self._key("waiting"), self._key("names"), self._key("key", key)]
        args: list[Any] = [tx.owner, orjson.dumps(tx.body), tx.id, microseconds(self._clock.now()), claim, answer]
        args += [len(said), *said, len(shelf.names), *shelf.names]
        args += ["" if number is None else number for number in shelf.lists.values()]
        async with _answering():
            done = await self._write(keys=[*keys, *(self._key("list", name) for name in shelf.lists)], args=args)
        if done == b"overtaken":
            raise IdempotencyKeyInWork(retry_after=1)
        if done != b"done":
            raise Unavailable()

    async def left(self, document_id: str) -> Left:
        async with _answering():
            said = await self._redis.lrange(self._key("said", document_id), 0, -1)
        return Left([orjson.loads(each) for each in said], said)

    async def moved(self, document_id: str, left: Left) -> bool:
        keys = [self._key("said", document_id), self._key("waiting")]
        async with _answering():
            return bool(await self._moved(keys=keys, args=[document_id, *left.mark]))

    async def waiting(self, limit: int) -> Sequence[str]:
        async with _answering():
            return [each.decode() for each in await self._redis.zrange(self._key("waiting"), 0, limit - 1)]

    async def claim(self, once: Once, now: datetime, until: datetime) -> Stored | None:
        key = self._key("key", once.key)
        mine = self._claim(once.fingerprint, microseconds(until), None)
        async with _answering():
            if await self._redis.set(key, mine, nx=True, ex=KEPT_SECONDS):
                return None
            raw = await self._redis.get(key)
            if raw is None:  # given up a moment ago
                raise IdempotencyKeyInWork(retry_after=1)
            fingerprint, held_until, answer = orjson.loads(raw)
            claimed = moment(int(held_until))
            if claimed - IN_WORK >= now - KEPT:  # by this clock, too
                stored: Stored | None = judged(once, fingerprint, answer, claimed, now)
                if stored is not None:
                    return stored
            if not await self._swap(keys=[key], args=[raw, mine, KEPT_SECONDS]):
                raise IdempotencyKeyInWork(retry_after=1)
        return None

    async def release(self, once: Once, until: datetime, refusal: Stored | None) -> None:
        mine = self._claim(once.fingerprint, microseconds(until), None)
        end = "" if refusal is None else self._claim(once.fingerprint, microseconds(until), refusal)
        async with _answering():
            await self._swap(keys=[self._key("key", once.key)], args=[mine, end, KEPT_SECONDS])

    async def forget(self, before: datetime) -> None:
        """Redis does."""

    async def weakness(self) -> str:
        async with _answering():
            try:
                found = await self._redis.config_get("appendonly", "maxmemory-policy", "maxmemory")
            except ResponseError:  # not to be asked here
                return ""
        if found.get("appendonly") != "yes":
            return "it has no append-only file: set appendonly yes"
        if found.get("maxmemory") != "0" and found.get("maxmemory-policy") != "noeviction":
            return "it evicts keys when its memory is full: set maxmemory-policy noeviction"
        return ""

    async def ping(self) -> None:
        async with _answering():
            await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _bodies(self, ids: Iterable[bytes]) -> list[Body]:
        keys = [self._key("document", each.decode()) for each in ids]
        found = await self._redis.mget(keys) if keys else []
        return [orjson.loads(each) for each in found if each is not None]

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    def _claim(self, fingerprint: str, until: int, answer: Stored | None) -> bytes:
        """What stands under an idempotency key."""
        return orjson.dumps([fingerprint, until, answer])


def _read(raw: bytes | None) -> Body | None:
    if raw is None:
        return None
    body: Body = orjson.loads(raw)
    return body


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    """Whatever is wrong with the server is Unavailable: it may have done what it was asked."""
    try:
        yield
    except (RedisError, OSError) as away:
        raise Unavailable() from away
