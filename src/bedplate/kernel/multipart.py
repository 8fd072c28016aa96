"""Forms with a file, as a stream: what Starlette's own form parser would first write to a temporary file."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from bedplate.kernel.errors import InvalidField

MAXIMUM_PARTS = 20
IDLE_SECONDS = 60.0
# Bytes that are taken apart in one turn of the loop. What nearly is a boundary, again and again, costs a hundred times
# what other bytes do, and a read may bring a quarter of a million of them.
STEP = 16_384
DRAIN_SECONDS = 2.0


class FileForm:
    """The file that a request's form has in `field`. Other parts are passed over.

    Read `filename`, then `chunks`; both raise InvalidField (of that field) for what is no such form.
    """

    def __init__(self, request: Request, field: str) -> None:
        self._field = field
        self._stream: AsyncIterator[bytes] = request.stream()
        self._parser = self._parser_for(request.headers.get("content-type", ""))
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""
        self._parts = 0
        self._inside = False
        self._filename: str | None = None
        self._pieces: list[bytes] = []
        self._whole = self._ended = False

    async def filename(self) -> str:
        """As the client says it."""
        while self._filename is None:
            await self._read("A file is required")
        return self._filename

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes of the file, and then the form to its end: only what has come whole is given whole."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._ended:
                return
            await self._read("The form is cut off")

    async def drain(self) -> None:
        """Take what is still coming, for a moment: a client that is sending does not read the answer."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self._stream:
                    pass
        except (TimeoutError, ClientDisconnect, HTTPException):  # too slow, gone, or over the limit of every body
            return

    async def _read(self, otherwise: str) -> None:
        """One more chunk of the request, or a refusal if there is none."""
        if self._ended:
            raise self._wrong(otherwise)
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                chunk = await anext(self._stream, b"")
        except TimeoutError:
            raise self._wrong("The upload has stalled") from None
        except ClientDisconnect:
            raise self._wrong("The upload was broken off") from None
        if not chunk:  # the last one, which closes every stream
            raise self._wrong(otherwise)
        try:
            for start in range(0, len(chunk), STEP):
                if start:
                    await asyncio.sleep(0)
                self._parser.write(chunk[start : start + STEP])
        except FormParserError:
            raise self._wrong("The form is malformed") from None

    def _parser_for(self, content_type: str) -> MultipartParser:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data":
            raise self._wrong("The request must be a form: multipart/form-data")
        if not boundary:  # who writes the header himself, as documents print it, keeps his client from adding it
            raise self._wrong("Content-Type names no boundary: leave it to the client that makes the form")
        callbacks = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._name_comes,
            "on_header_value": self._value_comes,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data_comes,
            "on_part_end": self._part_ends,
            "on_end": self._form_ends,
        }
        try:
            return MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError:
            raise self._wrong("The form is malformed") from None

    def _part_begins(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > MAXIMUM_PARTS:
            raise self._wrong(f"The form has more than {MAXIMUM_PARTS} parts")

    def _name_comes(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _value_comes(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ends(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        wanted = options.get(b"name") == self._field.encode() and b"filename" in options
        if wanted and self._filename is None:
            self._inside = True
            self._filename = options[b"filename"].decode(errors="replace")

    def _data_comes(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._pieces.append(data[start:end])

    def _part_ends(self) -> None:
        self._inside = False

    def _form_ends(self) -> None:
        self._ended = True

    def _wrong(self, reason: str) -> InvalidField:
        return InvalidField(field=self._field, reason=reason)
