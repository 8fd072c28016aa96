"""Real server processes: the `bedplate` command of this environment, on a free port, with a log to read."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

COMMAND = str(Path(sys.executable).with_name("bedplate"))
READY_SECONDS = 30.0
SECRET = "4f1d8c0b7a6e5d9382c1b0a9f8e7d6c5b4a39281706f5e4d"
SETTINGS = ("BEDPLATE_", "DATABASE_URL", "REDIS_URL", "SMTP_URL", "API_SECRET_KEY", "JWT_SECRET_KEY", "ENVIRONMENT")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without the product's own settings, but with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return {**inherited, "API_SECRET_KEY": SECRET, **settings}


def command(folder: Path, *arguments: str, text: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `bedplate ...` to its end, with its data in `folder`. `text` is its standard input."""
    return subprocess.run(
        [COMMAND, *arguments, "--data", str(folder / "data")],
        cwd=folder,
        env=environment(**settings),
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Server:
    """One `bedplate serve ...` or `bedplate up ...`, its data in `folder`. Killed at the end if it still runs.

    `before` stands before the command, such as a tracer.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, *arguments: str, before: tuple[str, ...] = (), **settings: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = 0
        number = len(list(folder.glob("*.log")))
        self._log = folder / f"server-{number}.log"
        self._words = folder / f"server-{number}.out"
        self._line = [*before, COMMAND, *arguments, "--port", "0", "--data", str(self.data)]
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What the process has logged so far."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log, self._words.open("wb") as words:
            self._process = subprocess.Popen(
                self._line,
                cwd=self.folder,
                env=environment(**self.settings),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def client(self, address: str = "127.0.0.1", **options: Any) -> httpx2.AsyncClient:
        """A client that calls from `address`, any of this machine's own."""
        transport = httpx2.AsyncHTTPTransport(local_address=address, limits=httpx2.Limits(max_connections=None))
        return httpx2.AsyncClient(base_url=self.url, transport=transport, timeout=30, **options)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 20.0) -> int:
        """The exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """End the process and the workers that it started, if they still run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if not self.port and (printed := re.search(r"http://[\d.]+:(\d+)", self._words.read_text())):
                self.port = int(printed[1])
            if self.port and self._answers():
                return
            time.sleep(0.02)
        raise AssertionError(f"the server did not start: {self.log[-2000:]}")

    def _answers(self) -> bool:
        # `up` has no /health of its own: its start page says the same.
        path = "/" if "up" in self._line else "/health"
        try:
            return httpx2.get(f"{self.url}{path}", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False
