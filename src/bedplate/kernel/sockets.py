"""WebSockets: who may open one, how many, how much may be said on it, and when it ends.

A socket is kept for as long as what it was opened with holds: `Sockets` looks through all of them every four seconds.
What is sent waits in the process for a peer that reads slowly, up to a mebibyte; then the connection is cut.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Kind, Problem
from bedplate.kernel.frames import LINE, MAXIMUM_UNREAD, Line

log = logging.getLogger("bedplate.sockets")

MAXIMUM_SOCKETS = 10_000
MAXIMUM_OF_ONE = 20  # user, or address of which nothing else is known
MESSAGES = 60
MESSAGES_SECONDS = 60.0
ROUND_SECONDS = 4.0
# RFC 6455, 7.4.1, and the registry that it founds.
POLICY_VIOLATION, UNSUPPORTED, RESTARTING, TRY_AGAIN_LATER = 1008, 1003, 1012, 1013

# What a browser may call this machine by its address too.
LOOPBACK = "localhost"

Proof = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the peer. `wait`: seconds until the next one will be heard, if this one is over the limit: then it
    is not to be acted upon."""

    text: str
    wait: float = 0.0


class SocketEnded(Exception):
    """The peer is gone, or it is time to go. `code`: why, as close codes say it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Socket:
    """One open connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, clock: Clock) -> None:
        self._receive = receive
        self._send = send
        self._clock = clock
        self._line: Line | None = scope.get("extensions", {}).get(LINE)
        self._outbox: deque[tuple[str, int]] = deque()
        self._unsent = 0
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._counted = 0
        self._window_ends = 0.0
        self.subject = ""
        self.proof: Proof | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def stopping(self) -> asyncio.Event | None:
        """Set when the server is about to end: what is under way may be finished, nothing begun."""
        return self._line.stopping if self._line is not None else None

    async def receive(self) -> Said:
        """The next message. Raises SocketEnded."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._closed = True
            raise SocketEnded(message.get("code") or 1005)
        text = message.get("text")
        if text is None:
            await self.close(UNSUPPORTED, "text messages only")
            raise SocketEnded(UNSUPPORTED)
        wait = self._over_limit()
        if wait and self._counted > 2 * MESSAGES:
            await self.close(POLICY_VIOLATION, "too many messages")
            raise SocketEnded(POLICY_VIOLATION)
        return Said(text, wait)

    def send(self, text: str) -> None:
        """Send it as soon as the peer reads. One that leaves too much unread is cut off; a single message may be
        longer than that."""
        if self._closed:
            return
        data = text.encode()
        if self._unsent and self._unsent + len(data) > MAXIMUM_UNREAD:
            log.warning("a socket was cut: its peer does not read")
            self.cut()
            return
        self._unsent += len(data)
        self._outbox.append((text, len(data)))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye, after what is still to be sent."""
        if self._closed:
            return
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=1.0)
        if self._writer is not None:  # the peer does not read
            self.cut()
            return
        self._closed = True
        await self._quietly({"type": "websocket.close", "code": code, "reason": reason})

    def cut(self) -> None:
        """End it at once, whatever is unsent."""
        self._closed = True
        self._outbox.clear()
        if self._writer is not None:
            self._writer.cancel()
        if self._line is not None:
            self._line.cut()

    async def _write(self) -> None:
        try:
            while self._outbox:
                text, length = self._outbox.popleft()
                await self._quietly({"type": "websocket.send", "text": text})
                self._unsent -= length
        finally:
            self._writer = None

    async def _quietly(self, message: Message) -> None:
        try:
            await self._send(message)
        except (OSError, RuntimeError):  # the peer is gone; receive() will say so
            self._closed = True

    def _over_limit(self) -> float:
        now = self._clock.timestamp()
        if now >= self._window_ends:
            self._counted, self._window_ends = 0, now + MESSAGES_SECONDS
        self._counted += 1
        return self._window_ends - now if self._counted > MESSAGES else 0.0


class Sockets:
    """The sockets of one system in this process. `origins`: of the pages that may open one, beside the system's own.
    `ports`: where the system has its pages, if it listens on several."""

    def __init__(
        self,
        origins: Collection[str],
        clock: Clock,
        maximum: int = MAXIMUM_SOCKETS,
        *,
        ports: Collection[int] = (),
    ) -> None:
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._ports = frozenset(ports)
        self._clock = clock
        self._maximum = maximum
        self._open: set[Socket] = set()
        self._of_one: dict[str, int] = {}
        self._rounds: asyncio.Task[None] | None = None

    def count(self) -> int:
        return len(self._open)

    def from_a_known_page(self, scope: Scope) -> bool:
        """Whether the browser was on a page that may do this. Programs that are no browsers say nothing of pages."""
        found = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"origin", b"host")}
        origin = found.get(b"origin")
        if origin is None:
            return True
        return origin.lower() in self._origins or self._is_own(origin, found.get(b"host", ""))

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            page, here = urlsplit(origin), urlsplit(f"//{host}")
            if page.netloc and page.netloc.lower() == here.netloc.lower():
                return True
            return page.port in self._ports and _machine(page.hostname) == _machine(here.hostname)
        except ValueError:  # neither is an address
            return False

    @asynccontextmanager
    async def open(self, scope: Scope, receive: Receive, send: Send) -> AsyncIterator[Socket | None]:
        """Accept a connection; None, and it is refused (403), if its page may not do this or there are too many."""
        await receive()  # websocket.connect
        full = len(self._open) >= self._maximum
        if full or not self.from_a_known_page(scope):
            reason = "there are too many" if full else "pages of this origin may not open one"
            log.warning("a socket was refused: %s", reason, extra={"origin": _origin(scope)})
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            yield None
            return
        socket = Socket(scope, receive, send, self._clock)
        self._open.add(socket)
        if self._rounds is None:
            self._rounds = asyncio.create_task(self._look())
        try:
            await send({"type": "websocket.accept"})
            yield socket
        finally:
            self._open.discard(socket)
            self._release(socket)
            if not self._open and self._rounds is not None:
                self._rounds.cancel()
                self._rounds = None

    def claim(self, socket: Socket, subject: str) -> bool:
        """Whether one more may belong to this user or address; then this one does."""
        if socket.subject == subject:
            return True
        if self._of_one.get(subject, 0) >= MAXIMUM_OF_ONE:
            return False
        self._release(socket)
        socket.subject = subject
        self._of_one[subject] = self._of_one.get(subject, 0) + 1
        return True

    def _release(self, socket: Socket) -> None:
        if socket.subject:
            left = self._of_one.pop(socket.subject, 1) - 1
            if left:
                self._of_one[socket.subject] = left
            socket.subject = ""

    async def _look(self) -> None:
        """Close every socket whose proof holds no longer."""
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            for socket in tuple(self._open):
                if socket.proof is not None and socket in self._open and not await _holds(socket.proof):
                    await socket.close(POLICY_VIOLATION, "session ended")


def _machine(name: str | None) -> str | None:
    return LOOPBACK if name in ("127.0.0.1", "::1") else name


def _origin(scope: Scope) -> str:
    found = next((value for name, value in scope["headers"] if name == b"origin"), b"")
    return found[:200].decode("latin-1")


async def _holds(proof: Proof) -> bool:
    """Whoever is to say may be away: then it holds until he is back."""
    with contextlib.suppress(Exception):
        try:
            await proof()
        except Problem as problem:
            return problem.kind is not Kind.UNAUTHENTICATED
    return True
