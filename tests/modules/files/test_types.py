"""Types of files, by what is in them."""

import time

import pytest

from bedplate.modules.files.types import type_of

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a.txt", "application/pdf"),
        (b"%PDF-1.4\n1 0 obj\n<</Type/Catalog>>", "a.pdf", "application/pdf"),
        (PNG, "a.pdf", "image/png"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", "a.png", "image/jpeg"),
        (b"PK\x03\x04" + bytes(60), "a.txt", "application/zip"),
        (b"MZ\x90\x00" + bytes(60), "holiday.jpg", "application/x-msdownload"),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "a.txt", "application/x-executable"),
        (bytes(range(256)), "a.txt", "application/octet-stream"),
        (b"\x00", "a.md", "application/octet-stream"),
        (b"", "a.pdf", "text/plain"),
        (b"Hello", "a.pdf", "text/plain"),
        (b"Hello", "no ending", "text/plain"),
        ("Grüße".encode(), "a.txt", "text/plain"),
        ("Grüße und noch viel mehr Text".encode("latin-1"), "a.txt", "text/plain"),
        ("\ufeffGrüße".encode(), "a.txt", "text/plain"),
        ("Grüße".encode("utf-16"), "a.txt", "text/plain"),
        ("ä".encode() * 5000, "a.txt", "text/plain"),
        (b"x" + "ä".encode() * 5000, "a.txt", "text/plain"),
        (b"# Title\n\ntext", "README.md", "text/markdown"),
        (b"a,b\n1,2\n", "table.CSV", "text/csv"),
        (b'{"a": 1}', "a.json", "application/json"),
        (b"BM is how this text begins", "a.txt", "text/plain"),
        (b"ID3 is how this text begins", "a.txt", "text/plain"),
        (b"GIF89a<script>alert(1)</script>", "a.gif", "text/html"),
        (b"<!DOCTYPE html><html><body>", "a.txt", "text/html"),
        (b"  \n<HTML>", "a.csv", "text/html"),
        (b"\xef\xbb\xbf<!doctype html>", "a.txt", "text/html"),
        ("<html>".encode("utf-16"), "a.txt", "text/html"),
        (b"<!-- a --><script>alert(1)</script>", "a.md", "text/html"),
        (b"text before <iframe src=x>", "a.txt", "text/html"),
        (SVG, "a.png", "image/svg+xml"),
        (b'<?xml version="1.0"?>\n<!-- c -->\n' + SVG, "a.xml", "image/svg+xml"),
        (b"alert(document.cookie)", "a.js", "text/plain"),
        (b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*", "a.com", "text/plain"),
    ],
)
def test_the_type_is_what_is_in_the_file(content: bytes, name: str, kind: str) -> None:
    assert type_of(content, name) == kind


def test_only_the_beginning_is_looked_at() -> None:
    assert type_of(b"x" * 10_000 + b"\0", "a.txt") == "text/plain"
    assert type_of(b"<!--" * 100_000, "a.txt") == "text/plain"


@pytest.mark.parametrize("separator", [b"", b" "])
def test_many_comments_are_looked_at_once(separator: bytes) -> None:
    began = time.perf_counter()
    assert type_of((b"<!---->" + separator) * 25 + b"x", "a.txt") == "text/plain"
    assert type_of(b"<!-- a -->\n<!-- - -> b --><!-- <html> -->" * 20 + b"<svg>", "a.txt") == "image/svg+xml"
    assert time.perf_counter() - began < 0.5
