"""Answers under way in this process: each has a feed that grows, and ends once, with what was recorded.

Bounded: so many at once for a provider, so many more that wait for a place, and each with a time-out. Tokens are taken
out of the day's budget before anything is sent, and settled in the transaction that records how it ended; what a
provider may have worked on without telling is charged as it was reserved.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Problem, StorageFailed, Unavailable
from bedplate.kernel.failpoints import reach
from bedplate.kernel.feeds import Feeds
from bedplate.modules.chat import rules
from bedplate.modules.chat.patient import Patient
from bedplate.modules.chat.provider import Prompt
from bedplate.modules.chat.public import (
    Answered,
    AnswerInterrupted,
    AnswerStatus,
    Message,
    ModelBusy,
    ModelSilent,
    ModelUnavailable,
    Outcome,
    Sampling,
    TokenBudgetExceeded,
    Turn,
    Usage,
)
from bedplate.modules.chat.registry import Registry, Route
from bedplate.modules.chat.store import ChatStore

log = logging.getLogger("bedplate.chat")

RUNNING = 256
WAITING = 1_024
# Of one caller, whatever he asks: few could keep all others out otherwise, with a model that takes its time.
OF_ONE = 64
WAIT_SECONDS = 20.0
RETRY_AFTER_SECONDS = 5
RECORD_PAUSES_SECONDS = (0.1, 0.5, 2.0)
STOP_SECONDS = 5.0
# Longer than the longest wait, the longest answer and the tries to record it.
LEASE = timedelta(seconds=240)


@dataclass
class Work:
    """One answer. `caller`: whom it is counted for. `message`: where it is kept, if it is."""

    answer_id: str
    route: Route
    turns: Sequence[Turn]
    sampling: Sampling
    caller: str
    created_at: datetime
    message: Message | None = None
    reserved: int = 0
    parts: list[str] = field(default_factory=list)
    usage: Usage | None = None
    finish_reason: str | None = None
    # Whether anything was sent to the provider.
    sent: bool = False
    # Perhaps: the answer to the commit may be lost. Without a message nothing would show it, so it is not done again.
    counted: bool = False
    # What ends it early, and why it was ended.
    limit: asyncio.Timeout | None = None
    interrupted: str = ""

    def __post_init__(self) -> None:
        self.day = rules.day(self.created_at)

    def interrupt(self, reason: str) -> None:
        """Let it come to an end now, unless it has."""
        self.interrupted = self.interrupted or reason
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(0)


class Answers:
    """Call `stop` before what it stands on is closed."""

    def __init__(
        self,
        store: ChatStore,
        registry: Registry,
        feeds: Feeds,
        clock: Clock,
        daily_tokens: int = 0,
        tell: Callable[[Answered], None] | None = None,
        running: int = RUNNING,
        waiting: int = WAITING,
    ) -> None:
        """`daily_tokens`: of one user; 0 for no limit. `tell`: who counts answers."""
        self._store = store
        self._feeds = feeds
        self._clock = clock
        self._daily_tokens = daily_tokens
        self._tell = tell
        self._most = running + waiting
        self._patients = {provider.name: Patient(provider, clock) for provider in registry.providers}
        self._places = {provider.name: asyncio.Semaphore(running) for provider in registry.providers}
        self._under_way: dict[str, Work] = {}
        # How many of them are of one caller or of one provider.
        self._count: Counter[tuple[str, str]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def begin(self, work: Work) -> None:
        """Reserve, note and begin. Raises ModelBusy, TokenBudgetExceeded, Unavailable."""
        if self._stopping or self._is_full(work):
            raise ModelBusy(retry_after=RETRY_AFTER_SECONDS)
        self._enter(work)
        try:
            await self._feeds.open(work.answer_id)
            await self._note(work)
        except BaseException as error:
            self._leave(work)
            problem = error if isinstance(error, Problem) else AnswerInterrupted()
            await self._feeds.end(work.answer_id, _failed(problem).written())
            raise
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def interrupt(self, answer_id: str) -> None:
        """Nobody wants the rest."""
        work = self._under_way.get(answer_id)
        if work is not None:
            work.interrupt("unwanted")

    async def stop(self, seconds: float) -> None:
        """What is under way has so much time to end. Then it is failed; nothing new begins."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for work in self._under_way.values():
            work.interrupt("stopping")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def sweep(self) -> None:
        """Fail what a process that died has left pending."""
        for message_id in await self._store.left_behind(self._clock.now()):
            outcome = _failed(AnswerInterrupted())
            await reach("chat.sweep.before_commit")
            async with self._store.transaction() as tx:
                ended = await self._store.end(tx, message_id, None, outcome, self._clock.now())
            await reach("chat.sweep.after_commit")
            if ended:
                await self._feeds.end(message_id, outcome.written())

    def _is_full(self, work: Work) -> bool:
        caller, provider = _shares(work)
        return self._count[caller] >= OF_ONE or self._count[provider] >= self._most

    def _enter(self, work: Work) -> None:
        self._under_way[work.answer_id] = work
        self._count.update(_shares(work))

    def _leave(self, work: Work) -> None:
        del self._under_way[work.answer_id]
        for share in _shares(work):
            self._count[share] -= 1
            if not self._count[share]:
                del self._count[share]

    async def _note(self, work: Work) -> None:
        if not self._daily_tokens and work.message is None:
            return
        if self._daily_tokens:
            work.reserved = rules.prompt_tokens(work.turns) + work.sampling.max_tokens
        await reach("chat.ask.before_commit")
        async with self._store.transaction() as tx:
            if work.reserved and not await self._store.reserve(
                tx, work.caller, work.day, work.reserved, self._daily_tokens
            ):
                seconds = rules.seconds_left(work.created_at)
                raise TokenBudgetExceeded(limit=self._daily_tokens, retry_after=seconds)
            if work.message is not None:
                claimed_until = work.created_at + LEASE
                await self._store.insert(tx, work.message, work.route.provider.name, work.sampling, claimed_until)
        await reach("chat.ask.after_commit")

    async def _run(self, work: Work) -> None:
        began = time.perf_counter()
        outcome = _failed(AnswerInterrupted())
        try:
            outcome = await self._record(work, await self._outcome(work))
            await reach("chat.answer.after_record")
        except Exception as error:
            log.error("an answer could not be recorded", exc_info=error)
        finally:
            # Also if this task is cancelled or fails: nobody shall wait for more.
            self._leave(work)
            await self._feeds.end(work.answer_id, outcome.written())
            if self._tell is not None:
                self._tell(_answered(work, outcome, time.perf_counter() - began))

    async def _outcome(self, work: Work) -> Outcome:
        """Let it grow to its end."""
        try:
            await self._grow(work)
        except ModelSilent as silent:
            return _failed(silent, work, _estimated(work, work.sampling.max_tokens))
        except Problem as problem:
            return _failed(problem, work)
        except TimeoutError:
            assert work.interrupted, "nobody else sets this limit"
            # The provider has read the question: who goes away before the first word has not asked for nothing.
            read = _estimated(work) if work.sent and work.interrupted == "unwanted" else None
            return _failed(AnswerInterrupted(), work, read)
        except Exception as error:  # ours or the provider's: who has asked must hear of it
            log.error("an answer failed", exc_info=error)
            return _failed(ModelUnavailable(retry_after=RETRY_AFTER_SECONDS), work)
        usage = work.usage or _estimated(work)
        sources = work.message.sources if work.message is not None else []
        return Outcome(AnswerStatus.COMPLETED, usage, work.finish_reason or "stop", sources)

    async def _grow(self, work: Work) -> None:
        place = self._places[work.route.provider.name]
        await self._wait_for(place, work)
        try:
            async with _limit(work, work.route.provider.patience.total):
                await reach("chat.answer.before_provider")
                await self._listen(work)
                await reach("chat.answer.after_provider")
        except TimeoutError:
            if work.interrupted:
                raise
            raise ModelSilent(retry_after=RETRY_AFTER_SECONDS) from None
        finally:
            place.release()

    async def _wait_for(self, place: asyncio.Semaphore, work: Work) -> None:
        """Until it is this one's turn. Raises ModelBusy."""
        if not place.locked():
            await place.acquire()
            return
        try:
            async with _limit(work, WAIT_SECONDS):
                await place.acquire()
        except TimeoutError:
            if work.interrupted:
                raise
            raise ModelBusy(retry_after=RETRY_AFTER_SECONDS) from None

    async def _listen(self, work: Work) -> None:
        prompt = Prompt(work.route.upstream, work.turns, work.sampling)
        length = 0
        work.sent = True
        async with aclosing(self._patients[work.route.provider.name].answer(prompt)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.text:
                    length += len(chunk.text)
                    if length > rules.ANSWER_LIMIT:
                        log.warning("an answer has no end", extra={"provider": work.route.provider.name})
                        raise ModelUnavailable(retry_after=RETRY_AFTER_SECONDS)
                    work.parts.append(chunk.text)
                    await self._feeds.add(work.answer_id, chunk.text)
                work.usage = chunk.usage or work.usage
                work.finish_reason = chunk.finish_reason or work.finish_reason

    async def _record(self, work: Work, outcome: Outcome) -> Outcome:
        """What is said of it to others is what is stored."""
        for pause in (*RECORD_PAUSES_SECONDS, None):
            try:
                return await self._record_once(work, outcome, again=pause != RECORD_PAUSES_SECONDS[0])
            except (Unavailable, StorageFailed) as problem:
                if work.message is None and work.counted:
                    return outcome
                if pause is None:
                    return _failed(problem, work)
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns")

    async def _record_once(self, work: Work, outcome: Outcome, *, again: bool) -> Outcome:
        message, completed = work.message, outcome.status is AnswerStatus.COMPLETED
        used = outcome.usage or Usage(0, 0)
        recorded = True
        async with self._store.transaction() as tx:
            if message is not None:
                response = "".join(work.parts) if completed else None
                recorded = await self._store.end(tx, message.id, response, outcome, self._clock.now())
            if recorded and (completed or work.interrupted == "unwanted"):
                await self._store.count(tx, work.caller, work.day, work.route.model, used)
            if recorded and work.reserved:
                await self._store.settle(tx, work.caller, work.day, work.reserved, used.total_tokens)
            work.counted = True
        if recorded:
            return outcome
        assert message is not None and message.user_id is not None
        # It was failed by a sweep; or recorded by a try of ours whose answer was lost.
        stored = await self._store.find(message.user_id, message.id) if again else None
        return outcome if stored is not None and stored.outcome == outcome else _failed(AnswerInterrupted())


def _shares(work: Work) -> tuple[tuple[str, str], tuple[str, str]]:
    """As whose an answer is counted while it is under way."""
    return ("caller", work.caller), ("provider", work.route.provider.name)


@asynccontextmanager
async def _limit(work: Work, seconds: float) -> AsyncIterator[None]:
    """Ends what is inside with TimeoutError after so many seconds, or as soon as the work is interrupted."""
    try:
        async with asyncio.timeout(0 if work.interrupted else seconds) as work.limit:
            yield
    finally:
        work.limit = None


def _failed(problem: Problem, work: Work | None = None, usage: Usage | None = None) -> Outcome:
    """`usage` is what the budget is charged with: what is known or given, else what came, else nothing."""
    if work is not None:
        usage = work.usage or usage or (_estimated(work) if work.parts else None)
    return Outcome(AnswerStatus.FAILED, usage, None, [], type(problem).__name__, problem.details)


def _estimated(work: Work, completion: int | None = None) -> Usage:
    """`completion`: tokens of the answer, where they are not those of what came."""
    if completion is None:
        completion = rules.tokens("".join(work.parts))
    return Usage(rules.prompt_tokens(work.turns), completion)


def _answered(work: Work, outcome: Outcome, seconds: float) -> Answered:
    usage = outcome.usage or Usage(0, 0)
    status = "stopped" if work.interrupted == "unwanted" else outcome.status.value
    provider = work.route.provider.name
    return Answered(work.route.model, provider, status, seconds, usage.prompt_tokens, usage.completion_tokens)
