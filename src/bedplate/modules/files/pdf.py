"""The text of a PDF, taken in a process of its own, which may take little and is killed when it takes too long.

PDFs are programs that strangers have written. What this process may do is limited before the first byte is read: no
memory beyond a limit, no computing beyond some seconds, no file, no child. Run as `python -m` with the PDF as its
input; what it prints, page by page, is the text.
"""

import logging
import resource
import sys
from io import BytesIO

from pypdf import PdfReader

MEMORY = 1024 * 1024 * 1024
CPU_SECONDS = 5
PAGES = 500


def restrict() -> None:
    """For the rest of this process's life."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    restrict()
    logging.disable()
    reader = PdfReader(BytesIO(sys.stdin.buffer.read()))
    if reader.is_encrypted:
        reader.decrypt("")
    for page in reader.pages[:PAGES]:
        # At once: what has come out before something goes wrong is kept.
        sys.stdout.buffer.write(page.extract_text().encode(errors="replace") + b"\n\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
