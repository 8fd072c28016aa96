"""A server of the S3 protocol: moto, as a process of its own, that may be stopped, frozen and asked what it holds."""

import re
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

import httpx2

from tests.kernel.servers import free_port

BUCKET = "files-of-a-test"
READY_SECONDS = 30.0
# It wants to know who deletes, and does not look at the signature.
SOMEBODY = {"authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"}


class S3Server:
    """Use it as a context manager. It keeps everything in memory."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As STORAGE_URL has it."""
        return f"s3://{BUCKET}?endpoint={self.endpoint}&region=us-east-1"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                assert httpx2.put(f"{self.endpoint}/{BUCKET}", timeout=5).status_code == 200
                return self
            except httpx2.TransportError:
                time.sleep(0.05)
        self.kill()
        raise AssertionError("the S3 server did not start")

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def keys(self) -> list[str]:
        """What it holds."""
        return self._keys("")

    def begun(self) -> list[str]:
        """What was begun in parts, and neither completed nor given up."""
        return self._keys("?uploads")

    def empty(self) -> None:
        for key in self.keys():
            answer = httpx2.delete(f"{self.endpoint}/{BUCKET}/{key}", headers=SOMEBODY, timeout=5)
            assert answer.status_code == 204, answer.status_code

    def _keys(self, query: str) -> list[str]:
        answer = httpx2.get(f"{self.endpoint}/{BUCKET}{query}", timeout=5)
        assert answer.status_code == 200, answer.text
        return re.findall("<Key>(.*?)</Key>", answer.text)
