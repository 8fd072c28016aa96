"""The WebSocket protocol: uvicorn's, with bounds on what a peer can make us keep, and a stop that lets answers end."""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAXIMUM_MESSAGE = 65_536
MAXIMUM_FRAMES = 1024  # of one message
# In a minute, pings and pongs too. Each costs microseconds however small it is, and a read may bring forty thousand.
MAXIMUM_HEARD = 4096
HEARD_SECONDS = 60.0
STEP = 4096  # bytes that are taken apart before what was in them is looked at
MAXIMUM_UNREAD = 1_048_576  # bytes that wait for a peer that does not read
LINGER_SECONDS = 5.0
REASON_SECONDS = 1.0
PING_SECONDS = 20.0
LINE = "bedplate.line"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Line:
    """What an application knows of the connection below: whether the server is stopping, and how to cut it off. To
    close a connection in the usual way would wait for a peer that does not read."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.stopping = asyncio.Event()

    def cut(self) -> None:
        self._transport.abort()


class SocketProtocol(WebSocketsSansIOProtocol):
    """`shutdown` first asks the application to come to an end; after five seconds at the most the connection is closed
    (1012)."""

    _line: Line | None = None
    _stopping_since: float | None = None
    _heard = 0
    _heard_until = 0.0

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), STEP):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + STEP])
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # Not a request that the library reads, such as one with a very long line; uvicorn would say nothing.
            self.transport.write(b"".join(self.conn.data_to_send()) or BAD_REQUEST)
            self.transport.close()

    def handle_events(self) -> None:
        now = self.loop.time()
        if now >= self._heard_until:
            self._heard, self._heard_until = 0, now + HEARD_SECONDS
        new = len(self.conn.events)
        self._heard += new
        if self._heard <= MAXIMUM_HEARD:
            super().handle_events()
            return
        self.conn.events_received()  # forgotten
        if not new:
            return
        if self.close_sent:
            self.transport.abort()
        else:
            self._fail(1008)

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self._line = Line(self.transport)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[LINE] = self._line

    def shutdown(self) -> None:
        now = self.loop.time()
        if self._line is not None and self.handshake_complete and not self.close_sent:
            if self._stopping_since is None:
                self._stopping_since = now
                self._line.stopping.set()
                return
            if now - self._stopping_since < self._linger_seconds():
                return
        if self.transport.is_closing():
            self.transport.abort()  # asked again, and still there: its peer does not read
            return
        super().shutdown()
        self.close_sent = True

    def _linger_seconds(self) -> float:
        """Half of the time that the server gives itself, if that is little."""
        return min(LINGER_SECONDS, (self.config.timeout_graceful_shutdown or 2 * LINGER_SECONDS) / 2)

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > MAXIMUM_UNREAD:
            self.transport.abort()
            return
        super().handle_ping()

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MAXIMUM_FRAMES:
            self._fail(1009)
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn would log a traceback for it
                self._fail(1007)
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Say why, and read on for a moment without looking: a connection that is closed while its peer still writes
        is reset, and the reason lost."""
        if self.close_sent:
            return
        reason = self.conn.close_sent
        assert reason is not None
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": reason.code, "reason": reason.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(REASON_SECONDS, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _fail(self, code: int) -> None:
        self.frames = []
        self.conn.fail(code)
        self.handle_parser_exception()
