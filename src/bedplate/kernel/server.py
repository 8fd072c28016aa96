"""Serving: uvicorn on sockets of ours, with a stop that loses nothing that was sent.

uvicorn's own stop closes idle keep-alive connections at once, and with them requests that are already in the socket.
Here: take every connection that was made before closing the listeners, answer everything with `Connection: close`,
and close an idle connection only when it has been silent and nothing waits to be read from it.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import multiprocess

from bedplate.kernel.frames import MAXIMUM_MESSAGE, PING_SECONDS, SocketProtocol
from bedplate.kernel.settings import OperatorError
from bedplate.kernel.telemetry import shared_files

TICK = 0.02
SILENT_SECONDS = 1.0
STOPPING_SINCE = "bedplate.stopping_since"
MAXIMUM_HEAD = 65_536
HEAD_SECONDS = 15.0
BODY_STEP = 65_536
# Of what is sent when its request is already answered, or as trailers, and nobody reads: as much as a polite client can
# have under way, in so many pieces.
UNREAD_BYTES = 64 * 1024 * 1024
UNREAD_PIECES = 65_536
# Requests of one connection that wait for the answer to one before them: each is kept, a kilobyte and a half.
WAITING_REQUESTS = 1_024
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
# linux/filter.h, asm-generic/socket.h: a packet filter of one instruction, "return 0 bytes".
BPF_RETURN = 0x06
SO_ATTACH_FILTER = 26


class DrainingServer(uvicorn.Server):
    """A uvicorn server whose shutdown drains."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            if not self.force_exit:
                # uvicorn would raise them again and end as if killed; a stop that has drained is a success.
                self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # For the application, which is told to end when the connections are gone: its time runs from here too.
        began = self.lifespan.state[STOPPING_SINCE] = time.monotonic()
        for listener in sockets or []:
            await self._take_the_last(listener)
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self.server_state.default_headers.append((b"connection", b"close"))
        while self.server_state.connections and not self.force_exit:
            waited = time.monotonic() - began
            if waited > self.config.timeout_graceful_shutdown:  # type: ignore[operator]
                break
            for connection in list(self.server_state.connections):
                if not hasattr(connection, "cycle") or (waited > SILENT_SECONDS and _silent(connection)):
                    connection.shutdown()
            await asyncio.sleep(TICK)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wait_tasks_to_complete(), 1.0)
        for task in list(self.server_state.tasks):
            task.cancel()
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _take_the_last(self, listener: socket.socket) -> None:
        """Accept what waits on a listener: closing it would reset connections on which requests have been sent."""
        _let_nobody_in(listener)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody waits
                return
            await loop.connect_accepted_socket(
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                    config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
                ),
                connection,
            )


class _JoinedWrites:
    """A transport that writes once in a turn of the loop. uvicorn writes head and body of an answer by themselves,
    and the second system call costs as much as a tenth of a small answer."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts and not self._transport.is_closing():  # the peer may have gone since
            self._transport.write(b"".join(self._parts))
        self._parts.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol on joined writes, with bounds on the size of a request's head and on the time of both its
    parts. `body_seconds`: in this time a body ends, or BODY_STEP more bytes of it come. `unread_seconds`: so long it is
    waited for a peer that does not read, then the connection is cut: a stream of events would stand for ever."""

    body_seconds = 30.0
    unread_seconds = 60.0

    _head_bytes: int | None = 0  # None: the head is complete, what comes is body
    _body_bytes = 0  # since the deadline was set
    _unread_bytes = 0
    _unread_pieces = 0
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
        self._close_in(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self._cancel_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel_unread()
        self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel_unread()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._close_in(HEAD_SECONDS)
        else:
            self._body_bytes += len(data)
            if self._body_bytes >= BODY_STEP:
                self._cancel_deadline()
        super().data_received(data)
        if self._head_bytes is None:
            if self._deadline is None:
                self._body_bytes = 0
                self._close_in(self.body_seconds)
        elif self._head_bytes > MAXIMUM_HEAD:
            self.transport.write(TOO_LARGE_HEAD)
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_bytes is not None:
            super().on_header(name, value)
        else:  # a trailer
            self._pass_over(len(name) + len(value))

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._pass_over(len(body))
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._unread_bytes = self._unread_pieces = 0
        self._cancel_deadline()
        super().on_headers_complete()
        if len(self.pipeline) > WAITING_REQUESTS:
            # What was queued goes with the connection, and what still comes of this read with it.
            self.pipeline.clear()
            self.transport.close()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._cancel_deadline()
        super().on_message_complete()

    def _pass_over(self, size: int) -> None:
        self._unread_bytes += size
        self._unread_pieces += 1
        if self._unread_bytes > UNREAD_BYTES or self._unread_pieces > UNREAD_PIECES:
            self.transport.close()

    def _close_in(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Worker(multiprocess.Process):
    """A server process that drains."""

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = DrainingServer(self.config)
        return self._server


class _Supervisor(multiprocess.Multiprocess):
    def terminate_all(self) -> None:
        # As long as anybody holds the listeners open, connections are taken that nobody will answer.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def _let_nobody_in(listener: socket.socket) -> None:
    """On Linux, have the kernel drop new connections to a listener, which may be shared with other processes.

    Clients try again after a second and are refused by then. Elsewhere a connection that is made between the last
    accept and the close is reset, a matter of microseconds.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _silent(connection: Any) -> bool:
    """Whether an HTTP connection is between requests and nothing has arrived on it."""
    if connection.cycle is not None and not connection.cycle.response_complete:
        return False
    descriptor = connection.transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not poll.poll(0)


def listen(host: str, port: int, remedy: str = "choose another with --port") -> socket.socket:
    """A bound socket. `remedy`: what the operator can do where the port is taken.

    Raises:
        OperatorError: the port is taken or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, else asyncio leaves Nagle's algorithm on, and a small answer waits 40 ms for its acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise OperatorError(f"port {port} on {host} is taken; {remedy}") from None
        raise OperatorError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', error)}") from None
    listener.set_inheritable(True)
    return listener


def run(target: str, listeners: list[socket.socket], *, workers: int, drain_seconds: float, proxies: list[str]) -> None:
    """Serve the application that the factory `target` ("package.module:function") makes on all these sockets, until
    SIGINT or SIGTERM."""
    config = uvicorn.Config(
        target,
        factory=True,
        workers=workers,
        loop="uvloop" if os.name == "posix" else "asyncio",
        http=Protocol,
        ws=SocketProtocol,
        ws_max_size=MAXIMUM_MESSAGE,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        ws_per_message_deflate=False,  # memory for each socket, and bombs
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        backlog=2048,
    )
    if workers == 1:
        server = DrainingServer(config)
        server.run(sockets=listeners)
        if not server.started:
            raise SystemExit(2)
        return
    with shared_files():
        multiprocess.Process = _Worker  # type: ignore[misc]  # the supervisor takes the class from its module
        _Supervisor(config, sockets=listeners).run()
