"""A server that speaks OpenAI's chat completions over HTTP, well or badly, as a script has it.

    python -m tests.fakes.model_server --port N --words 20

It prints its address, then serves until it is killed. Each request takes the next behaviour that was scripted (by
`script` in this process, by POST /_control with {"next": [...]} from another), "answer" when there is none. Answers
are computed from the question, so a test can say what has to arrive. `/_requests` shows the last requests.
"""

import argparse
import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

STALL_SECONDS = 60.0
MAXIMUM_BODY = 4 * 2**20
GIANT = 4 * 2**20
HOSTILE = "\x00\x1b[2J<script>alert(1)</script>\r\n\ud800\U0001f600\u202e```\ndata: [DONE]\n\n"


@dataclass(frozen=True)
class Asked:
    """One request. `body`: as JSON, None if it is none."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


def words_for(question: str, count: int = 0) -> list[str]:
    """What is answered to a question: its own words, or so many numbered ones."""
    words = [f"word{number}" for number in range(count)] if count else ["You", "said:", *question.split()]
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)]


class ModelServer:
    """The server in this process, at a free port unless one is given. `words`: how many each answer has; 0: those of
    the question."""

    def __init__(self, port: int = 0, words: int = 0) -> None:
        self.requests: deque[Asked] = deque(maxlen=1000)
        self.behaviours: deque[str] = deque()
        self.words = words
        # What is done when nothing is scripted.
        self.default = "answer"
        # While it is not set, "held" answers wait after their first word.
        self.held = asyncio.Event()
        self.open_connections = 0
        self._port = port
        self._server: asyncio.Server | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections: set[_Connection] = set()

    def script(self, *behaviours: str) -> None:
        """How the next requests are treated: names of `_Connection`'s behaviours, with ":" and a value for some."""
        self.behaviours.extend(behaviours)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """As OPENAI_BASE_URL wants it."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._data += data
        ends = self._data.find(b"\r\n\r\n")
        if ends < 0:
            return
        lines = self._data[:ends].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = min(int(headers.get("content-length", 0)), MAXIMUM_BODY)
        if len(self._data) < ends + 4 + length:
            return
        content, self._data = self._data[ends + 4 : ends + 4 + length], self._data[ends + 4 + length :]
        method, path, _ = lines[0].split(" ", 2)
        self._asked(method, path, headers, content)

    def _asked(self, method: str, path: str, headers: Mapping[str, str], content: bytes) -> None:
        server = self._server
        body = None
        with contextlib.suppress(ValueError):
            body = json.loads(content)
        if path == "/_control":
            server.behaviours.extend(body["next"])
            return self._json(200, {})
        if path == "/_requests":
            return self._json(200, [[each.method, each.path, each.body] for each in server.requests])
        server.requests.append(Asked(method, path, headers, body))
        if path == "/v1/models":
            return self._json(200, {"object": "list", "data": [{"id": "gpt-4", "object": "model"}]})
        if path != "/v1/chat/completions" or method != "POST" or body is None:
            return self._json(404, {"error": {"message": "unknown", "type": "invalid_request_error"}})
        name, _, value = (server.behaviours.popleft() if server.behaviours else server.default).partition(":")
        if name == "answer":
            return self._answer(body)
        behaviour: Callable[[Any, str], Awaitable[None]] = getattr(self, f"_{name}")
        task = asyncio.create_task(self._behave(behaviour(body, value)))
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)
        return None

    async def _behave(self, behaviour: Awaitable[None]) -> None:
        with contextlib.suppress(OSError):
            await behaviour

    def _words(self, body: Any) -> list[str]:
        return words_for(body["messages"][-1]["content"], self._server.words)

    def _answer(self, body: Any) -> None:
        prompt = sum(len(turn["content"].split()) for turn in body["messages"])
        if not body.get("stream"):
            return self._json(200, _complete(self._words(body), prompt))
        if self._server.words:
            usage = (body.get("stream_options") or {}).get("include_usage", False)
            return self._write(_instant(self._server.words, prompt, usage))
        return self._write(_sse(b"".join(_events(body, self._words(body)))))

    # Behaviours.

    async def _busy(self, body: Any, seconds: str) -> None:
        self._json(429, {"error": {"message": "slow down", "type": "rate_limit"}}, {"retry-after": seconds or "0"})

    async def _fail(self, body: Any, status: str) -> None:
        self._json(int(status or 500), {"error": {"message": f"broken: {json.dumps(body)}", "type": "server_error"}})

    async def _close(self, body: Any, value: str) -> None:
        """No answer at all."""
        self._transport.close()

    async def _cut(self, body: Any, words: str) -> None:
        """The connection is lost after so many words."""
        self._begin()
        for event in list(_events(body, self._words(body)))[: int(words or 2)]:
            self._chunk(event)
        self._transport.close()

    async def _ended(self, body: Any, value: str) -> None:
        """A well-formed HTTP answer which ends before the model has."""
        self._write(_sse(b"".join(list(_events(body, self._words(body)))[:2])))

    async def _slow(self, body: Any, seconds: str) -> None:
        await asyncio.sleep(float(seconds))
        self._write(_sse(b"".join(_events(body, self._words(body)))))

    async def _words_each(self, body: Any, seconds: str) -> None:
        """A word at a time."""
        self._begin()
        for event in _events(body, self._words(body)):
            self._chunk(event)
            await asyncio.sleep(float(seconds or 0))
        self._write(b"0\r\n\r\n")

    async def _bytes_each(self, body: Any, value: str) -> None:
        """Torn anywhere, inside characters too."""
        for byte in _sse(b"".join(_events(body, self._words(body)))):
            self._write(bytes([byte]))
            await asyncio.sleep(0)

    async def _stall(self, body: Any, words: str) -> None:
        self._begin()
        for event in list(_events(body, self._words(body)))[: int(words or 2)]:
            self._chunk(event)
        await asyncio.sleep(STALL_SECONDS)

    async def _hang(self, body: Any, value: str) -> None:
        await asyncio.sleep(STALL_SECONDS)

    async def _held(self, body: Any, value: str) -> None:
        """The first word, the rest when `held` is set."""
        events = list(_events(body, self._words(body)))
        self._begin()
        self._chunk(events[0])
        await self._server.held.wait()
        self._chunk(b"".join(events[1:]))
        self._write(b"0\r\n\r\n")

    async def _garbage(self, body: Any, value: str) -> None:
        self._write(_sse(b"data: {not json\n\ndata: \xff\xfe\n\n"))

    async def _other_json(self, body: Any, value: str) -> None:
        self._write(_sse(f"data: {value or '[1, 2]'}\n\ndata: [DONE]\n\n".encode()))

    async def _html(self, body: Any, value: str) -> None:
        page = b"<html>Welcome to the hotel's network</html>"
        self._write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(page) + page)

    async def _not_http(self, body: Any, value: str) -> None:
        self._write(b"\x00\x01\x02 220 smtp ready\r\n" * 100)
        self._transport.close()

    async def _redirect(self, body: Any, value: str) -> None:
        self._write(f"HTTP/1.1 302 Found\r\nlocation: {value}\r\ncontent-length: 0\r\n\r\n".encode())

    async def _giant(self, body: Any, value: str) -> None:
        """One line without an end."""
        self._begin()
        self._chunk(b'data: {"choices": [{"delta": {"content": "')
        for _ in range(1000):
            self._chunk(b"x" * (GIANT // 100))
            await asyncio.sleep(0)
            if self._transport.is_closing():
                return

    async def _giant_head(self, body: Any, value: str) -> None:
        self._write(b"HTTP/1.1 200 OK\r\n")
        for number in range(200_000):
            self._write(b"x-header-%d: %s\r\n" % (number, b"x" * 1000))
            await asyncio.sleep(0)
            if self._transport.is_closing():
                return

    async def _endless(self, body: Any, value: str) -> None:
        """Words without an end."""
        self._begin()
        event = _event({"choices": [{"index": 0, "delta": {"content": "again and " * 100}, "finish_reason": None}]})
        while not self._transport.is_closing():
            self._chunk(event)
            await asyncio.sleep(0)

    async def _error_in_stream(self, body: Any, value: str) -> None:
        events = list(_events(body, self._words(body)))[:2]
        self._write(_sse(b"".join([*events, _event({"error": {"message": "overloaded", "type": "server_error"}})])))

    async def _hostile(self, body: Any, value: str) -> None:
        """What no database and no terminal likes."""
        self._write(_sse(b"".join(_events(body, ["before ", HOSTILE, " after"]))))

    async def _obey(self, body: Any, value: str) -> None:
        """Tells everything that it was told."""
        self._write(_sse(b"".join(_events(body, [json.dumps(body["messages"])]))))

    async def _say(self, body: Any, text: str) -> None:
        self._write(_sse(b"".join(_events(body, [text]))))

    async def _silent_usage(self, body: Any, value: str) -> None:
        """Does not count."""
        self._write(_sse(b"".join(_events(body, self._words(body), usage=False))))

    async def _empty(self, body: Any, value: str) -> None:
        self._write(_sse(b"".join(_events(body, []))))

    async def _filtered(self, body: Any, value: str) -> None:
        self._write(_sse(b"".join(_events(body, self._words(body), reason="content_filter"))))

    async def _huge_usage(self, body: Any, value: str) -> None:
        numbers = {"prompt_tokens": -5, "completion_tokens": 10**30}
        last = [_event({"choices": [], "usage": numbers}), b"data: [DONE]\n\n"]
        self._write(_sse(b"".join([*_events(body, self._words(body), usage=False)][:-1] + last)))

    # How it is written.

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _begin(self) -> None:
        self._write(HEAD)

    def _chunk(self, data: bytes) -> None:
        self._write(b"%x\r\n%s\r\n" % (len(data), data))

    def _json(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\n{more}content-length: {len(content)}"
        self._write(head.encode() + b"\r\n\r\n" + content)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def _sse(events: bytes) -> bytes:
    """A whole answer."""
    return HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events)


def _events(body: Any, words: list[str], *, usage: bool = True, reason: str = "stop") -> Iterator[bytes]:
    """The events of one answer: its words, its end, and what it used if that was asked for."""
    for word in words:
        yield _event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
    yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if usage and (body.get("stream_options") or {}).get("include_usage"):
        prompt = sum(len(turn["content"].split()) for turn in body["messages"])
        yield _event({"choices": [], "usage": usage_of(prompt, len(words))})
    yield b"data: [DONE]\n\n"


def _complete(words: list[str], prompt: int) -> dict[str, Any]:
    """An answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(words)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"object": "chat.completion", "choices": choices, "usage": usage_of(prompt, len(words))}


@lru_cache
def _instant(count: int, prompt: int, usage: bool) -> bytes:
    """The same answer once more, at no cost: for measurements."""
    body = {"messages": [{"content": "word " * prompt}], "stream_options": {"include_usage": usage}}
    return _sse(b"".join(_events(body, words_for("", count))))


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(content: Mapping[str, Any]) -> bytes:
    text = json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "upstream", **content})
    return f"data: {text}\n\n".encode("utf-8", "surrogatepass")


async def _serve(port: int, words: int) -> None:
    async with ModelServer(port, words) as server:
        print(server.base_url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--words", type=int, default=0)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        import uvloop

        uvloop.run(_serve(arguments.port, arguments.words))


if __name__ == "__main__":
    main()
