"""What can be read in files, and how it is cut; nothing that a stranger has made can hurt."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.modules.files.texts import MAXIMUM_TEXT, OVERLAP, PASSAGE, PDF_SECONDS, passages_of, text_in
from tests.modules.files import pdfs

PDF, TEXT = "application/pdf", "text/plain"


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 65_536):
        yield content[at : at + 65_536]


async def text(kind: str, content: bytes) -> str:
    return await text_in(kind, pieces(content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"Hello\r\nWorld\r", "Hello\nWorld"),
        ("Grüße, 王".encode(), "Grüße, 王"),
        ("\ufeffGrüße".encode(), "Grüße"),
        ("Grüße".encode("utf-16"), "Grüße"),
        ("Grüße".encode("cp1252"), "Grüße"),
        (b"a\0b\x07c\x1b[31m", "a b c [31m"),
        (b"a   b\t\tc\n\n\n\n\nd", "a b c\n\nd"),
        (b"", ""),
        (b" \n ", ""),
    ],
)
async def test_a_text_is_read_as_it_was_written(content: bytes, said: str) -> None:
    assert await text(TEXT, content) == said


async def test_only_so_much_of_a_long_text_is_read() -> None:
    assert len(await text(TEXT, b"word " * 2_000_000)) <= MAXIMUM_TEXT
    assert len(await text(TEXT, "🎁".encode() * 1_000_000)) == MAXIMUM_TEXT


async def test_the_text_of_a_pdf_is_read_page_by_page() -> None:
    said = await text(PDF, pdfs.pdf("The first page.", "Caf\xe9 on the second."))
    assert said.splitlines() == ["The first page.", "", "Café on the second."]


@pytest.mark.parametrize(
    "content",
    [b"", b"%PDF-1.7", b"%PDF-1.7\n" + b"garbage " * 1000, pdfs.pdf("cut off")[:200], b"not a PDF", bytes(100_000)],
)
async def test_what_is_no_pdf_says_nothing(content: bytes) -> None:
    assert await text(PDF, content) == ""


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def started_since(before: list[int]) -> set[int]:
    deadline = time.monotonic() + PDF_SECONDS
    while time.monotonic() < deadline and not set(children()) - set(before):
        time.sleep(0.01)
    return set(children()) - set(before)


def environment_of(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


@pytest.mark.parametrize("make", [pdfs.bomb, pdfs.endless, pdfs.laborious], ids=lambda make: make.__name__)
async def test_a_hostile_pdf_takes_neither_time_nor_memory_nor_this_process(make: object) -> None:
    assert callable(make)
    content, before, began = make(), children(), time.monotonic()
    used = psutil.Process().memory_info().rss
    assert len(await text(PDF, content)) <= MAXIMUM_TEXT
    assert time.monotonic() - began < PDF_SECONDS + 1
    assert psutil.Process().memory_info().rss - used < 32 * 2**20
    assert children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_pdf_is_read_without_the_secrets_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_SECRET_KEY", "a canary")
    before = children()
    reading = asyncio.create_task(text(PDF, pdfs.laborious()))
    (child,) = await asyncio.to_thread(started_since, before)
    assert b"canary" not in environment_of(child)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert children() == before, "whoever gives up leaves nobody behind"


def test_a_short_text_is_one_passage() -> None:
    assert passages_of("") == []
    assert passages_of("Hello") == ["Hello"]
    assert passages_of("x" * PASSAGE) == ["x" * PASSAGE]


def test_a_text_is_cut_where_something_ends_and_the_parts_overlap() -> None:
    sentences = [f"This is sentence number {number} of the text." for number in range(200)]
    parts = passages_of(" ".join(sentences))
    assert all(len(part) <= PASSAGE for part in parts)
    assert all(part.endswith(".") for part in parts)
    for one, next_ in zip(parts, parts[1:], strict=False):
        shared = next(next_[:size] for size in range(OVERLAP, 0, -1) if one.endswith(next_[:size].rstrip()))
        assert len(shared) > OVERLAP // 2
    assert all(any(sentence in part for part in parts) for sentence in sentences)


def test_paragraphs_are_kept_together_where_they_fit() -> None:
    paragraphs = ["word " * 100 + f"end{number}." for number in range(10)]
    parts = passages_of("\n\n".join(paragraph.strip() for paragraph in paragraphs))
    assert all(part.endswith((".", "end9.")) for part in parts)


def test_a_text_without_any_blank_is_cut_all_the_same() -> None:
    parts = passages_of("王" * 10_000)
    assert all(len(part) <= PASSAGE for part in parts)
    assert len(parts) < 10_000 / (PASSAGE - OVERLAP) + 2


@given(st.text(max_size=5000))
def test_nothing_is_left_out(said: str) -> None:
    parts = passages_of(said)
    assert all(0 < len(part) <= PASSAGE for part in parts)
    at = 0
    for part in parts:
        found = said.find(part, max(0, at - OVERLAP - 1))
        assert found >= 0
        assert not said[at:found].strip()
        at = found + len(part)
    assert not said[at:].strip()
