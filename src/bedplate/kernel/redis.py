"""What processes share over Redis: counts of rate limits, circuits, and which remembered values are stale."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, cast

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from bedplate.kernel.breaker import (
    CALL_SECONDS,
    OPEN_SECONDS,
    THRESHOLD_FAILURES,
    Admission,
    BreakerState,
    Circuit,
    Circuits,
    MemoryCircuits,
    Outcome,
)
from bedplate.kernel.cache import Signals
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.ids import new_id
from bedplate.kernel.limits import Limit, Limiter, MemoryLimiter, Window
from bedplate.kernel.redis_feeds import RedisFeeds
from bedplate.kernel.settings import OperatorError

log = logging.getLogger("bedplate.redis")

WAIT_SECONDS = 1.0
CONNECTIONS = 50
RETRY_SECONDS = 5.0
CIRCUIT_KEPT_SECONDS = 86_400

# One step on the server, so that N processes admit exactly N: count, and start the window with the first request.
SCRIPT = """
local now = tonumber(ARGV[2])
local count = tonumber(redis.call('HGET', KEYS[1], 'count') or '0')
local ends = tonumber(redis.call('HGET', KEYS[1], 'ends') or '0')
if now >= ends then count = 0; ends = now + tonumber(ARGV[1]) end
redis.call('HSET', KEYS[1], 'count', count + 1, 'ends', ends)
redis.call('PEXPIRE', KEYS[1], math.ceil((ends - now) * 1000) + 60000)
return {count, tostring(ends - now)}
"""

# The rules of `Circuit` in breaker.py. ARGV: threshold, now, now + open time, now + time of a call, ticket; to settle
# also the outcome, and how long to keep it. Times stay the text that they came as, which no rounding changes.
ADMIT = """
local failures, ends, probe = unpack(redis.call('HMGET', KEYS[1], 'failures', 'until', 'probe'))
if tonumber(failures or '0') < tonumber(ARGV[1]) then return {0, ''} end
local latest = probe == '' and ARGV[3] or ARGV[4]
if tonumber(ends) > tonumber(latest) then ends = latest; redis.call('HSET', KEYS[1], 'until', ends) end
if tonumber(ARGV[2]) < tonumber(ends) then return {0, ends} end
redis.call('HSET', KEYS[1], 'probe', ARGV[5], 'until', ARGV[4])
return {1, ''}
"""
SETTLE = """
local failures, probe = unpack(redis.call('HMGET', KEYS[1], 'failures', 'probe'))
failures = tonumber(failures or '0')
local was_open = failures >= tonumber(ARGV[1])
if was_open and probe ~= ARGV[5] then return 0 end
if ARGV[6] == 'succeeded' then
  if failures > 0 then redis.call('HSET', KEYS[1], 'failures', 0, 'probe', '') end
  return was_open and 1 or 0
elseif ARGV[6] == 'failed' then
  redis.call('HSET', KEYS[1], 'failures', failures + 1, 'last_failure', ARGV[2], 'until', ARGV[3], 'probe', '')
  redis.call('EXPIRE', KEYS[1], ARGV[7])
  return failures + 1 >= tonumber(ARGV[1]) and 1 or 0
elseif was_open then
  redis.call('HSET', KEYS[1], 'until', ARGV[2], 'probe', '')
end
return 0
"""
READ = "return redis.call('HMGET', KEYS[1], 'failures', 'last_failure', 'until', 'probe')"


class RedisLimiter(Limiter):
    """Counts in Redis for all processes. While Redis is away each process counts for itself: never unlimited."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._script = redis.register_script(SCRIPT)
        self._clock = clock
        self._local = MemoryLimiter(clock)
        self._retry_at = 0.0

    async def hit(self, key: str, limit: Limit) -> Window:
        now = self._clock.timestamp()
        if time.monotonic() < self._retry_at:
            return await self._local.hit(key, limit)
        try:
            answer = await self._script(keys=[f"bedplate:limit:{key}"], args=[limit.seconds, repr(now)])
        except (RedisError, OSError) as error:
            reason = type(error).__name__
            log.warning("Redis is away: rate limits are counted in this process", extra={"reason": reason})
            self._retry_at = time.monotonic() + RETRY_SECONDS  # not every request shall wait for it
            return await self._local.hit(key, limit)
        # Rounding on the way through text must not make the wait longer than the window.
        count, ends_in = int(answer[0]), min(float(cast(bytes, answer[1])), limit.seconds)
        return Window(count < limit.amount, max(0, limit.amount - count - 1), ends_in)


class RedisCircuits(Circuits):
    """Kept in Redis for all processes. While Redis is away each process counts for itself, from closed circuits on.

    What Redis knew holds again when it is back. What nobody failed at for a day is forgotten.
    """

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._admit, self._settle, self._read = (redis.register_script(each) for each in (ADMIT, SETTLE, READ))
        self._clock = clock
        self._local = MemoryCircuits(clock)
        self._away = False
        self._retry_at = 0.0

    async def admit(self, service: str, ticket: str) -> Admission:
        now = self._clock.timestamp()
        answer = await self._step(self._admit, service, *_rules(now), ticket)
        if answer is None:
            return await self._local.admit(service, ticket)
        probe, ends = answer
        return Admission(float(ends) - now if ends else 0.0, probe=bool(probe))

    async def settle(self, service: str, ticket: str, outcome: Outcome) -> bool:
        rules = _rules(self._clock.timestamp())
        changed = await self._step(self._settle, service, *rules, ticket, outcome.value, CIRCUIT_KEPT_SECONDS)
        return await self._local.settle(service, ticket, outcome) if changed is None else bool(changed)

    async def read(self, service: str) -> BreakerState:
        answer = await self._step(self._read, service)
        if answer is None:
            return await self._local.read(service)
        failures, last, until, probe = answer
        circuit = Circuit(int(failures or 0), float(last) if last else None, float(until or 0), (probe or b"").decode())
        return circuit.state(self._clock.timestamp())

    async def _step(self, script: AsyncScript, service: str, *args: str | int) -> Any:
        """What the script answers, or None while Redis is away."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            answer = await script(keys=[f"bedplate:circuit:{service}"], args=args)
        except (RedisError, OSError) as error:
            log.warning("Redis is away: failures are counted in this process", extra={"reason": type(error).__name__})
            if not self._away:  # what was counted the last time that it was away is long past
                self._away, self._local = True, MemoryCircuits(self._clock)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return None
        self._away = False
        return answer


def _rules(now: float) -> tuple[int, str, str, str]:
    return THRESHOLD_FAILURES, repr(now), repr(now + OPEN_SECONDS), repr(now + CALL_SECONDS)


class RedisSignals(Signals):
    """Tells every process which tags are stale, over Redis, and waits until each has said that it has heard."""

    ACKNOWLEDGE_SECONDS = 1.0

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self._redis = redis
        # Channels know no database numbers, but lists, in which confirmations come, do.
        self._channel = f"bedplate:stale:{redis.connection_pool.connection_kwargs.get('db', 0)}"
        self._name = new_id()
        self._own: dict[str, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    async def start(self) -> None:
        """Listen from now on. Returns when the subscription stands, or after two seconds without one."""
        self._task = asyncio.create_task(self._listen())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._subscribed.wait(), 2.0)

    async def stop(self) -> None:
        while self._task is not None and not self._task.done():
            # Again if need be: a cancellation can be lost in a library that meets it in its clean-up.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.2)
        self.live = False

    async def publish(self, tags: Iterable[str]) -> None:
        """Returns once all listening processes have forgotten, or after a second (their values expire by then)."""
        ack = f"bedplate:heard:{new_id()}"
        try:
            async with asyncio.timeout(self.ACKNOWLEDGE_SECONDS):
                message = orjson.dumps({"tags": list(tags), "ack": ack, "from": self._name})
                self._own[ack] = asyncio.Event()
                listening = int(await self._redis.publish(self._channel, message))
                # One of them is this process, which needs no list to tell itself.
                for _ in range(listening - self.live):
                    await self._redis.blpop([ack], timeout=self.ACKNOWLEDGE_SECONDS)
                if self.live:
                    await self._own[ack].wait()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("not every process confirmed what it has to forget", extra={"reason": type(error).__name__})
        finally:
            self._own.pop(ack, None)

    async def _listen(self) -> None:
        pause = 0.1
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    await subscription.get_message(timeout=2.0)  # the confirmation
                    self._forget_all()
                    self.live = True
                    self._subscribed.set()
                    pause = 0.1
                    async for message in subscription.listen():
                        if message["type"] == "message":
                            await self._heard(orjson.loads(message["data"]))
            except Exception as error:  # whatever it is: who does not listen must not remember
                log.warning(
                    "Redis is away: nothing is remembered until it is back", extra={"reason": type(error).__name__}
                )
            finally:
                self.live = False
                self._forget_all()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _heard(self, message: dict[str, Any]) -> None:
        if message.get("from") == self._name:
            if message["ack"] in self._own:
                self._own[message["ack"]].set()
            return
        for cache in self.receivers:
            cache.forget(message["tags"])
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.rpush(message["ack"], 1)
            pipe.expire(message["ack"], 10)
            await pipe.execute()

    def _forget_all(self) -> None:
        for cache in self.receivers:
            cache.forget_all()


class Shared:
    """One Redis, and what processes share over it. Nothing is sent before the first use.

    Raises:
        OperatorError: it is not a Redis URL.
    """

    def __init__(self, url: str) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=WAIT_SECONDS,
                socket_timeout=WAIT_SECONDS,
                socket_connect_timeout=WAIT_SECONDS,
            )
        except ValueError:
            raise OperatorError("REDIS_URL is not a URL like redis://host:6379/0") from None
        self._redis = Redis(connection_pool=pool)
        self.signals = RedisSignals(self._redis)

    def limiter(self, clock: Clock) -> RedisLimiter:
        return RedisLimiter(self._redis, clock)

    def circuits(self, clock: Clock) -> RedisCircuits:
        return RedisCircuits(self._redis, clock)

    def feeds(self, clock: Clock) -> RedisFeeds:
        return RedisFeeds(self._redis, clock)

    async def ping(self) -> None:
        """Raises Unavailable if Redis does not answer."""
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            raise Unavailable() from error

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()
