"""Forms with a file, as they come from clients and from strangers, in pieces of any size."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request

from bedplate.kernel import multipart
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.multipart import MAXIMUM_PARTS, STEP, FileForm

BOUNDARY = b"----a boundary"


def part(name: str, content: bytes, filename: str | None = None, more: str = "") -> bytes:
    known = f'; filename="{filename}"' if filename is not None else ""
    return f'Content-Disposition: form-data; name="{name}"{known}\r\n{more}\r\n'.encode() + content


def form(*parts: bytes, end: bytes = b"--") -> bytes:
    body = b"".join(b"--" + BOUNDARY + b"\r\n" + each + b"\r\n" for each in parts)
    return body + b"--" + BOUNDARY + end + b"\r\n"


def request(body: bytes, size: int = 65_536, content_type: str | None = None) -> Request:
    """One whose body comes in pieces of this size."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]

    async def messages() -> AsyncIterator[dict[str, object]]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    coming = messages()
    kind = content_type or f'multipart/form-data; boundary="{BOUNDARY.decode()}"'

    async def receive() -> dict[str, object]:
        return await anext(coming)

    return Request({"type": "http", "headers": [(b"content-type", kind.encode("latin-1"))]}, receive)


async def read(body: bytes, size: int = 65_536) -> tuple[str, bytes]:
    found = FileForm(request(body, size), "file")
    return await found.filename(), b"".join([chunk async for chunk in found.chunks()])


TRICKY = b"\r\n--" + BOUNDARY[:-1] + b"\r\n--\r\n\r\n--" + BOUNDARY[:5] + b"\r" + bytes(range(256)) + b"\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 65_536])
@pytest.mark.parametrize("content", [b"", b"x", TRICKY, random.Random(1).randbytes(5000)], ids=range(4))
async def test_the_file_is_read_whatever_the_pieces_are(content: bytes, size: int) -> None:
    body = form(part("note", b"hello"), part("file", content, "a.txt", "Content-Type: a/b\r\n"), part("x", b"y", "z"))
    assert await read(body, size) == ("a.txt", content)


@pytest.mark.parametrize(
    ("sent", "read_as"),
    [
        ("Größe 王.txt", "Größe 王.txt"),
        ("", ""),
        ("a%22b.txt", "a%22b.txt"),
        ('a\\"b.txt', 'a"b.txt'),
        ("a;b.txt", "a;b.txt"),
    ],
)
async def test_names_are_read_as_browsers_write_them(sent: str, read_as: str) -> None:
    assert await read(form(part("file", b"x", sent))) == (read_as, b"x")


async def test_a_name_that_is_no_text_is_a_name_all_the_same() -> None:
    body = form(b'Content-Disposition: form-data; name="file"; filename="a\xff.txt"\r\n\r\nx')
    assert await read(body) == ("a\ufffd.txt", b"x")


async def test_the_first_of_several_files_is_taken() -> None:
    assert await read(form(part("file", b"first", "1"), part("file", b"second", "2"))) == ("1", b"first")


WHOLE = form(part("file", b"content " * 100, "a.txt"))


@pytest.mark.parametrize("cut", [*range(0, 120, 7), len(WHOLE) - 100, len(WHOLE) - 20, len(WHOLE) - 5, len(WHOLE) - 3])
async def test_a_form_that_is_cut_off_is_no_file(cut: int) -> None:
    with pytest.raises(InvalidField):
        await read(WHOLE[:cut])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        b"--" + BOUNDARY,
        form(),
        form(part("other", b"x", "a.txt")),
        form(part("file", b"x")),
        form(part("FILE", b"x", "a.txt")),
        form(b"\r\nno headers"),
        form(b"Content-Disposition form-data\r\n\r\nx"),
        form(b"Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx"),
        form(b"".join(b"X-%d: y\r\n" % number for number in range(100)) + part("file", b"x", "a")),
        form(*[part("x", b"y")] * MAXIMUM_PARTS, part("file", b"x", "a")),
    ],
    ids=range(12),
)  # fmt: skip
async def test_what_is_no_form_with_a_file_is_refused(body: bytes) -> None:
    for size in (1000, 65_536):
        with pytest.raises(InvalidField) as refused:
            await read(body, size)
        assert refused.value.details["field"] == "file"
        assert "nothing" not in str(refused.value), "what was sent is not said again"


@pytest.mark.parametrize(
    "kind",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=x",
     "multipart/form-data; boundary=" + "x" * 10_000, "multipart/form-data; boundary*=utf-8''x"],
)  # fmt: skip
async def test_what_does_not_say_that_it_is_a_form_is_refused(kind: str) -> None:
    with pytest.raises(InvalidField):
        FileForm(request(WHOLE, content_type=kind or "x"), "file")


async def test_a_client_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "IDLE_SECONDS", 0.05)

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        raise AssertionError

    kind = f"multipart/form-data; boundary={BOUNDARY.decode().replace(' ', '')}".encode()
    with pytest.raises(InvalidField, match="stalled"):
        await FileForm(Request({"type": "http", "headers": [(b"content-type", kind)]}, receive), "file").filename()


async def test_a_client_that_goes_away_is_given_up() -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    kind = b"multipart/form-data; boundary=x"
    with pytest.raises(InvalidField, match="broken off"):
        await FileForm(Request({"type": "http", "headers": [(b"content-type", kind)]}, receive), "file").filename()


async def test_others_have_their_turn_while_a_large_piece_is_taken_apart() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    body = form(part("file", (b"\r\n--" + BOUNDARY + b"x") * 20_000, "a.txt"))
    waiting = asyncio.create_task(others())
    await read(body, len(body))
    waiting.cancel()
    assert turns >= len(body) // STEP
