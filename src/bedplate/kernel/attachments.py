"""Attachments: files that strangers have made, sent so that no browser runs them. Ranges, validators, names (RFC 9110,
RFC 6266)."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bedplate.kernel.errors import Problem

log = logging.getLogger("bedplate.attachments")

Read = Callable[[int, int], AsyncGenerator[bytes, None]]

SEND_SECONDS = 60.0
UNTYPED = "application/octet-stream"
# What browsers run or draw by its type; a name that they do not know keeps them from trying.
_ACTIVE = re.compile(r"html|svg|script|(text|application)/xml", re.IGNORECASE)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z", re.ASCII)
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_FALLBACK = re.compile(r"[^ !#$&+.0-9A-Z^_`a-z{}~()\[\]=,;@-]")


@dataclass(frozen=True, slots=True)
class Attachment:
    """`read` gives so many bytes from a place on. `tag`: another one for other bytes."""

    filename: str
    size: int
    mime_type: str
    tag: str
    read: Read

    async def answer(self, request: Request) -> Response:
        """All of it or the range that was asked for, its headers alone (HEAD), or that it has not changed (304). The
        first of it is read before the answer begins: what fails then is an error of its own, as is a range that is not
        there (416)."""
        if self._is_known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=self._validators())
        wanted = self._wanted(request)
        if wanted is None:
            raise HTTPException(416, headers={**self._validators(), "Content-Range": f"bytes */{self.size}"})
        start, end = wanted
        headers = self._headers(end - start)
        partial = end - start < self.size
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{self.size}"
        status = 206 if partial else 200
        if request.method == "HEAD" or start == end:
            return _Headers(status_code=status, headers=headers)
        pieces = self.read(start, end - start)
        return _Pieces(await anext(pieces, b""), pieces, status, headers)

    def _validators(self) -> dict[str, str]:
        # Kept by the browser of whoever asked, and asked for again each time.
        return {"ETag": f'"{self.tag}"', "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes"}

    def _headers(self, length: int) -> dict[str, str]:
        return {
            **self._validators(),
            "Content-Type": UNTYPED if _ACTIVE.search(self.mime_type) else self.mime_type,
            "Content-Length": str(length),
            "Content-Disposition": disposition(self.filename),
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Referrer-Policy": "no-referrer",  # a signed address is a secret
        }

    def _is_known(self, header: str) -> bool:
        return header.strip() == "*" or f'"{self.tag}"' in _TAG.findall(header[:4096])

    def _wanted(self, request: Request) -> tuple[int, int] | None:
        """From where to where; None if there is nothing there."""
        everything = (0, self.size)
        condition = request.headers.get("if-range")
        if condition is not None and condition != f'"{self.tag}"':
            return everything
        asked = _RANGE.match(request.headers.get("range", ""))
        if asked is None or not (asked[1] or asked[2]):  # none, of another unit, or several: all of it is an answer too
            return everything
        if not asked[1]:
            last = int(asked[2])
            return (max(self.size - last, 0), self.size) if last and self.size else None
        start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else self.size
        if asked[2] and end <= start:
            return everything
        return (start, min(end, self.size)) if start < self.size else None


def disposition(filename: str) -> str:
    """`attachment` with the name, as every browser reads it."""
    plain = _FALLBACK.sub("_", filename)
    header = f'attachment; filename="{plain}"'
    return header if plain == filename else f"{header}; filename*=UTF-8''{quote(filename, safe='')}"


class _Headers(Response):
    """Without a body, whose length it tells."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        self.raw_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]


class _Pieces(_Headers):
    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes, None], status: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        try:
            async with aclosing(self._rest) as rest:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await _send(send, self._first)
                async for piece in rest:
                    if gone.done():  # nobody reads any more, and sending does not say so
                        return
                    await _send(send, piece)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (Problem, TimeoutError) as failure:
            # The connection is cut, which is how a client learns that this is not all.
            log.warning("a download was broken off", extra={"reason": type(failure).__name__})
        finally:
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, piece: bytes) -> None:
    """Whoever takes nothing for a minute is given up."""
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
