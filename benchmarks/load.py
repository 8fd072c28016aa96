"""The load generator: a process of its own that keeps connections busy with requests made beforehand.

Run as a script: a `Load` as JSON on standard input, a `Measured` as JSON on standard output. Each connection sends its
next request as soon as the last one is answered; every answer is checked for status and length. 127.0.0.1 only.

It is not what is measured: on two cores it had 40,000 answers a second from a raw ASGI application where the bare
FastAPI route gave 12,900, and needed 12 microseconds of processor time for each (`cost_us`), so its own limit is near
80,000.
"""

import asyncio
import gc
import itertools
import json
import math
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

GIVE_UP_SECONDS = 120.0


@dataclass(frozen=True)
class Traffic:
    """Requests to send in turn, and what each answer has to be: its status, and one of these body lengths."""

    requests: list[str]
    status: int
    lengths: list[int]


@dataclass(frozen=True)
class Load:
    """`burst`: requests sent all at once when the measurement begins, which then ends with the last of their answers
    instead of after `seconds`."""

    port: int
    traffic: Traffic
    connections: int
    warmup: float
    seconds: float
    burst: Traffic | None = None


@dataclass(frozen=True)
class Measured:
    """`total`: answers with those of the warm-up; `cost_us`: processor time that the generator itself needed for one
    answer, in microseconds."""

    rate: float
    p50_ms: float
    p99_ms: float
    answers: int
    total: int
    seconds: float
    cost_us: float
    errors: dict[str, int]


def measure(load: Load) -> Measured:
    """Run the generator.

    Raises:
        subprocess.SubprocessError: it failed or did not end in time.
    """
    limit = load.warmup + load.seconds + GIVE_UP_SECONDS + 10
    text = json.dumps(asdict(load))
    ran = subprocess.run([sys.executable, __file__], input=text, stdout=subprocess.PIPE, text=True, timeout=limit)
    ran.check_returncode()
    return Measured(**json.loads(ran.stdout))


class Tally:
    """What was counted since the measurement began."""

    def __init__(self) -> None:
        self.running = True
        self.warmup = 0
        self.latencies = array("d")
        self.errors: Counter[str] = Counter()

    def restart(self) -> None:
        self.warmup = len(self.latencies)
        self.latencies = array("d")


class Connection(asyncio.Protocol):
    """One keep-alive connection; `requests` may end, and `done` is set with the answer to its last one."""

    def __init__(self, tally: Tally, requests: Iterator[bytes], traffic: Traffic) -> None:
        self._tally = tally
        self._requests = requests
        self._status = b"%d" % traffic.status
        self._lengths = frozenset(traffic.lengths)
        self._rest = b""
        self.done = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self) -> None:
        request = next(self._requests, None) if self._tally.running else None
        if request is None:
            self.done.set()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        ends = data.find(b"\r\n\r\n")
        at = data.find(b"content-length: ", 0, ends)
        if ends < 0 or at < 0 or len(data) < ends + 4 + (length := int(data[at + 16 : data.find(b"\r", at)])):
            self._rest = data
            return
        self._rest = b""
        status = data[9:12]
        if status != self._status:
            self._tally.errors[f"status {status.decode()}"] += 1
        elif length not in self._lengths or len(data) != ends + 4 + length:
            self._tally.errors[f"length {length}"] += 1
        else:
            self._tally.latencies.append(time.perf_counter() - self._sent)
        self.send()

    def connection_lost(self, reason: Exception | None) -> None:
        if not self.done.is_set() and self._tally.running:
            self._tally.errors["connection lost"] += 1
        self.done.set()


async def _connect(load: Load, tally: Tally, traffic: Traffic, requests: list[Iterator[bytes]]) -> list[Connection]:
    loop = asyncio.get_running_loop()
    connections = [Connection(tally, each, traffic) for each in requests]
    for connection in connections:
        await loop.create_connection(lambda c=connection: c, "127.0.0.1", load.port)  # type: ignore[misc]
    return connections


async def _run(load: Load) -> Measured:
    tally, burst_tally = Tally(), Tally()
    requests = itertools.cycle([each.encode() for each in load.traffic.requests])
    busy = await _connect(load, tally, load.traffic, [requests] * load.connections)
    burst = []
    if load.burst is not None:
        once = [iter([each.encode()]) for each in load.burst.requests]
        burst = await _connect(load, burst_tally, load.burst, once)
    for connection in busy:
        connection.send()
    await asyncio.sleep(load.warmup)
    tally.restart()
    began, used = time.perf_counter(), time.process_time()
    for connection in burst:
        connection.send()
    if burst:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            await asyncio.gather(*(connection.done.wait() for connection in burst))
    else:
        await asyncio.sleep(load.seconds)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    tally.running = False
    return _measured(tally, seconds, used, tally.errors + burst_tally.errors)


def _measured(tally: Tally, seconds: float, used: float, errors: Counter[str]) -> Measured:
    found = sorted(tally.latencies)
    answers, total = len(found), len(found) + tally.warmup
    if not found:
        errors["no answer"] += 1
        found = [math.inf]
    p50, p99 = (found[min(int(len(found) * share), len(found) - 1)] * 1000 for share in (0.5, 0.99))
    cost = used / max(answers, 1) * 1e6
    return Measured(answers / seconds, p50, p99, answers, total, seconds, cost, dict(errors))


if __name__ == "__main__":
    gc.disable()
    given = json.load(sys.stdin)
    parts = {name: Traffic(**given[name]) for name in ("traffic", "burst") if given[name]}
    json.dump(asdict(uvloop.run(_run(Load(**given | parts)))), sys.stdout)
