"""Commands as an operator runs them, without the second that each import of the product takes.

One process imports the command line and then forks for each command: every command is a process of its own, with its
own environment, folder, files and exit code, in which `main()` runs as the installed script runs it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.processes import environment

FORKING = """
import gc, json, os, sys
import bedplate.cli
import aiosmtplib, alembic.command, alembic.config, typer.rich_utils  # what a command loads when it needs it
import bedplate.kernel.postgres, bedplate.kernel.redis, bedplate.kernel.remote

gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{status}\\n")
        sys.stdout.flush()
        continue
    for number, path in enumerate(job["files"]):
        os.dup2(os.open(path, os.O_WRONLY if number else os.O_RDONLY), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", errors="backslashreplace", buffering=1)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    if job["user"] is not None:
        os.setuid(job["user"])
    sys.argv = ["bedplate", *job["arguments"]]
    try:
        bedplate.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking a large process apart would take longer than the command
"""


class Commands:
    """Runs commands, one after the other. Use it as a context manager."""

    def __enter__(self) -> Self:
        self._forking = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._forking.communicate()

    def run(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        text: str,
        settings: Mapping[str, str],
        user: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end, in `folder`; `text` is its standard input. `user`: run as somebody else."""
        assert self._forking.stdin is not None
        assert self._forking.stdout is not None
        with tempfile.TemporaryDirectory() as place:
            files = [Path(place) / name for name in ("in", "out", "err")]
            for file in files:
                file.write_text(text if file.name == "in" else "")
            job = {
                "arguments": arguments,
                "folder": str(folder),
                "environment": environment(**settings),
                "user": user,
                "files": [str(file) for file in files],
            }
            self._forking.stdin.write(json.dumps(job) + "\n")
            self._forking.stdin.flush()
            status = int(self._forking.stdout.readline())
            out, err = (file.read_text() for file in files[1:])
        return subprocess.CompletedProcess(arguments, status, out, err)
