"""The offline provider: where no model is configured it says so, how to have one, and what it was asked."""

import asyncio
from collections.abc import AsyncIterator

from bedplate.modules.chat import rules
from bedplate.modules.chat.provider import Chunk, Prompt, Provider
from bedplate.modules.chat.public import Usage

ECHOED = 500
HONEST = (
    "No model is configured on this server, so nobody has thought about your message. "
    "To get real answers, set OPENAI_API_KEY, OLLAMA_BASE_URL or BEDPLATE_CHAT_PROVIDERS and start the server again. "
    "This is the built-in offline provider; it can only repeat what you wrote ({words} words): {echo}"
)


class Offline(Provider):
    """The same answer to the same question, in words, as a model would stream it. Counts a word as a token."""

    name = "offline"

    async def answer(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        question = next((turn.content for turn in reversed(prompt.turns) if turn.role == "user"), "")
        echo = question if len(question) <= ECHOED else question[:ECHOED] + "…"
        text = HONEST.format(words=len(question.split()), echo=echo)
        for stop in prompt.sampling.stop:
            text = text.partition(stop)[0]
        words = text.split(" ")
        said = words[: prompt.sampling.max_tokens]
        for number, word in enumerate(said):
            yield Chunk(f" {word}" if number else word)
            await asyncio.sleep(0)
        usage = Usage(rules.prompt_tokens(prompt.turns), len(said))
        yield Chunk("", usage, "stop" if len(said) == len(words) else "length")

    async def ping(self) -> None:
        """It is always there."""
