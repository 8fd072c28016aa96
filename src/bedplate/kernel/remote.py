"""Facades of another process: objects of the same class whose methods are HTTP requests.

A Problem raised over there is raised here with the same class. A transport failure is Unavailable: the outcome is
unknown, so nothing that may have been sent is sent again. Where no connection could be made nothing was sent.

aiohttp, because a call costs a sixth of the processor time that it costs with httpx2.
"""

import asyncio
import contextlib
import logging
import random
from typing import Any, Self, TypeVar

import aiohttp
import orjson

from bedplate.kernel.breaker import CALL_SECONDS, Breaker
from bedplate.kernel.errors import Problem, Unavailable
from bedplate.kernel.facade import READY, Credentials, Operation, operations, path_of
from bedplate.kernel.telemetry import REQUEST_ID

log = logging.getLogger("bedplate.remote")

F = TypeVar("F")

CONNECT_SECONDS = 1.0
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
RETRY_PAUSES_SECONDS = (0.1, 0.2, 0.4)  # at most: what is waited is drawn from the upper half of each
AT_ONCE = 100
TURN_SECONDS = 1.0
# Below the five seconds after which the server closes a connection that is not used: none is closed under a request.
KEPT_SECONDS = 4.0


class RemoteCaller:
    """Calls the facades that one other process serves. Close it, or use it as a context manager.

    `breaker`: refuses calls while that process is taken for broken; without one every call is tried.
    """

    def __init__(self, url: str, credentials: Credentials, breaker: Breaker | None = None) -> None:
        self._url = url.rstrip("/")
        self._credentials = credentials
        self._breaker = breaker
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(  # it wants a running loop
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS),
            timeout=aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, path: str, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Raises CircuitOpen if nothing was sent, Unavailable after three seconds at most, or what was raised there."""
        content = orjson.dumps(operation.dump(args, kwargs))
        # From before the breaker is asked: the call of a probe has to end before its place is given to another.
        deadline = asyncio.get_running_loop().time() + CALL_SECONDS
        async with self._breaker.passage() if self._breaker is not None else contextlib.nullcontext():
            answer = await self._answer(path, operation, content, deadline)
        if isinstance(answer, Problem):
            raise answer
        return answer

    async def _answer(self, path: str, operation: Operation, content: bytes, deadline: float) -> Any:
        """The result, or the Problem to raise. Raises Unavailable for what the breaker counts as a failure."""
        try:
            async with asyncio.timeout(TURN_SECONDS) if self._turns.locked() else contextlib.nullcontext():
                await self._turns.acquire()
        except TimeoutError:  # too many calls from here, which says nothing about that process
            return Unavailable()
        try:
            async with asyncio.timeout_at(deadline):
                status, body = await self._post(path, content)
        except (aiohttp.ClientError, OSError) as error:  # with TimeoutError
            log.warning(
                "the process with the modules does not answer", extra={"path": path, "reason": type(error).__name__}
            )
            raise Unavailable() from error
        finally:
            self._turns.release()
        try:
            if status == 200:
                return operation.result.validate_python(orjson.loads(body))
            if status == 409:
                return _problem(orjson.loads(body))
        except (ValueError, KeyError, TypeError) as error:  # another version of the code, or a proxy's own page
            log.error(
                "the process with the modules does not understand; is it of the same version?",
                extra={"path": path, "status": status},
            )
            raise Unavailable() from error
        log.error("the process with the modules failed", extra={"path": path, "status": status})
        if 400 <= status < 500:  # it is well, and refuses: another secret, another version
            return Unavailable()
        raise Unavailable()

    async def _post(self, path: str, content: bytes) -> tuple[int, bytes]:
        """Status and body. Tries again, after a pause, only where no connection came about."""
        headers = {"authorization": self._credentials.header(), "content-type": "application/json"}
        if request_id := REQUEST_ID.get():
            headers["x-request-id"] = request_id
        for pause in RETRY_PAUSES_SECONDS:
            with contextlib.suppress(*NOT_SENT):
                return await self._send(path, content, headers)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # so that many callers do not come back together
        return await self._send(path, content, headers)

    async def _send(self, path: str, content: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            async with self._session.post(
                self._url + path, data=content, headers=headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except NOT_SENT:
            log.debug("no connection came about", extra={"path": path})
            raise

    async def ping(self) -> None:
        """Raises Unavailable if the other process is not ready, or does not accept calls from here."""
        headers = {"authorization": self._credentials.header()}
        try:
            async with self._session.get(self._url + READY, headers=headers, allow_redirects=False) as response:
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable() from error
        if status == 401:
            log.error("the process with the modules has another API_SECRET_KEY")
        if status != 200:
            raise Unavailable()


def remote(facade: type[F], caller: RemoteCaller) -> F:
    """An object of class `facade` whose methods run in another process."""
    methods = {
        name: _forward(path_of(facade, name), operation, caller) for name, operation in operations(facade).items()
    }
    made: F = type(f"Remote{facade.__name__}", (facade,), methods)()
    return made


def _problem(answer: dict[str, Any]) -> Problem:
    return Problem.known[answer["problem"]](**answer["details"])


def _forward(path: str, operation: Operation, caller: RemoteCaller) -> Any:
    async def forward(self: object, *args: Any, **kwargs: Any) -> Any:
        return await caller.call(path, operation, args, kwargs)

    return forward
