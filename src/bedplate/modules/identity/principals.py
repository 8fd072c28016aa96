"""Who is calling: the account and session behind an access token."""

from datetime import UTC, datetime

from sqlalchemy import bindparam, select

from bedplate.kernel.cache import Cache
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.ids import is_id
from bedplate.kernel.security import Tokens
from bedplate.modules.identity.models import SessionRow, UserRow
from bedplate.modules.identity.public import (
    AccountGone,
    InvalidToken,
    Principal,
    Principals,
    TokenExpired,
    TokenRevoked,
)
from bedplate.modules.identity.users import COLUMNS, tag, user_of

_CALLER = (
    select(*COLUMNS, SessionRow.id.label("session_id"), SessionRow.revoked_at)
    .outerjoin(SessionRow, (SessionRow.user_id == UserRow.id) & (SessionRow.id == bindparam("session")))
    .where(UserRow.id == bindparam("user"))
)


def session_tag(session_id: str) -> str:
    """The cache tag of everything that is known through one session."""
    return f"session:{session_id}"


class PrincipalsService(Principals):
    def __init__(self, db: Database, tokens: Tokens, clock: Clock) -> None:
        self._db = db
        self._tokens = tokens
        self._clock = clock

    async def authenticate(self, token: str, audience: str) -> Principal:
        claims = self._tokens.read(token, type="access", audience=audience)
        if claims is None or not (is_id(claims["sub"]) and is_id(str(claims.get("sid")))):
            raise InvalidToken()
        if claims["exp"] <= self._clock.timestamp():
            raise TokenExpired()
        row = await self._db.first(_CALLER, {"user": claims["sub"], "session": claims["sid"]})
        if row is None:
            raise AccountGone(user_id=claims["sub"])
        if row.disabled_at is not None:
            raise InvalidToken()
        if row.session_id is None or row.revoked_at is not None:
            raise TokenRevoked()
        return Principal(user_of(row), claims["sid"], datetime.fromtimestamp(claims["exp"], UTC))


class CachedPrincipals(Principals):
    """Remembers who a token belongs to, so that an authenticated read needs no query. Whatever ends a token says so
    in its transaction, under the tags used here."""

    def __init__(self, principals: Principals, cache: Cache, clock: Clock) -> None:
        self._principals = principals
        self._cache = cache
        self._clock = clock

    async def authenticate(self, token: str, audience: str) -> Principal:
        key = f"principal:{audience}:{token}"
        known: Principal | None = self._cache.peek(key)
        if known is None:
            return await self._cache.load(
                key, lambda: self._principals.authenticate(token, audience), _tags, seconds=60.0
            )
        if known.expires_at <= self._clock.now():
            raise TokenExpired()
        return known


def _tags(principal: Principal) -> tuple[str, str]:
    return tag(principal.user.id), session_tag(principal.session_id)
