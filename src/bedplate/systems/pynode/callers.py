"""Dev-PyNode API reference: Authentication, Rate Limiting. Who is calling, found out once in each request: the limits
count by it before the handler asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Kind, Problem, TooMany
from bedplate.kernel.http import Counted
from bedplate.kernel.limits import Limit, Limiter, address_key
from bedplate.modules.identity.public import (
    InvalidToken,
    Principal,
    Principals,
    ServiceKey,
    ServiceKeys,
    SessionPolicy,
)

POLICY = SessionPolicy("pynode", access_seconds=3600, refresh_seconds=604_800, rotates=False)
KEY_PREFIX = "bp_"
# Counted as requests of an address, whoever is known to ask: with a token of his own somebody could guess passwords ten
# times as often, and make accounts whose tokens let him make more.
OF_STRANGERS = frozenset({"/api/auth/login", "/api/auth/register"})
_KNOWN = "pynode.caller"


@dataclass(frozen=True, slots=True)
class Regimes:
    """The document's two: requests of one user, and of one address of which nobody knows whose they are."""

    authenticated: Limit
    unauthenticated: Limit


class Callers:
    """Recognises callers and counts what they ask. `limiter` None: nothing is counted."""

    def __init__(
        self, principals: Principals, keys: ServiceKeys, limiter: Limiter | None, clock: Clock, regimes: Regimes
    ) -> None:
        self._principals = principals
        self._keys = keys
        self._limiter = limiter
        self._clock = clock
        self._regimes = regimes

    async def principal(self, scope: Scope) -> Principal:
        """The account behind the bearer token. Raises InvalidToken, TokenExpired, TokenRevoked, AccountGone."""
        caller = await self._caller(scope)
        if isinstance(caller, Principal):
            return caller
        raise caller if isinstance(caller, Problem) else InvalidToken()

    async def principal_or_program(self, scope: Scope) -> Principal | ServiceKey:
        """As above; a program may show its service key instead of a token."""
        caller = await self._caller(scope)
        if isinstance(caller, Problem):
            raise caller
        return caller

    async def authenticate(self, token: str) -> Principal:
        """The account behind a token that came another way than in a header."""
        return await self._principals.authenticate(token, POLICY.audience)

    async def count(self, scope: Scope, path: str) -> Counted | None:
        """Count a request to /api or /v1; None for all others."""
        if self._limiter is None or not path.startswith(("/api/", "/v1/")):
            return None
        caller = await self._caller(scope)
        if isinstance(caller, Problem) or path in OF_STRANGERS:
            return await self.hit(address_subject(scope), known=False)
        return await self.hit(subject_of(caller), known=True)

    async def hit(self, subject: str, *, known: bool) -> Counted | None:
        """Count one request of somebody, whichever way it came."""
        if self._limiter is None:
            return None
        limit = self._regimes.authenticated if known else self._regimes.unauthenticated
        window = await self._limiter.hit(f"pynode:{subject}", limit)
        ends = self._clock.timestamp() + window.reset_after
        headers = (
            (b"x-ratelimit-limit", b"%d" % limit.amount),
            (b"x-ratelimit-remaining", b"%d" % window.remaining),
            (b"x-ratelimit-reset", b"%d" % -(-ends // 1)),
        )
        if window.allowed:
            return Counted(headers)
        return Counted(headers, TooMany(limit=limit.text, retry_after=max(1, round(window.reset_after + 0.499))))

    async def _caller(self, scope: Scope) -> Principal | ServiceKey | Problem:
        known: Principal | ServiceKey | Problem | None = scope.get(_KNOWN)
        if known is None:
            try:
                known = await self._recognise(_token_of(scope))
            except Problem as problem:
                if problem.kind is not Kind.UNAUTHENTICATED:
                    raise
                known = problem
            scope[_KNOWN] = known
        return known

    async def _recognise(self, token: str) -> Principal | ServiceKey:
        if not token:
            raise InvalidToken()
        if token.startswith(KEY_PREFIX):
            return await self._keys.authenticate_key(token)
        return await self.authenticate(token)


def subject_of(caller: Principal | ServiceKey) -> str:
    """Under which name somebody's requests are counted."""
    return f"user:{caller.user.id}" if isinstance(caller, Principal) else f"key:{caller.id}"


def account_of(caller: Principal | ServiceKey) -> str:
    """Under which name somebody's tokens are counted: a user's, like those of his chat, under his own."""
    return caller.user.id if isinstance(caller, Principal) else f"key:{caller.id}"


def address_subject(scope: Scope) -> str:
    """As whom somebody counts of whom nothing is known."""
    client = scope["client"]
    return f"address:{address_key(client[0]) if client else '-'}"


def _token_of(scope: Mapping[str, Any]) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""
