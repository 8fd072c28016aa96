"""Texts: what can be read in a file, and how it is cut into passages. Nothing of it is trusted."""

import asyncio
import codecs
import logging
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator

from bedplate.modules.files.types import PDF

log = logging.getLogger("bedplate.files")

MAXIMUM_TEXT = 500_000
PASSAGE = 1000
OVERLAP = 150
PDF_SECONDS = 7.0
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# Only what is not one space already: most of a text is.
_BLANKS = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")
_AROUND_LINE_ENDS = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")
_ENDS = (re.compile(r"\n\n"), re.compile(r"[.!?]\s|\n"), re.compile(r"\s"))


async def text_in(mime_type: str, chunks: AsyncIterator[bytes]) -> str:
    """The text of a file, as far as it is taken; empty if there is none to be had."""
    if mime_type == PDF:
        return await asyncio.to_thread(_clean, await _pdf(chunks))
    content = await _beginning(chunks)
    return await asyncio.to_thread(lambda: _clean(_decoded(content)))


def passages_of(text: str) -> list[str]:
    """Parts of about a thousand characters, cut where something ends; each begins with the end of the one before."""
    found, start = [], 0
    while start < len(text):
        end = _end(text, start)
        if passage := text[start:end].strip():
            found.append(passage)
        if end == len(text):
            break
        start = _start(text, max(start + 1, end - OVERLAP), end)
    return found


def _end(text: str, start: int) -> int:
    """Where the passage that starts here ends: at a paragraph, a sentence or a word in its last half."""
    end = start + PASSAGE
    if end >= len(text):
        return len(text)
    for each in _ENDS:
        last = None
        for last in each.finditer(text, start + PASSAGE // 2, end):  # noqa: B007
            pass
        if last is not None:
            return last.end()
    return end


def _start(text: str, wanted: int, latest: int) -> int:
    """The beginning of a word from here on."""
    space = text.find(" ", wanted, latest)
    return wanted if space < 0 else space + 1


def _clean(text: str) -> str:
    text = _CONTROLS.sub(" ", text[:MAXIMUM_TEXT].replace("\r\n", "\n").replace("\r", "\n"))
    text = _AROUND_LINE_ENDS.sub("\n", _BLANKS.sub(" ", text))
    return _EMPTY_LINES.sub("\n\n", text).strip()


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    """As many bytes as can be that much text."""
    found = bytearray()
    async for chunk in chunks:
        found += chunk
        if len(found) >= 4 * MAXIMUM_TEXT:
            break
    return bytes(found[: 4 * MAXIMUM_TEXT])


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content)
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


async def _pdf(chunks: AsyncIterator[bytes]) -> str:
    # Without this process's environment: what runs there has no business with its secrets.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", "bedplate.modules.files.pdf", stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}
    )
    written = bytearray()
    try:
        async with asyncio.timeout(PDF_SECONDS):
            feeding = asyncio.create_task(_feed(process, chunks))
            try:
                if await _take(process, written):
                    await feeding  # a storage that has failed is not a PDF without text
                    await process.wait()
            finally:
                feeding.cancel()
    except TimeoutError:
        log.info("a PDF took too long; what was read of it until then is kept")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    if process.returncode and not written:
        log.info("nothing could be read of a PDF", extra={"exit": process.returncode})
    return written.decode(errors="replace")


async def _feed(process: Process, chunks: AsyncIterator[bytes]) -> None:
    assert process.stdin is not None
    try:
        async for chunk in chunks:
            process.stdin.write(chunk)
            await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):  # it has ended
        return
    finally:
        process.stdin.close()


async def _take(process: Process, written: bytearray) -> bool:
    """What it prints, up to as much as is wanted. Whether that was all."""
    assert process.stdout is not None
    while len(written) < 4 * MAXIMUM_TEXT and (piece := await process.stdout.read(65_536)):
        written += piece
    return len(written) < 4 * MAXIMUM_TEXT
