"""Facades of another process: objects of the same class whose methods are HTTP requests.

A Problem raised over there is raised here with the same class. A transport failure is Unavailable: the outcome is
unknown, so nothing that may have been sent is sent again. Where no connection could be made nothing was sent.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from functools import cache
from typing import Any, Self, TypeVar

import httpx2
import orjson

from bedplate.kernel.breaker import CALL_SECONDS, Breaker
from bedplate.kernel.errors import Problem, Unavailable
from bedplate.kernel.facade import READY, Credentials, Operation, operations, path_of
from bedplate.kernel.telemetry import REQUEST_ID

log = logging.getLogger("bedplate.remote")

F = TypeVar("F")

TIMEOUT = httpx2.Timeout(CALL_SECONDS, connect=1.0, pool=1.0)
RETRY_PAUSES_SECONDS = (0.1, 0.2, 0.4)  # at most: what is waited is drawn from the upper half of each
LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=20)


class RemoteCaller:
    """Calls the facades that one other process serves. Close it, or use it as a context manager.

    `breaker`: refuses calls while that process is taken for broken; without one every call is tried.
    """

    def __init__(self, url: str, credentials: Credentials, breaker: Breaker | None = None) -> None:
        self._client = httpx2.AsyncClient(base_url=url, limits=LIMITS, timeout=TIMEOUT, verify=_certificates())
        self._credentials = credentials
        self._breaker = breaker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

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
            async with asyncio.timeout_at(deadline):
                response = await self._post(path, content)
        except httpx2.PoolTimeout:  # too many calls from here, which says nothing about that process
            return Unavailable()
        except (httpx2.HTTPError, TimeoutError) as error:
            log.warning(
                "the process with the modules does not answer", extra={"path": path, "reason": type(error).__name__}
            )
            raise Unavailable() from error
        status = response.status_code
        try:
            if status == 200:
                return operation.result.validate_python(orjson.loads(response.content))
            if status == 409:
                return _problem(orjson.loads(response.content))
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

    async def _post(self, path: str, content: bytes) -> httpx2.Response:
        """Tries again, after a pause, only where no connection came about."""
        headers = {"authorization": self._credentials.header(), "content-type": "application/json"}
        if request_id := REQUEST_ID.get():
            headers["x-request-id"] = request_id
        for pause in RETRY_PAUSES_SECONDS:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._client.post(path, content=content, headers=headers)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # so that many callers do not come back together
        return await self._client.post(path, content=content, headers=headers)

    async def ping(self) -> None:
        """Raises Unavailable if the other process is not ready, or does not accept calls from here."""
        try:
            response = await self._client.get(READY, headers={"authorization": self._credentials.header()})
        except httpx2.HTTPError as error:
            raise Unavailable() from error
        if response.status_code == 401:
            log.error("the process with the modules has another API_SECRET_KEY")
        if response.status_code != 200:
            raise Unavailable()


@cache
def _certificates() -> ssl.SSLContext:
    """Those that are trusted. Every client would read them anew, 20 ms each."""
    return httpx2.create_ssl_context()


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
