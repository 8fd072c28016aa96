"""PDFs, made by hand: small ones that say something, and hostile ones."""

import zlib


def pdf(*pages: str) -> bytes:
    """One page for each text."""
    return assembled([f"BT /F1 12 Tf 50 700 Td ({page}) Tj ET".encode("latin-1") for page in pages])


def assembled(contents: list[bytes], compressed: bool = False) -> bytes:
    """A PDF of pages with these content streams."""
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for at, content in enumerate(contents):
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {5 + 2 * at} 0 R "
        objects.append(page.encode() + b"/Resources << /Font << /F1 3 0 R >> >> >>")
        stream = zlib.compress(content, 9) if compressed else content
        how = b"/Filter /FlateDecode " if compressed else b""
        objects.append(b"<< %s/Length %d >>\nstream\n%s\nendstream" % (how, len(stream), stream))
    return written(objects)


def written(objects: list[bytes]) -> bytes:
    file, places = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    file += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    return bytes(file)


def bomb() -> bytes:
    """A page of a few hundred kilobytes that is 400 MiB when it is unpacked."""
    return assembled([b"(x) Tj " * (60 * 2**20)], compressed=True)


def endless() -> bytes:
    """Pages whose tree leads back to itself."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R 3 0 R] /Count 1000000 >>",
        b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Parent 2 0 R /Count 1000000 >>",
    ]
    return written(objects)


def laborious() -> bytes:
    """One page with more operators than can be read in time."""
    return assembled([b"BT /F1 12 Tf " + b"1 0 0 1 5 5 Tm (some words) Tj " * 1_500_000 + b"ET"], compressed=True)
