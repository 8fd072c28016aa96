"""Cobalt API reference: Authentication. Who is calling, and the facades that handlers use."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Cookie, Depends, Request, Response

from bedplate.kernel.http import BearerScheme, bearer_token
from bedplate.modules.identity.public import (
    AccountGone,
    Confirmations,
    Grant,
    InvalidToken,
    Principal,
    Principals,
    SessionPolicy,
    Sessions,
    UserNotFound,
    Users,
)
from bedplate.systems.cobalt.errors import AdminRequired, EmailNotVerified

POLICY = SessionPolicy("cobalt", access_seconds=900, refresh_seconds=604_800, reuse_ends_all=True)
COOKIE = "refresh_token"


@dataclass(frozen=True, slots=True)
class Facades:
    """What Cobalt stands on. `secure_cookies`: send the refresh cookie over HTTPS only."""

    users: Users
    sessions: Sessions
    principals: Principals
    confirmations: Confirmations
    secure_cookies: bool


async def _users(request: Request) -> Users:
    return _facades(request).users


async def _sessions(request: Request) -> Sessions:
    return _facades(request).sessions


async def _confirmations(request: Request) -> Confirmations:
    return _facades(request).confirmations


UsersDep = Annotated[Users, Depends(_users)]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
ConfirmationsDep = Annotated[Confirmations, Depends(_confirmations)]


class _Bearer(BearerScheme):
    """The account behind `Authorization: Bearer <access_token>`; an empty header counts as none."""

    async def __call__(self, request: Request) -> Principal:
        token = bearer_token(request)
        if not token:
            raise InvalidToken()
        return await _facades(request).principals.authenticate(token, POLICY.audience)


class _OwnAccount(_Bearer):
    """As _Bearer, but a deleted account is told that it was not found."""

    async def __call__(self, request: Request) -> Principal:
        try:
            return await super().__call__(request)
        except AccountGone as gone:
            raise UserNotFound() from gone


class _VerifiedAdmin(_Bearer):
    async def __call__(self, request: Request) -> Principal:
        caller = await super().__call__(request)
        if not caller.user.is_admin:
            raise AdminRequired()
        if not caller.user.email_verified:
            raise EmailNotVerified()
        return caller


_bearer = _Bearer()
_own_account = _OwnAccount()
_verified_admin = _VerifiedAdmin()
Caller = Annotated[Principal, Depends(_bearer)]
OwnAccount = Annotated[Principal, Depends(_own_account)]
VerifiedAdmin = Annotated[Principal, Depends(_verified_admin)]


RefreshCookie = Annotated[str, Cookie(alias=COOKIE, description="Set by register, login and refresh.")]


def keep_refresh_token(request: Request, response: Response, grant: Grant) -> None:
    """Hand the refresh token to the browser, where scripts cannot read it."""
    response.set_cookie(
        COOKIE,
        grant.refresh_token,
        max_age=POLICY.refresh_seconds,
        path="/",
        httponly=True,
        samesite="strict",
        secure=_facades(request).secure_cookies,
    )


def forget_refresh_token(request: Request, response: Response) -> None:
    """Have the browser drop the refresh token."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict", secure=_facades(request).secure_cookies)


def _facades(request: Request) -> Facades:
    facades: Facades = request.app.state.facades
    return facades
