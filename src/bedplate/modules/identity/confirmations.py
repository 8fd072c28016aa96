"""Proof by e-mail: random tokens for one use, of which only hashes are stored."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.db import Database, Transaction
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.outbox import emit
from bedplate.kernel.security import Passwords, digest, random_token
from bedplate.modules.identity import rules
from bedplate.modules.identity.events import PasswordResetRequested, UserVerified, VerificationRequested
from bedplate.modules.identity.history import record
from bedplate.modules.identity.models import EmailTokenRow, UserRow
from bedplate.modules.identity.public import (
    Account,
    AlreadyVerified,
    Confirmations,
    EmailToken,
    InvalidResetToken,
    InvalidVerificationToken,
    Purpose,
    User,
    UserNotFound,
)
from bedplate.modules.identity.users import ACCOUNT, ALL, COLUMNS, account_of, end_access, tag, user_of

LIFETIME = {Purpose.VERIFY: timedelta(hours=24), Purpose.RESET: timedelta(hours=1)}
PAUSE = timedelta(seconds=60)

_GOOD = (
    EmailTokenRow.token_hash == bindparam("hash"),
    EmailTokenRow.purpose == bindparam("wanted"),
    EmailTokenRow.used_at.is_(None),
    EmailTokenRow.expires_at > bindparam("at"),
)
_FIND = select(EmailTokenRow.id).where(*_GOOD)
# One statement decides: of many attempts one succeeds.
_SPEND = update(EmailTokenRow).where(*_GOOD).values(used_at=bindparam("at")).returning(EmailTokenRow.user_id)
_SPEND_OWN = _SPEND.where(EmailTokenRow.user_id == bindparam("owner"))
_VERIFY = (
    update(UserRow)
    .where(UserRow.id == bindparam("user"), UserRow.email_verified.is_(False))
    .values(email_verified=True, updated_at=bindparam("at"))
    .returning(*ACCOUNT)
)
_ACCOUNT = select(*ACCOUNT).where(UserRow.id == bindparam("user"))


class ConfirmationsService(Confirmations):
    def __init__(self, db: Database, passwords: Passwords, clock: Clock, *, strict_passwords: bool) -> None:
        self._db = db
        self._passwords = passwords
        self._clock = clock
        self._strict = strict_passwords

    async def request_verification(self, user_id: str) -> None:
        async with self._db.transaction() as tx:
            row = await tx.first(select(*COLUMNS).where(UserRow.id == user_id))
            if row is None:
                raise UserNotFound()
            if row.email_verified:
                raise AlreadyVerified()
            await emit(tx, VerificationRequested(row.id, row.email), self._clock.now())

    async def verify_email(self, token: str) -> User:
        now = self._clock.now()
        async with self._db.transaction() as tx:
            spent = await tx.first(_SPEND, _wanted(token, Purpose.VERIFY, now))
            if spent is None:
                raise InvalidVerificationToken()
            return (await _verified(tx, spent.user_id, now)).user

    async def verify_user(self, user_id: str, token: str) -> Account:
        if not is_id(user_id):
            raise UserNotFound()
        now = self._clock.now()
        async with self._db.transaction() as tx:
            spent = await tx.first(_SPEND_OWN, {**_wanted(token, Purpose.VERIFY, now), "owner": user_id})
            if spent is not None:
                return await _verified(tx, spent.user_id, now)
            known = await tx.first(_ACCOUNT, {"user": user_id})
        raise InvalidVerificationToken() if known else UserNotFound()

    async def request_password_reset(self, email: str) -> None:
        # The address is written as it came, even if nobody has it: the same work, so the same time.
        async with self._db.transaction() as tx:
            await emit(tx, PasswordResetRequested(rules.email(email).address), self._clock.now())

    async def reset_password(self, token: str, password: str) -> None:
        rules.password(password, strict=self._strict)
        if not await self._db.first(_FIND, _wanted(token, Purpose.RESET, self._clock.now())):
            raise InvalidResetToken()  # before the costly hash, so that guessing costs us little
        password_hash = await self._passwords.hash(password)
        now = self._clock.now()
        async with self._db.transaction() as tx:
            spent = await tx.first(_SPEND, _wanted(token, Purpose.RESET, now))
            if spent is None:
                raise InvalidResetToken()
            await tx.execute(
                update(UserRow).where(UserRow.id == spent.user_id).values(password_hash=password_hash, updated_at=now)
            )
            await end_access(tx, spent.user_id, now)

    async def issue_email_token(
        self, purpose: Purpose, email: str, cause: str, requested_at: datetime
    ) -> EmailToken | None:
        now = self._clock.now()
        async with self._db.transaction() as tx:
            row = await tx.first(select(*COLUMNS).where(UserRow.email_key == rules.email(email).key))
            if row is None or row.disabled_at or (purpose is Purpose.VERIFY and row.email_verified):
                return None
            # The same event delivered again is not a second request.
            recent = select(EmailTokenRow.id).where(
                EmailTokenRow.user_id == row.id,
                EmailTokenRow.purpose == purpose.value,
                EmailTokenRow.requested_at > requested_at - PAUSE,
                EmailTokenRow.cause != cause,
            )
            if await tx.first(recent.limit(1)):
                return None
            token = random_token()
            await tx.execute(
                insert(EmailTokenRow),
                {
                    "id": new_id(),
                    "user_id": row.id,
                    "purpose": purpose.value,
                    "token_hash": digest(token),
                    "cause": cause,
                    "requested_at": requested_at,
                    "expires_at": now + LIFETIME[purpose],
                },
            )
        return EmailToken(user_of(row), token)


def _wanted(token: str, purpose: Purpose, now: datetime) -> dict[str, Any]:
    return {"hash": digest(token), "wanted": purpose.value, "at": now}


async def _verified(tx: Transaction, user_id: str, now: datetime) -> Account:
    """The account with its address verified. An account that has several links open is told of the first."""
    row = await tx.first(_VERIFY, {"user": user_id, "at": now})
    if row is None:
        row = await tx.first(_ACCOUNT, {"user": user_id})
        assert row is not None  # the token goes with its account
        return account_of(row)
    await record(tx, UserVerified(user_id, iso(now)), now)
    tx.invalidate(tag(user_id), ALL)
    return account_of(row)
