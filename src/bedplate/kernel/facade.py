"""Facades: a module's public face is an abstract class; a call is local, or HTTP to another process.

`InternalApi` serves implementations to other processes; `remote.py` makes objects that call them. Arguments and
results are JSON-safe values, read from the signatures.
"""

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_type_hints

import orjson
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Problem
from bedplate.kernel.health import Probe, probe
from bedplate.kernel.ids import new_id
from bedplate.kernel.security import Tokens
from bedplate.kernel.telemetry import REQUEST_ID

log = logging.getLogger("bedplate.facade")

AUDIENCE = "internal"
CREDENTIAL_SECONDS = 60
HEALTH = "/health"
READY = "/ready"
_READ: dict[type[Any], Mapping[str, "Operation"]] = {}
NO_PROBES: Mapping[str, Probe] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Operation:
    """One abstract method: how to read and write its arguments and its result."""

    name: str
    signature: inspect.Signature
    arguments: Mapping[str, TypeAdapter[Any]]
    result: TypeAdapter[Any]

    def load(self, body: bytes) -> dict[str, Any]:
        """The arguments that `dump` made. Raises ValueError if they are not this method's."""
        try:
            given = {name: self.arguments[name].validate_python(value) for name, value in orjson.loads(body).items()}
            self.signature.bind(None, **given)
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError from error
        return given

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self.signature.bind(None, *args, **kwargs)
        return {
            name: self.arguments[name].dump_python(value, mode="json")
            for name, value in bound.arguments.items()
            if name != "self"
        }


def operations(facade: type[Any]) -> Mapping[str, Operation]:
    """The abstract methods of a facade by name. Read once: signatures take longer than all else at a start."""
    if facade not in _READ:
        _READ[facade] = _methods(facade)
    return _READ[facade]


def _methods(facade: type[Any]) -> dict[str, Operation]:
    found = {}
    for name in sorted(facade.__abstractmethods__):
        method = getattr(facade, name)
        hints = get_type_hints(method)
        result = TypeAdapter(hints.pop("return"))
        arguments = {argument: TypeAdapter(hint) for argument, hint in hints.items()}
        found[name] = Operation(name, inspect.signature(method), arguments, result)
    return found


def path_of(facade: type[Any], method: str) -> str:
    """Where a method is served."""
    return f"/internal/{facade.__name__.lower()}/{method}"


class Credentials:
    """Short-lived signed proof that a call comes from a process of this installation."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._header = ""
        self._renew_at = 0

    def header(self) -> str:
        """The same for half of its life, so that both sides sign and check it once."""
        now = int(self._clock.timestamp())
        if now >= self._renew_at:
            claims = {"type": "service", "aud": AUDIENCE, "sub": "bedplate", "jti": new_id(), "iat": now}
            self._header = f"Bearer {self._tokens.sign({**claims, 'exp': now + CREDENTIAL_SECONDS})}"
            self._renew_at = now + CREDENTIAL_SECONDS // 2
        return self._header

    def accepts(self, header: str) -> bool:
        claims = self._tokens.read(header.removeprefix("Bearer "), type="service", audience=AUDIENCE)
        return claims is not None and int(claims["exp"]) > self._clock.timestamp()


class InternalApi:
    """The ASGI application that serves facades to other processes of this installation, and to nobody else."""

    def __init__(
        self,
        implementations: Mapping[type[Any], Any],
        credentials: Credentials,
        probes: Mapping[str, Probe] = NO_PROBES,
    ) -> None:
        self._credentials = credentials
        self._probes = probes
        self._routes = {
            path_of(facade, name): (getattr(implementation, name), operation)
            for facade, implementation in implementations.items()
            for name, operation in operations(facade).items()
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request = Request(scope, receive)
        response = await self._answer(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.scope["path"]
        if path == HEALTH:
            return Response(status_code=200)
        if not self._credentials.accepts(request.headers.get("authorization", "")):
            return Response(status_code=401)
        if path == READY:
            return Response(status_code=200 if all((await probe(self._probes)).values()) else 503)
        route = self._routes.get(path)
        if route is None or request.method != "POST":
            return Response(status_code=404)
        method, operation = route
        try:
            arguments = operation.load(await request.body())
        except ValueError:
            return Response(status_code=400)  # another version of the code is calling
        token = REQUEST_ID.set(request.headers.get("x-request-id", ""))
        try:
            result = await method(**arguments)
            return _json(200, operation.result.dump_python(result, mode="json"))
        except Problem as problem:
            return _json(409, {"problem": type(problem).__name__, "details": problem.details})
        except Exception as error:
            log.error("unexpected error", extra={"operation": operation.name}, exc_info=error)
            return Response(status_code=500)
        finally:
            REQUEST_ID.reset(token)


def _json(status: int, value: Any) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")
