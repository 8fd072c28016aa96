"""Types of files, by what is in them: what a client says of its own file is worth nothing."""

import codecs
import re

import filetype

HEAD = 8192
UNKNOWN = "application/octet-stream"
TEXT = "text/plain"
HTML = "text/html"
SVG = "image/svg+xml"
PDF = "application/pdf"
MARKDOWN = "text/markdown"
CSV = "text/csv"
READABLE = frozenset({TEXT, MARKDOWN, CSV, PDF, "application/json"})
# Types that are text to the eye. What else looks like text is text, whatever its first letters are a sign of.
_WRITTEN = frozenset({PDF, "application/rtf", "application/postscript"})
# Kinds of plain text differ by nothing but how they are called.
_ENDINGS = {"md": MARKDOWN, "markdown": MARKDOWN, "csv": CSV, "json": "application/json"}
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# A comment ends where the first "-->" is and nowhere else: were there two ways to read one, many would have 2^n.
_MARKUP = re.compile(
    r"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(!doctype\s+)?(html|head|body|script|svg)\b", re.I | re.S
)
_ANYWHERE = re.compile(r"<(html|script|svg|iframe|body)\b", re.I)
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def type_of(head: bytes, filename: str) -> str:
    """The type of a file that begins with these bytes (8 KiB are looked at)."""
    head = head[:HEAD]
    written = _text(head)
    found = filetype.guess_mime(head) if head else None
    if written is None:
        return str(found or UNKNOWN)
    if found in _WRITTEN:
        return str(found)
    return _kind_of_text(written, filename)


def _text(head: bytes) -> str | None:
    """The text that these bytes are the beginning of, or None."""
    if head.startswith(_MARKS):
        return head.decode("utf-16", errors="replace")
    if _CONTROLS.search(head):
        return None
    try:
        # A character may be cut off at the end.
        return codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return head.decode("cp1252", errors="replace") if _mostly_letters(head) else None


def _mostly_letters(head: bytes) -> bool:
    """Whether it may be text of one byte a letter: few of them are beyond ASCII."""
    return sum(byte >= 0x80 for byte in head) * 4 < len(head)


def _kind_of_text(text: str, filename: str) -> str:
    ending = filename.rpartition(".")[2].lower()
    beginning = _MARKUP.match(text)
    if beginning:
        return SVG if beginning[2].lower() == "svg" else HTML
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    # What a browser could take for a page is called one, so that nobody shows it.
    return HTML if _ANYWHERE.search(text) else TEXT
