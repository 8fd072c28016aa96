"""Redis Streams as the broker: BROKER_URL=redis://host:6379/1.

A stream has the name of its topic, and flat fields that any program can read: event_id, event_type, occurred_at, the
ids, and the rest as JSON in `data`. Redis forgets: the last second when it is killed, everything when it is flushed.
The incarnation tells: the run of the server, and a mark that lives and dies with the stream, as it is a group in it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError, ResponseError

from bedplate.kernel.broker import (
    KEPT_SECONDS,
    LINGER_SECONDS,
    MAXIMUM_LENGTH,
    Broker,
    BrokerAway,
    Message,
    Standing,
    Wire,
)
from bedplate.kernel.ids import new_id
from bedplate.kernel.settings import OperatorError

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 3.0
CALL_SECONDS = 5.0
CONNECTIONS = 64
TAIL_WAIT_SECONDS = 1.0
TAIL_LIMIT = 500
TAIL_PAUSE_SECONDS = 1.0
# One reader at a time is what the lease is for; so all have one name, and inherit what the last one had in its hands.
READER = "reader"
MARK = "incarnation-"

# KEYS: the stream. ARGV: a mark, for a stream that has none, and how all marks begin. The run, and the mark.
INCARNATION = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups.err and {} or groups) do
  for at = 1, #group, 2 do
    if group[at] == 'name' and string.find(group[at + 1], ARGV[2], 1, true) == 1 then
      return {run, group[at + 1]}
    end
  end
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
return {run, ARGV[1]}
"""
# KEYS: the lease. ARGV: who wants it, for how many milliseconds.
HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

Entry = tuple[bytes, Mapping[bytes, bytes] | None]


class Streams(Broker):
    def __init__(self, url: str) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                encoding_errors="replace",  # one odd character must not stop what comes after it
            )
        except ValueError:
            raise OperatorError("BROKER_URL is not a URL like redis://host:6379/1") from None
        # Without retries of its own: what comes after a broken connection may be another incarnation.
        # Untyped, as its answers have types that depend on its options.
        self._redis: Any = Redis(connection_pool=pool)
        self._hold = self._redis.register_script(HOLD)
        self._release = self._redis.register_script(RELEASE)

    async def publish(self, topic: str, messages: Sequence[Wire]) -> tuple[str, str]:
        async with _reachable(), self._redis.pipeline(transaction=True) as pipe:
            _ask_incarnation(pipe, topic)
            for message in messages:
                pipe.xadd(topic, _fields(message))
            answers = await pipe.execute()
        return _incarnation(answers[0]), _position(*_parts(answers[-1]))

    async def standing(self, topic: str, groups: Sequence[str]) -> Standing:
        # In one transaction: how far they are is of use only for this very incarnation.
        async with _reachable(), self._redis.pipeline(transaction=True) as pipe:
            _ask_incarnation(pipe, topic)
            pipe.xinfo_stream(topic)
            pipe.xinfo_groups(topic)
            for group in groups:
                pipe.xpending(topic, group)
            run, stream, known, *pending = await pipe.execute(raise_on_error=False)
            _raise_first((run, stream, known))
        read = {group["name"]: group["last-delivered-id"] for group in known}
        taken = [_taken(read.get(group.encode()), open_) for group, open_ in zip(groups, pending, strict=True)]
        last = _parts(stream["last-generated-id"])
        slowest = min((last, *(each for each in taken if each is not None)))
        return Standing(_incarnation(run), None if None in taken else _position(*slowest), stream["length"])

    async def trim(self, topic: str, standing: Standing) -> None:
        # Ids begin with the time, in milliseconds of the server: the newest entry says how late it is.
        async with _reachable():
            now = _parts((await self._redis.xinfo_stream(topic))["last-generated-id"])[0]
            cut = (max(now - KEPT_SECONDS * 1000, 0), 0)
            if standing.confirmed is not None:
                lingering = (max(now - LINGER_SECONDS * 1000, 0), 0)
                confirmed = _numbers(standing.confirmed)
                cut = max(cut, confirmed if standing.length > MAXIMUM_LENGTH else min(confirmed, lingering))
            await self._redis.xtrim(topic, minid=_id(cut), approximate=True, limit=0)

    async def hold(self, topic: str, group: str, name: str, seconds: float) -> bool:
        async with _reachable():
            return bool(await self._hold(keys=[_lease(topic, group)], args=[name, int(seconds * 1000)]))

    async def release(self, topic: str, group: str, name: str) -> None:
        async with _reachable():
            await self._release(keys=[_lease(topic, group)], args=[name])

    async def read(self, topic: str, group: str, limit: int, wait_seconds: float, *, again: bool) -> Sequence[Message]:
        async with _reachable():
            try:
                return await self._read(topic, group, limit, wait_seconds, again)
            except ResponseError as error:
                # Without a group: at first, and after a wipe. UNBLOCKED: it was wiped while this waited.
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
            await self._create(topic, group)
            return await self._read(topic, group, limit, wait_seconds, again)

    async def acknowledge(self, topic: str, group: str, receipts: Sequence[str]) -> None:
        async with _reachable():
            await self._redis.xack(topic, group, *receipts)

    async def tail(self, topics: Sequence[str], listening: Callable[[], None] = lambda: None) -> AsyncIterator[Wire]:
        last: dict[str, str] = {}
        for topic in topics:
            async with _reachable():
                newest = await self._redis.xrevrange(topic, count=1)
            last[topic] = newest[0][0].decode() if newest else "0-0"
        listening()
        while True:
            try:
                async with _reachable():
                    answer = await self._redis.xread(last, count=TAIL_LIMIT, block=int(TAIL_WAIT_SECONDS * 1000))
            except BrokerAway:
                await asyncio.sleep(TAIL_PAUSE_SECONDS)
                continue
            for topic, entries in answer or ():
                last[topic.decode()] = entries[-1][0].decode()
                for message in _messages(entries):
                    if message.wire is not None:
                        yield message.wire

    async def ping(self) -> None:
        async with _reachable():
            await self._redis.ping()

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _read(self, topic: str, group: str, limit: int, wait_seconds: float, again: bool) -> Sequence[Message]:
        if again:
            claimed = await self._redis.xautoclaim(topic, group, READER, 0, "0-0", count=limit)
            return _messages(claimed[1])
        block = int(wait_seconds * 1000) or None
        answer = await self._redis.xreadgroup(group, READER, {topic: ">"}, count=limit, block=block)
        return _messages(answer[0][1] if answer else ())

    async def _create(self, topic: str, group: str) -> None:
        try:
            await self._redis.xgroup_create(topic, group, "0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another reader was quicker
                raise


@asynccontextmanager
async def _reachable() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise BrokerAway() from error


def _ask_incarnation(pipe: Any, topic: str) -> None:
    pipe.eval(INCARNATION, 1, topic, f"{MARK}{new_id()[-8:]}", MARK)


def _incarnation(answer: Sequence[bytes]) -> str:
    run, mark = answer
    return run.decode()[:12] + mark.decode().removeprefix(MARK)


def _raise_first(answers: Iterable[Any]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _taken(read: bytes | None, pending: Any) -> tuple[int, int] | None:
    """Up to where a group has taken everything: what it has read, or what comes before the oldest that is pending."""
    if read is None or isinstance(pending, Exception):
        return None
    if not pending["pending"]:
        return _parts(read)
    milliseconds, sequence = _parts(pending["min"])
    return (milliseconds, sequence - 1) if sequence else (milliseconds - 1, 2**64 - 1)


# Ids are "1732526400000-0". As positions they have leading zeros, so that they compare as text.


def _parts(identifier: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = identifier.decode().partition("-")
    return int(milliseconds), int(sequence)


def _position(milliseconds: int, sequence: int) -> str:
    return f"{milliseconds:020d}-{sequence:020d}"


def _numbers(position: str) -> tuple[int, int]:
    return _parts(position.encode())


def _id(parts: tuple[int, int]) -> str:
    return f"{parts[0]}-{parts[1]}"


def _lease(topic: str, group: str) -> str:
    return f"bedplate:reader:{topic}:{group}"


def _fields(wire: Wire) -> dict[Any, Any]:
    ids = {name: str(value) for name, value in wire.items()}
    return {**ids, "data": json.dumps(wire["data"], separators=(",", ":"))}


def _messages(entries: Iterable[Entry]) -> list[Message]:
    return [Message(identifier.decode(), _wire(fields)) for identifier, fields in entries]


def _wire(fields: Mapping[bytes, bytes] | None) -> Wire | None:
    try:
        wire: Wire = {name.decode(): value.decode() for name, value in (fields or {}).items()}
        return {**wire, "data": json.loads(wire["data"])}
    except (LookupError, ValueError, RecursionError):
        return None
