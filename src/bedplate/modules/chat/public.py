"""Chat's public face: values, problems and facades.

An answer grows: `Chat.ask` and `Completions.begin` return at once, and the text appears in the feed that has the
answer's id (`kernel/feeds.py`), from where any process follows it, from any position, any number of times.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import JsonValue

from bedplate.kernel.errors import Kind, Problem, TooMany
from bedplate.kernel.paging import Page, Slice


class AnswerStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation. `role`: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 to 2; `max_tokens` 1 to 4,096; `top_p` above 0 to 1; `stop`: at most four texts."""

    temperature: float = 0.7
    max_tokens: int = 1000
    top_p: float | None = None
    stop: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Question:
    """`conversation_id`: to go on with one; its last turns are put before the model. `file_ids`: files of the asker
    whose passages are put before the model, at most 20."""

    message: str
    model: str
    sampling: Sampling = field(default_factory=Sampling)
    conversation_id: str | None = None
    file_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the provider counts them; estimated where it does not say."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that was put before the model."""

    file_id: str
    filename: str
    position: int
    excerpt: str


@dataclass(frozen=True, slots=True)
class Message:
    """A question with its answer. `id` as it is printed: `chat-…`. `model`: as it was asked for. `response` and `usage`
    are there when it is completed; `problem` names the Problem when it has failed."""

    id: str
    user_id: str | None
    conversation_id: str
    message: str
    response: str | None
    model: str
    status: AnswerStatus
    usage: Usage | None
    sources: list[Source]
    finish_reason: str | None
    problem: str | None
    created_at: datetime
    completed_at: datetime | None

    @property
    def outcome(self) -> "Outcome | None":
        """As its feed had it; None as long as it is pending."""
        if self.status is AnswerStatus.PENDING:
            return None
        return Outcome(self.status, self.usage, self.finish_reason, self.sources, self.problem)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an answer has ended: the outcome of its feed. `usage`: also of what has failed, as far as it got.
    `finish_reason`: stop, length or content_filter. `problem`: the class of what is raised by `checked`."""

    status: AnswerStatus
    usage: Usage | None = None
    finish_reason: str | None = None
    sources: list[Source] = field(default_factory=list)
    problem: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Self:
        """The outcome of a feed."""
        usage, sources = written["usage"], [Source(**each) for each in written["sources"]]
        return cls(
            AnswerStatus(written["status"]),
            None if usage is None else Usage(**usage),
            written["finish_reason"],
            sources,
            written["problem"],
            written["details"],
        )

    def written(self) -> dict[str, Any]:
        """For a feed."""
        return {
            "status": self.status.value,
            "usage": None
            if self.usage is None
            else {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens},
            "finish_reason": self.finish_reason,
            "sources": [asdict(source) for source in self.sources],
            "problem": self.problem,
            "details": dict(self.details),
        }

    def checked(self) -> Self:
        """Itself, if it is completed; raises the Problem of what has failed."""
        if self.problem is not None:
            raise Problem.known[self.problem](**self.details)
        return self


@dataclass(frozen=True, slots=True)
class Answered:
    """For who counts answers. `model` and `provider`: of those that are known here. `status`: completed, failed, or
    stopped by who had asked. `seconds`: from the question to the end."""

    model: str
    provider: str
    status: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for by `id`; `provider`: by whom it is answered."""

    id: str
    provider: str


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer that grows in the feed `id`. `model`: as it was asked for; `prompt_tokens` are known at the end."""

    id: str
    model: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class UsageOfModel:
    """One user's use of one model on one day (UTC, YYYY-MM-DD)."""

    day: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What has come of an answer, up to `position` characters; nothing, if nothing came in a while. `outcome`: when it
    has ended."""

    text: str
    position: int
    outcome: dict[str, JsonValue] | None


class UnknownModel(Problem):
    kind = Kind.INVALID
    message = "Unknown model"


class PromptTooLong(Problem):
    """Over what the model, or this product, takes. Details: limit (characters)."""

    kind = Kind.INVALID
    message = "The message is longer than {limit} characters"


class MessageMissing(Problem):
    """Unknown, or another user's."""

    kind = Kind.NOT_FOUND
    message = "Message not found"


class ConversationMissing(Problem):
    """Unknown, or another user's."""

    kind = Kind.NOT_FOUND
    message = "Conversation not found"


class AnswerGone(Problem):
    """Its feed is not kept any more, or never was."""

    kind = Kind.GONE
    message = "The answer cannot be followed any more"


class TokenBudgetExceeded(TooMany):
    """Details: limit (tokens a day), retry_after (seconds)."""

    message = "Token budget used up: {limit} tokens a day"


class ModelBusy(Problem):
    """Too many answers are under way, or the provider says so. Details: retry_after (seconds)."""

    kind = Kind.UNAVAILABLE
    message = "The model is busy"


class ModelUnavailable(Problem):
    """The provider does not answer, answers nonsense, or its circuit is open. Details: retry_after (seconds)."""

    kind = Kind.UNAVAILABLE
    message = "The model does not answer"


class ModelSilent(ModelUnavailable):
    """The provider has taken the question and says nothing, or nothing more, within its time. Details: retry_after."""

    message = "The model does not answer in time"


class ModelRefused(Problem):
    """The provider refuses this request for good: its content, its length, the credentials of this installation."""

    kind = Kind.FAILED
    message = "The model refused the request"


class AnswerInterrupted(Problem):
    """The process that answered has stopped, or nobody wanted the rest."""

    kind = Kind.UNAVAILABLE
    message = "The answer was interrupted"


class Chat(ABC):
    """Questions that are kept, with their answers."""

    @abstractmethod
    async def ask(self, user_id: str | None, question: Question) -> Message:
        """Note the question (None: nobody's, not kept) and begin to answer it. The message, pending; its feed ends with
        the outcome, and what is completed is stored before that. Raises InvalidField, UnknownModel, PromptTooLong,
        ConversationMissing, FileMissing, TokenBudgetExceeded, ModelBusy."""

    @abstractmethod
    async def get_message(self, user_id: str, message_id: str) -> Message:
        """Raises MessageMissing."""

    @abstractmethod
    async def history(self, user_id: str, part: Slice) -> Page[Message]:
        """What is completed, newest first, with the exact total."""

    @abstractmethod
    async def usage(self, user_id: str, days: int) -> list[UsageOfModel]:
        """By day and model, newest day first, of the last so many days (at most 92)."""


class Completions(ABC):
    """Answers that are counted and not kept: for programs, and for other modules."""

    @abstractmethod
    async def begin(self, caller_id: str, turns: list[Turn], model: str, sampling: Sampling) -> Begun:
        """Begin to answer. Raises InvalidField, UnknownModel, PromptTooLong, TokenBudgetExceeded, ModelBusy."""

    @abstractmethod
    async def stop(self, answer_id: str) -> None:
        """Nobody wants the rest. What has come is counted. Heard by the process that answers."""

    @abstractmethod
    async def list_models(self) -> list[Model]:
        """What may be asked for, by id."""


class Listening(ABC):
    """Feeds of answers, for processes that can neither see nor share them."""

    @abstractmethod
    async def listen(self, answer_id: str, position: int) -> Heard:
        """What has come after this position, as soon as something has; after a second or two also if nothing has.
        Raises AnswerGone."""
