"""What questions must keep to, how tokens are estimated, and how answers are named."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from bedplate.kernel.errors import InvalidField
from bedplate.kernel.ids import is_id, new_id
from bedplate.modules.chat.public import PromptTooLong, Question, Sampling, Turn

MESSAGE = "chat-"
CONVERSATION = "conv-"
COMPLETION = "chatcmpl-"

# Characters.
MESSAGE_LIMIT = 8_000
PROMPT_LIMIT = 32_768
TURNS = 200
ROLES = frozenset({"system", "user", "assistant"})
TEMPERATURE = 2.0
TOKENS = range(1, 4_097)
STOPS = 4
STOP_LENGTH = range(1, 101)
FILES = 20
# Characters of a whole answer: far above what 4,096 tokens are.
ANSWER_LIMIT = 200_000
# A conversation's turns that are put before the model.
REMEMBERED_MESSAGES = 20
REMEMBERED_CHARACTERS = 16_000
# Whom answers to nobody are counted for.
NOBODY = "anonymous"


def new_message_id() -> str:
    return MESSAGE + new_id()


def new_conversation_id() -> str:
    return CONVERSATION + new_id()


def new_completion_id() -> str:
    return COMPLETION + new_id()


def is_message_id(text: str) -> bool:
    """Whether text can be a message's id: any other is not worth a query."""
    return text.startswith(MESSAGE) and is_id(text.removeprefix(MESSAGE))


def is_conversation_id(text: str) -> bool:
    """The same for a conversation's."""
    return text.startswith(CONVERSATION) and is_id(text.removeprefix(CONVERSATION))


def checked(question: Question) -> str:
    """The message without the space around it. Raises InvalidField, PromptTooLong."""
    message = question.message.strip()
    if not message:
        raise InvalidField(field="message", reason="Message must not be empty")
    if len(message) > MESSAGE_LIMIT:
        raise PromptTooLong(limit=MESSAGE_LIMIT)
    if not storable(message):
        raise InvalidField(field="message", reason="Message must be Unicode text without NUL characters")
    if len(question.file_ids) > FILES:
        raise InvalidField(field="file_ids", reason=f"At most {FILES} files")
    check_sampling(question.sampling)
    return message


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises InvalidField, PromptTooLong."""
    if not turns:
        raise InvalidField(field="messages", reason="There must be a message")
    if len(turns) > TURNS:
        raise InvalidField(field="messages", reason=f"At most {TURNS} messages")
    for turn in turns:
        if turn.role not in ROLES:
            raise InvalidField(field="messages", reason="Role must be system, user or assistant")
        if not storable(turn.content):
            raise InvalidField(field="messages", reason="Content must be Unicode text without NUL characters")
    if sum(len(turn.content) for turn in turns) > PROMPT_LIMIT:
        raise PromptTooLong(limit=PROMPT_LIMIT)


def check_sampling(sampling: Sampling) -> None:
    """Raises InvalidField."""
    if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= TEMPERATURE):
        raise InvalidField(field="temperature", reason="Temperature must be between 0 and 2")
    if sampling.max_tokens not in TOKENS:
        raise InvalidField(field="max_tokens", reason=f"max_tokens must be between 1 and {TOKENS.stop - 1}")
    if sampling.top_p is not None and not (math.isfinite(sampling.top_p) and 0 < sampling.top_p <= 1):
        raise InvalidField(field="top_p", reason="top_p must be above 0 and at most 1")
    if len(sampling.stop) > STOPS or any(len(stop) not in STOP_LENGTH or not storable(stop) for stop in sampling.stop):
        raise InvalidField(field="stop", reason=f"At most {STOPS} texts of 1 to {STOP_LENGTH.stop - 1} characters")


def storable(text: str) -> bool:
    """Whether it is text for every database and every wire."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def cleaned(text: str) -> str:
    """A model's or a file's text with a mark in place of what cannot be stored."""
    if storable(text):
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")


def tokens(text: str) -> int:
    """An estimate: four bytes are a token."""
    return (len(text.encode("utf-8", "replace")) + 3) // 4


def prompt_tokens(turns: Sequence[Turn]) -> int:
    """An estimate: their text, and what each turn costs besides."""
    return sum(tokens(turn.content) + 4 for turn in turns)


def day(moment: datetime) -> str:
    """The day that usage is counted for."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d")


def seconds_left(moment: datetime) -> int:
    """Until the next day, in whole seconds."""
    tomorrow = (moment.astimezone(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return max(1, math.ceil((tomorrow - moment).total_seconds()))
