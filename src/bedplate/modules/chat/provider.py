"""The port to whoever answers: an OpenAI-compatible server, or the built-in offline provider."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from bedplate.kernel.errors import Unavailable
from bedplate.modules.chat.public import Sampling, Turn, Usage

FINISH_REASONS = frozenset({"stop", "length", "content_filter"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent to a provider. `model`: by its name over there."""

    model: str
    turns: Sequence[Turn]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an answer: text, or what is said at its end. `usage`: None if the provider does not count."""

    text: str
    usage: Usage | None = None
    finish_reason: str | None = None


class ProviderBusy(Exception):
    """It is there and wants to be asked later: after so many seconds, if it says so."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__()
        self.retry_after = retry_after


class ProviderRefused(Exception):
    """It will say the same whenever it is asked again."""


class ProviderBroken(Unavailable):
    """It does not answer, or what it says is not an answer. What the circuit breaker counts."""


class ProviderSilent(ProviderBroken):
    """It has taken the question and says nothing, or nothing more: it may be at work, and is not asked again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: to the first byte of an answer, between two parts of it, and from the question to the
    end. `pauses`: before it is asked once more; half as much again may be waited."""

    first: float = 30.0
    idle: float = 30.0
    total: float = 120.0
    pauses: Sequence[float] = (0.3, 1.0)


class Provider(ABC):
    """Answers prompts. What it says is untrusted text. Time-outs, retries and the breaker are around it."""

    name: str
    patience: Patience = Patience()

    @abstractmethod
    def answer(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        """The answer as it grows; the last chunk has a finish reason.
        Raises ProviderBusy, ProviderRefused, ProviderBroken."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable if it does not answer, or does not know us."""

    async def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Let go of connections."""
