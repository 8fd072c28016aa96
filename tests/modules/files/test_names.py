"""Names of files, whatever a client says."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.modules.files.names import MAXIMUM_BYTES, safe_name


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("document.pdf", "document.pdf"),
        ("Größe 王 🎁.txt", "Größe 王 🎁.txt"),
        ("a\u0308.txt", "ä.txt"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Windows\\System32\\drivers\\etc\\hosts", "hosts"),
        ("a/b\\c/d.txt", "d.txt"),
        ("..", "file"),
        (".", "file"),
        ("", "file"),
        ("/", "file"),
        ("   ", "file"),
        ("\0", "file"),
        ("nul\0byte.txt", "nulbyte.txt"),
        ("line\r\nend.txt", "lineend.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("zero\u200bwidth.txt", "zerowidth.txt"),
        ("half \ud800.txt", "half .txt"),
        ("line\u2028separator.txt", "lineseparator.txt"),
        ('quo"te<b>|?*:.txt', "quo_te_b_____.txt"),
        (".htaccess", "htaccess"),
        ("...dots...", "dots"),
        ("trailing. . ", "trailing"),
        ("CON", "_CON"),
        ("con.txt", "_con.txt"),
        ("Lpt1.tar.gz", "_Lpt1.tar.gz"),
        ("COM¹", "_COM¹"),
        ("console.txt", "console.txt"),
        ("x" * 300 + ".pdf", "x" * 251 + ".pdf"),
        ("é" * 200 + ".pdf", "é" * 125 + ".pdf"),
        ("x." + "y" * 300, "x." + "y" * 253),
        ("🎁" * 100, "🎁" * 63),
    ],
)
def test_a_name_is_made_safe(said: str, kept: str) -> None:
    assert safe_name(said) == kept


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=400))
def test_any_text_becomes_a_safe_name_that_stays_as_it_is(said: str) -> None:
    name = safe_name(said)
    assert 0 < len(name.encode()) <= MAXIMUM_BYTES
    assert not set(name) & set('/\\<>:"|?*\0\r\n')
    assert name not in (".", "..")
    assert name == name.strip()
    assert not name.startswith(".")
    assert unicodedata.is_normalized("NFC", name)
    assert safe_name(name) == name
