"""A TCP proxy between the product and what it depends on, which refuses, resets, hangs, and loses answers."""

import asyncio
import contextlib
import random
from collections import Counter
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536
# What can happen to one request, which is what arrives from the client in one piece.
RESET = "reset"  # the connection ends before it is passed on
HANG = "hang"  # it is not passed on, and nothing is heard any more
LOST = "lost"  # it is passed on and executed, and the connection ends in place of the answer
KINDS = (RESET, HANG, LOST)


class FaultProxy:
    """Listens on a free port of 127.0.0.1. `chance`: of each kind of fault, for each request. `refusing`: no connection
    comes about; `cut` ends those that there are."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = urlsplit(url)
        self._dice = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.chance = 0.0
        self.refusing = False
        self.done: Counter[str] = Counter()
        self.requests = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def lead_to(self, url: str) -> None:
        """Pass on to there from now on."""
        self._url = urlsplit(url)

    def at(self, url: str) -> str:
        """The same URL by way of this proxy."""
        parts = urlsplit(url)
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{self.port}"))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> int:
        """End every connection that there is. How many."""
        cut = len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        return cut

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            if not self.refusing:
                with contextlib.suppress(OSError):
                    await self._pass(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._url.hostname, self._url.port)
        self._writers.add(back)
        lossy = asyncio.Event()
        answers = asyncio.create_task(self._answers(there, writer, lossy))
        try:
            while data := await reader.read(CHUNK):
                self.requests += 1
                kind = self._dice.choice(KINDS) if self._dice.random() < self.chance * len(KINDS) else ""
                if kind:
                    self.done[kind] += 1
                if kind == RESET:
                    return
                if kind == HANG:
                    while await reader.read(CHUNK):
                        pass
                    return
                if kind == LOST:
                    lossy.set()
                back.write(data)
                await back.drain()
        finally:
            if not lossy.is_set():
                answers.cancel()
            # What was passed on is executed before the connection is gone.
            await asyncio.wait([answers], timeout=5)
            answers.cancel()
            self._writers.discard(back)
            back.transport.abort()

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, lossy: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(CHUNK):
                if lossy.is_set():
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
