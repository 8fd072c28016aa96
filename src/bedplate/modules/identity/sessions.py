"""Sessions: sign-in, rotation of refresh tokens, sign-out."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, or_, select, update

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, Transaction, delete_by_parts
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.security import Passwords, Tokens, digest
from bedplate.modules.identity import rules
from bedplate.modules.identity.models import EmailTokenRow, RefreshTokenRow, SessionRow, UserRow
from bedplate.modules.identity.principals import session_tag
from bedplate.modules.identity.public import (
    AccountDisabled,
    Grant,
    InvalidCredentials,
    InvalidToken,
    Registration,
    SessionPolicy,
    Sessions,
    TokenExpired,
    User,
)
from bedplate.modules.identity.users import COLUMNS, insert_user, prepare, tag, user_of

GRACE = timedelta(seconds=10)

_LOGIN = select(*COLUMNS, UserRow.password_hash).where(
    or_(UserRow.email_key == bindparam("key"), UserRow.username_key == bindparam("key"))
)
_REFRESH = (
    select(*COLUMNS, RefreshTokenRow.session_id, RefreshTokenRow.token_hash, SessionRow.revoked_at)
    .join(SessionRow, SessionRow.user_id == UserRow.id)
    .join(RefreshTokenRow, RefreshTokenRow.session_id == SessionRow.id)
    .where(RefreshTokenRow.id == bindparam("id"))
)
_ROTATE = (
    update(RefreshTokenRow)
    .where(RefreshTokenRow.id == bindparam("token_id"), RefreshTokenRow.rotated_at.is_(None))
    .values(rotated_at=bindparam("at"), child_id=bindparam("child"))
)
# Only if neither the password nor the state has changed while the hash was computed.
_SIGN_IN = (
    update(UserRow)
    .where(UserRow.id == bindparam("whom"), UserRow.password_hash == bindparam("stored"), UserRow.disabled_at.is_(None))
    .returning(*COLUMNS)
)
_OPEN = insert(SessionRow)
_STORE = insert(RefreshTokenRow)
_EXTEND = update(SessionRow).where(SessionRow.id == bindparam("session"))
_END = (
    update(SessionRow)
    .where(SessionRow.id == bindparam("session"), SessionRow.revoked_at.is_(None))
    .values(revoked_at=bindparam("at"))
)
_child = RefreshTokenRow.__table__.alias("child")
_SUCCESSOR = (
    select(RefreshTokenRow.rotated_at.label("parent_rotated_at"), _child)
    .join(_child, _child.c.id == RefreshTokenRow.child_id)
    .where(RefreshTokenRow.id == bindparam("id"))
)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as it is stored; the token itself is made from it again at any time, by signing."""

    id: str
    session_id: str
    issued_at: datetime
    expires_at: datetime


class SessionsService(Sessions):
    def __init__(
        self, db: Database, passwords: Passwords, tokens: Tokens, clock: Clock, *, strict_passwords: bool
    ) -> None:
        self._db = db
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._strict = strict_passwords

    async def sign_up(self, registration: Registration, policy: SessionPolicy) -> Grant:
        account = await prepare(registration, self._passwords, strict=self._strict)
        now = self._clock.now()
        async with self._db.transaction() as tx:
            user = await insert_user(tx, account, now)
            refresh = await self._open(tx, user, policy, now)
        return self._grant(user, refresh, policy, now)

    async def sign_in(self, login: str, password: str, policy: SessionPolicy) -> Grant:
        if len(password) >= rules.PASSWORD.stop:  # nobody's password: not worth hashing
            raise InvalidCredentials()
        key = rules.login_key(login)
        row = await self._db.first(_LOGIN, {"key": key}) if key else None
        stored = row.password_hash if row else None
        if not await self._passwords.verify(stored, password) or row is None or stored is None:
            raise InvalidCredentials()
        if row.disabled_at is not None:
            raise AccountDisabled()
        fresh_hash = await self._passwords.hash(password) if self._passwords.outdated(stored) else stored
        now = self._clock.now()
        async with self._db.transaction() as tx:
            signed_in = await tx.first(
                _SIGN_IN, {"whom": row.id, "stored": stored, "last_login_at": now, "password_hash": fresh_hash}
            )
            if signed_in is None:
                raise InvalidCredentials()
            user = user_of(signed_in)
            refresh = await self._open(tx, user, policy, now)
            tx.invalidate(tag(user.id))
        return self._grant(user, refresh, policy, now)

    async def refresh(self, token: str, policy: SessionPolicy) -> Grant:
        now = self._clock.now()
        claims = self._tokens.read(token, type="refresh", audience=policy.audience)
        if claims is None or not is_id(claims["jti"]):
            raise InvalidToken()
        if claims["exp"] <= now.timestamp():
            raise TokenExpired()
        if not policy.rotates:
            return await self._again(token, claims, policy, now)
        async with self._db.transaction() as tx:
            row = await tx.first(_REFRESH, {"id": claims["jti"]})
            if row is None or row.token_hash != digest(token) or row.revoked_at or row.disabled_at:
                raise InvalidToken()
            user = user_of(row)
            refresh = await self._rotate(tx, claims["jti"], row.session_id, user, policy, now)
            if refresh is None:
                await self._revoke_family(tx, user.id, row.session_id, policy, now)
        if refresh is None:
            raise InvalidToken()
        return self._grant(user, refresh, policy, now)

    async def sign_out(self, refresh_token: str, audience: str, access_token: str = "") -> None:
        claims = self._tokens.read(refresh_token, type="refresh", audience=audience)
        row = await self._db.first(_REFRESH, {"id": claims["jti"]}) if claims and is_id(claims["jti"]) else None
        if row is None or row.token_hash != digest(refresh_token):
            raise InvalidToken()
        shown = self._tokens.read(access_token, type="access", audience=audience) or {}
        async with self._db.transaction() as tx:
            for session_id in {row.session_id, shown.get("sid", row.session_id)}:
                await self._end(tx, session_id)

    async def end_session(self, session_id: str) -> None:
        async with self._db.transaction() as tx:
            await self._end(tx, session_id)

    async def forget_expired(self) -> None:
        """Delete sessions and tokens that expired a day ago or more."""
        before = self._clock.now() - timedelta(days=1)
        for table in (SessionRow, RefreshTokenRow, EmailTokenRow):
            old = select(table.id).where(table.expires_at < before)
            await delete_by_parts(self._db, table, table.id, old)

    async def _end(self, tx: Transaction, session_id: str) -> None:
        await tx.execute(_END, {"session": session_id, "at": self._clock.now()})
        tx.invalidate(session_tag(session_id))

    async def _open(self, tx: Transaction, user: User, policy: SessionPolicy, now: datetime) -> RefreshToken:
        session_id = new_id()
        times = {"created_at": now, "expires_at": now + timedelta(seconds=policy.refresh_seconds)}
        await tx.execute(_OPEN, {"id": session_id, "user_id": user.id, "audience": policy.audience, **times})
        return await self._store(tx, new_id(), session_id, user, policy, now)

    async def _store(
        self,
        tx: Transaction,
        token_id: str,
        session_id: str,
        user: User,
        policy: SessionPolicy,
        now: datetime,
    ) -> RefreshToken:
        # Whole seconds, as the claims have them: the same row must give the same token again.
        issued = now.replace(microsecond=0)
        token = RefreshToken(token_id, session_id, issued, issued + timedelta(seconds=policy.refresh_seconds))
        await tx.execute(
            _STORE,
            {
                "id": token_id,
                "session_id": session_id,
                "token_hash": digest(self._signed(token, user, policy)),
                "issued_at": token.issued_at,
                "expires_at": token.expires_at,
            },
        )
        return token

    async def _again(self, token: str, claims: Mapping[str, Any], policy: SessionPolicy, now: datetime) -> Grant:
        """A new access token; the refresh token stays."""
        row = await self._db.first(_REFRESH, {"id": claims["jti"]})
        if row is None or row.token_hash != digest(token) or row.revoked_at or row.disabled_at:
            raise InvalidToken()
        issued, expires = (datetime.fromtimestamp(claims[name], UTC) for name in ("iat", "exp"))
        return self._grant(user_of(row), RefreshToken(claims["jti"], row.session_id, issued, expires), policy, now)

    async def _rotate(
        self,
        tx: Transaction,
        token_id: str,
        session_id: str,
        user: User,
        policy: SessionPolicy,
        now: datetime,
    ) -> RefreshToken | None:
        """The successor; None if the token was spent before and may not be presented again."""
        child_id = new_id()
        if await tx.execute(_ROTATE, {"token_id": token_id, "at": now, "child": child_id}):
            child = await self._store(tx, child_id, session_id, user, policy, now)
            await tx.execute(_EXTEND, {"session": session_id, "expires_at": child.expires_at})
            return child
        row = await tx.first(_SUCCESSOR, {"id": token_id})
        if row is None or row.rotated_at is not None or now - row.parent_rotated_at > GRACE:
            return None
        return RefreshToken(row.id, row.session_id, row.issued_at, row.expires_at)

    async def _revoke_family(
        self, tx: Transaction, user_id: str, session_id: str, policy: SessionPolicy, now: datetime
    ) -> None:
        whose = (
            (SessionRow.user_id == user_id) & (SessionRow.audience == policy.audience)
            if policy.reuse_ends_all
            else SessionRow.id == session_id
        )
        await tx.execute(update(SessionRow).where(whose, SessionRow.revoked_at.is_(None)).values(revoked_at=now))
        tx.invalidate(tag(user_id))

    def _grant(self, user: User, refresh: RefreshToken, policy: SessionPolicy, now: datetime) -> Grant:
        issued = int(now.timestamp())
        access = {
            "type": "access",
            "aud": policy.audience,
            "sub": user.id,
            "sid": refresh.session_id,
            "jti": new_id(),
            "iat": issued,
            "exp": issued + policy.access_seconds,
        }
        if user.username:
            access["username"] = user.username
        return Grant(
            user=user,
            session_id=refresh.session_id,
            access_token=self._tokens.sign(access),
            refresh_token=self._signed(refresh, user, policy),
            expires_in=policy.access_seconds,
        )

    def _signed(self, token: RefreshToken, user: User, policy: SessionPolicy) -> str:
        return self._tokens.sign(
            {
                "type": "refresh",
                "aud": policy.audience,
                "sub": user.id,
                "sid": token.session_id,
                "jti": token.id,
                "iat": int(token.issued_at.timestamp()),
                "exp": int(token.expires_at.timestamp()),
            }
        )
