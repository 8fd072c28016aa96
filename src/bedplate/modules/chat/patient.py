"""A provider as it is called: with time-outs, a few more tries, and a breaker that leaves a broken one alone.

What is tried again is only what has not begun to answer: after the first byte nothing is sent twice. The circuit is
kept in this process, for each process sees a provider as well as any other.
"""

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

from bedplate.kernel.breaker import Breaker, CircuitOpen, MemoryCircuits
from bedplate.kernel.clock import Clock
from bedplate.modules.chat.provider import (
    Chunk,
    Prompt,
    Provider,
    ProviderBroken,
    ProviderBusy,
    ProviderRefused,
    ProviderSilent,
)
from bedplate.modules.chat.public import ModelBusy, ModelRefused, ModelSilent, ModelUnavailable

log = logging.getLogger("bedplate.chat")

# What a provider wants to be waited for longer than this is told to who asked.
LONGEST_PAUSE = 5.0
RETRY_AFTER_SECONDS = 5
LONGEST_RETRY_AFTER = 3600


class Patient:
    """One provider, called with patience."""

    def __init__(self, provider: Provider, clock: Clock) -> None:
        self._provider = provider
        circuits = MemoryCircuits(clock, call_seconds=provider.patience.first + 1)
        self.breaker = Breaker(provider.name, circuits)

    async def answer(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        """The answer as it grows. Raises ModelBusy, ModelRefused, ModelUnavailable, ModelSilent."""
        try:
            first, rest = await self._begin(prompt)
            async with aclosing(rest):  # type: ignore[type-var]
                yield first
                while (chunk := await self._next(rest, self._provider.patience.idle)) is not None:
                    yield chunk
        except ProviderBusy as busy:
            wait = RETRY_AFTER_SECONDS if busy.retry_after is None else math.ceil(busy.retry_after)
            raise ModelBusy(retry_after=min(max(wait, 1), LONGEST_RETRY_AFTER)) from None
        except ProviderRefused:
            raise ModelRefused() from None
        except CircuitOpen as refused:
            raise ModelUnavailable(retry_after=refused.details["retry_after"]) from None
        except ProviderSilent:
            raise ModelSilent(retry_after=RETRY_AFTER_SECONDS) from None
        except ProviderBroken:
            raise ModelUnavailable(retry_after=RETRY_AFTER_SECONDS) from None

    async def _begin(self, prompt: Prompt) -> tuple[Chunk, AsyncIterator[Chunk]]:
        for pause in self._provider.patience.pauses:
            try:
                return await self._try(prompt)
            except (CircuitOpen, ProviderSilent):
                raise
            except ProviderBroken:
                wait = pause
            except ProviderBusy as busy:
                wait = pause if busy.retry_after is None else max(busy.retry_after, pause)
                if wait > LONGEST_PAUSE:
                    raise
            await asyncio.sleep(random.uniform(wait, wait * 1.5))
        return await self._try(prompt)

    async def _try(self, prompt: Prompt) -> tuple[Chunk, AsyncIterator[Chunk]]:
        """To the first part of an answer: by then it is known whether the provider is well."""
        async with self.breaker.passage():
            rest = self._provider.answer(prompt)
            try:
                first = await self._next(rest, self._provider.patience.first)
            except BaseException:
                await rest.aclose()  # type: ignore[attr-defined]
                raise
            if first is None:
                raise ProviderBroken()
        return first, rest

    async def _next(self, rest: AsyncIterator[Chunk], seconds: float) -> Chunk | None:
        """None: that was all."""
        try:
            async with asyncio.timeout(seconds):
                return await anext(rest, None)
        except TimeoutError:
            log.warning("a provider is silent", extra={"provider": self._provider.name})
            raise ProviderSilent() from None
