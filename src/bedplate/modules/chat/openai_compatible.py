"""Servers that speak OpenAI's chat completions: OpenAI, Ollama, LM Studio, vLLM and others. Imported when there is one.

aiohttp, because a streamed answer costs a fifth of the processor time that it costs with httpx2. Whatever comes back is
untrusted: lines, answers and heads are bounded, and what is not an answer is ProviderBroken. No text of a server is
logged or repeated: it may quote what was sent.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TypeAlias

import aiohttp
import orjson
from multidict import CIMultiDict
from yarl import URL

from bedplate.kernel.errors import Unavailable
from bedplate.modules.chat import rules
from bedplate.modules.chat.provider import (
    FINISH_REASONS,
    Chunk,
    Patience,
    Prompt,
    Provider,
    ProviderBroken,
    ProviderBusy,
    ProviderRefused,
)
from bedplate.modules.chat.public import Usage

log = logging.getLogger("bedplate.chat.provider")

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

CONNECT_SECONDS = 5.0
PING_SECONDS = 3.0
READ_OUT_SECONDS = 0.2
MAXIMUM_LINE = 256 * 1024
MAXIMUM_BYTES = 16 * 2**20
MAXIMUM_HEADER = 16_384
MAXIMUM_TOKENS = 10_000_000
DONE = b"[DONE]"
# Answers by which a server says that it may do better another time.
PASSING = frozenset({408, 409, 425})


class OpenAiCompatible(Provider):
    """`base_url` ends with the version, as in https://api.openai.com/v1. `connections`: at most so many at once."""

    def __init__(
        self, name: str, base_url: str, api_key: str | None, patience: Patience | None = None, connections: int = 300
    ) -> None:
        self.name = name
        self.patience = patience or Patience()
        self._answers, self._models = (URL(f"{base_url.rstrip('/')}/{path}") for path in ("chat/completions", "models"))
        self._headers = CIMultiDict({"Content-Type": "application/json", "Accept": "text/event-stream"})
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def answer(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        try:
            async with self._opened().post(
                self._answers,
                data=orjson.dumps(_body(prompt)),
                headers=self._headers,
                allow_redirects=False,
            ) as response:
                self._check(response)
                async for chunk in self._chunks(response):
                    yield chunk
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.warning("a provider cannot be understood", extra={"provider": self.name, "reason": _reason(error)})
            raise ProviderBroken() from None

    async def ping(self) -> None:
        timeout = aiohttp.ClientTimeout(total=PING_SECONDS)
        try:
            async with self._opened().get(
                self._models, headers=self._headers, allow_redirects=False, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise Unavailable()
        except (aiohttp.ClientError, OSError, ValueError):
            raise Unavailable() from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # it wants a running loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                max_line_size=MAXIMUM_HEADER,
                max_field_size=MAXIMUM_HEADER,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
            )
        return self._session

    def _check(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 200 and response.content_type == "text/event-stream":
            return
        what = {"provider": self.name, "status": status, "content_type": response.content_type[:80]}
        log.warning("a provider gives no answer", extra=what)
        if status == 429:
            raise ProviderBusy(_seconds(response.headers.get("Retry-After")))
        if 400 <= status < 500 and status not in PASSING:
            raise ProviderRefused()
        raise ProviderBroken()

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[Chunk]:
        """What comes with each read of the network, joined. ValueError: it is no answer."""
        rest, total, reason, done = b"", 0, None, False
        async for data in response.content.iter_any():
            total += len(data)
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > MAXIMUM_LINE or total > MAXIMUM_BYTES:
                raise ValueError("too long")
            text, usage = "", None
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                event = line[5:].strip()
                if event == DONE:
                    done = True
                    break
                more, said, used = _read(event)
                text += more
                reason, usage = said or reason, used or usage
            if done:
                if reason is not None:
                    yield Chunk(rules.cleaned(text), usage, reason)
                    await _read_out(response)
                break
            if text or usage:
                yield Chunk(rules.cleaned(text), usage)
        if reason is None:
            raise ValueError("it ended before the answer did")
        if not done:  # some say no more than why it ends
            yield Chunk("", None, reason)


async def _read_out(response: aiohttp.ClientResponse) -> None:
    """To the end of the HTTP answer, if it comes soon: only then the connection can be used again."""
    if response.content.at_eof():
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_OUT_SECONDS):
            await response.content.read(MAXIMUM_LINE)


def _body(prompt: Prompt) -> dict[str, Json]:
    sampling = prompt.sampling
    body: dict[str, Json] = {
        "model": prompt.model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.turns],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.top_p is not None:
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def _read(event: bytes) -> tuple[str, str | None, Usage | None]:
    """The text of one event, why the answer ends, and what was used. ValueError: it is no event of an answer."""
    try:
        content = orjson.loads(event)
    except orjson.JSONDecodeError:
        content = _lenient(event)
    if not isinstance(content, dict) or "error" in content:
        raise ValueError("an error")
    choices, used = content.get("choices"), content.get("usage")
    if not isinstance(choices, list):
        raise ValueError("no choices")
    text, reason = _choice(choices[0]) if choices else ("", None)
    return text, reason, None if used is None else _usage(used)


def _lenient(event: bytes) -> Json:
    """Halves of characters, which some servers send, are no reason to give up; anything else is."""
    import json  # noqa: PLC0415  # for what orjson rightly refuses

    content: Json = json.loads(event.decode("utf-8", "surrogatepass"))
    return content


def _choice(choice: Json) -> tuple[str, str | None]:
    if not isinstance(choice, dict):
        raise ValueError("no choice")
    delta, reason = choice.get("delta"), choice.get("finish_reason")
    text = delta.get("content") if isinstance(delta, dict) else None
    if not (text is None or isinstance(text, str)):
        raise ValueError("no text")
    if reason is not None and not (isinstance(reason, str) and reason in FINISH_REASONS):
        reason = "stop"
    return text or "", reason


def _usage(usage: Json) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    return Usage(int(str(prompt)), int(str(completion)))


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and 0 <= value <= MAXIMUM_TOKENS


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After; a date is no more than a hint to wait."""
    return float(header) if header and header.isdecimal() and len(header) <= 12 else None


def _reason(error: Exception) -> str:
    return str(error) if type(error) is ValueError else type(error).__name__
