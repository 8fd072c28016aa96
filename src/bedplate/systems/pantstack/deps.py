"""Pantstack API reference: who is calling (bearer token or service key), and the facades that handlers use."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from bedplate.kernel.errors import NotAllowed
from bedplate.kernel.http import BearerScheme, bearer_token
from bedplate.kernel.ids import unprefixed
from bedplate.modules.identity.public import (
    AccountGone,
    InvalidToken,
    Principal,
    Principals,
    ServiceKeys,
    SessionPolicy,
    Sessions,
    UserNotFound,
    Users,
)
from bedplate.modules.ops.public import Operations

POLICY = SessionPolicy("pantstack", access_seconds=3600, refresh_seconds=604_800)
PREFIX = "usr"


@dataclass(frozen=True, slots=True)
class Facades:
    """What Pantstack stands on."""

    users: Users
    sessions: Sessions
    principals: Principals
    keys: ServiceKeys
    operations: Operations


async def _users(request: Request) -> Users:
    return _facades(request).users


async def _sessions(request: Request) -> Sessions:
    return _facades(request).sessions


async def _operations(request: Request) -> Operations:
    return _facades(request).operations


UsersDep = Annotated[Users, Depends(_users)]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
OperationsDep = Annotated[Operations, Depends(_operations)]

_key_scheme = APIKeyHeader(name="X-API-Key", scheme_name="ServiceKey", auto_error=False)


class _Bearer(BearerScheme):
    """The account behind `Authorization: Bearer <access_token>`."""

    async def __call__(self, request: Request) -> Principal:
        token = bearer_token(request)
        if not token:
            raise InvalidToken()
        return await _facades(request).principals.authenticate(token, POLICY.audience)


class _RefreshBearer(BearerScheme):
    """The refresh token itself; the sessions facade reads it."""

    async def __call__(self, request: Request) -> str:
        return bearer_token(request)


class _Reader(BearerScheme):
    """As _Bearer, or None for a program with a service key, which may read every user."""

    async def __call__(self, request: Request) -> Principal | None:
        key = request.headers.get("x-api-key")
        if not key or bearer_token(request):
            return await _bearer(request)
        await _facades(request).keys.authenticate_key(key)
        return None


_bearer = _Bearer()
Caller = Annotated[Principal, Depends(_bearer)]
RefreshToken = Annotated[str, Depends(_RefreshBearer("RefreshToken"))]
_reader = _Reader()


async def _admin(caller: Caller) -> Principal:
    if not caller.user.is_admin:
        raise NotAllowed()
    return caller


async def _list_reader(
    reader: Annotated[Principal | None, Depends(_reader)], key: Annotated[str | None, Security(_key_scheme)]
) -> None:
    if reader is not None and not reader.user.is_admin:
        raise NotAllowed()


@dataclass(frozen=True, slots=True)
class Target:
    """The user whom the path names, and the account and session that ask."""

    user_id: str
    caller_id: str
    session_id: str


class _OwnOrAdmins(BearerScheme):
    """Whoever may change the user in the path. It reads the path itself: a parameter and a nested dependency would
    cost as much as the statement that follows. The route documents them with `openapi_extra`."""

    async def __call__(self, request: Request) -> Target:
        return _allowed(_target(request), await _bearer(request))


class _OwnOrAdminsOrServices(BearerScheme):
    async def __call__(self, request: Request) -> Target:
        target = _target(request)
        try:
            return _allowed(target, await _reader(request))
        except AccountGone as gone:
            if gone.details["user_id"] == target:
                raise UserNotFound() from gone
            raise


def _target(request: Request) -> str | None:
    return unprefixed(PREFIX, request.path_params["user_id"])


def _allowed(target: str | None, caller: Principal | None) -> Target:
    if caller is not None and target != caller.user.id and not caller.user.is_admin:
        raise NotAllowed()  # also for ids that do not exist: the answer tells nothing
    if target is None:
        raise UserNotFound()
    return Target(target, caller.user.id if caller else "", caller.session_id if caller else "")


_user_id = {"name": "user_id", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 64}}
ONE_USER = {"parameters": [_user_id]}
ONE_USER_OR_SERVICE = ONE_USER | {"security": [{_key_scheme.scheme_name: []}]}

Admin = Annotated[Principal, Depends(_admin)]
AdminOrService = Annotated[None, Depends(_list_reader)]
OwnOrAdmins = Annotated[Target, Depends(_OwnOrAdmins())]
OwnOrAdminsOrServices = Annotated[Target, Depends(_OwnOrAdminsOrServices())]


def _facades(request: Request) -> Facades:
    facades: Facades = request.app.state.facades
    return facades
