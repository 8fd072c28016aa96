"""Servers under test: started as anybody would start them, stopped by process id."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bedplate.kernel.settings import environment_names

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 15.0
SAMPLE_SECONDS = 0.02
MEGABYTE = 1_000_000


class Server:
    """A running server. `ready_seconds`: from the start of the process to its first answer."""

    def __init__(self, process: psutil.Popen, port: int, ready_seconds: float) -> None:
        self.process = process
        self.port = port
        self.ready_seconds = ready_seconds
        self._all = [process, *process.children(recursive=True)]

    def memory(self) -> float:
        """Resident megabytes of all its processes."""
        return sum(process.memory_info().rss for process in self._all) / MEGABYTE

    def used(self) -> float:
        """Seconds of processor time that they have used."""
        return sum(sum(process.cpu_times()[:2]) for process in self._all)


class PeakMemory:
    """Samples a server's memory while the block runs. `added`: megabytes above those at its begin."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._before = self._peak = self._server.memory()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.added = self._peak - self._before

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._server.memory())


@contextmanager
def bedplate(folder: Path, environment: Mapping[str, str], workers: int) -> Iterator[Server]:
    """`bedplate up` with every middleware on but the rate limits; log lines go to a file."""
    port = _free_port()
    command = ["-m", "bedplate", "up", "--data", str(folder), "--port", str(port), "--workers", str(workers)]
    with _started(command, port, "/cobalt/health", folder, environment) as server:
        yield server


@contextmanager
def service(name: str, port: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """`bedplate serve NAME`, one of Commerce's services with a database of its own."""
    command = ["-m", "bedplate", "serve", name, "--data", str(folder / name), "--port", str(port)]
    with _started(command, port, "/health", folder, environment, answers=(b"200", b"503")) as server:
        yield server


@contextmanager
def bare(folder: Path, workers: int, name: str = "app") -> Iterator[Server]:
    """An application of bare.py on plain uvicorn."""
    port = _free_port()
    command = ["-m", "uvicorn", f"benchmarks.bare:{name}", "--app-dir", str(ROOT), "--port", str(port)]
    options = ["--workers", str(workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    with _started([*command, *options], port, "/health", folder, {}) as server:
        yield server


@contextmanager
def _started(
    command: Sequence[str],
    port: int,
    path: str,
    folder: Path,
    environment: Mapping[str, str],
    answers: Sequence[bytes] = (b"200",),
) -> Iterator[Server]:
    log = folder / f"server-{port}.log"
    began = time.perf_counter()
    with log.open("wb") as lines:
        process = psutil.Popen(
            [sys.executable, *command], cwd=folder, env={**_clean(), **environment}, stdout=lines, stderr=lines
        )
    try:
        while not _answers(port, path, answers):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.005)
        yield Server(process, port, time.perf_counter() - began)
    finally:
        _stop(process)


def _stop(process: psutil.Popen) -> None:
    everyone = [process, *process.children(recursive=True)] if process.is_running() else []
    process.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=STOP_SECONDS)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def _clean() -> dict[str, str]:
    """This process's environment without settings of the product."""
    ours = {name for names in environment_names().values() for name in names.split(", ")}
    return {name: value for name, value in os.environ.items() if name not in ours}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and nobody a hundred above them."""
    found: list[int] = []
    while len(found) < count:
        port = _free_port()
        if port < 65_000 and port not in found and not any(abs(port - other) == 100 for other in found):
            found.append(port)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, path: str, statuses: Sequence[bytes]) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(12).rpartition(b" ")[2] in statuses
    except OSError:
        return False
