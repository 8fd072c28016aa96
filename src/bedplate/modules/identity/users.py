"""Accounts: the implementation of the Users facade."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    Executable,
    Update,
    UpdateBase,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from bedplate.kernel.cache import Cache
from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.db import Database, Transaction, UniqueViolation
from bedplate.kernel.events import Event
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.outbox import emit
from bedplate.kernel.paging import Page, Slice
from bedplate.kernel.security import Passwords
from bedplate.modules.identity import details as details_of
from bedplate.modules.identity import rules
from bedplate.modules.identity.events import (
    AdminAppointed,
    UserCreated,
    UserDeleted,
    UserDisabled,
    UserEnabled,
    UserUpdated,
    VerificationRequested,
)
from bedplate.modules.identity.history import events_of, record
from bedplate.modules.identity.models import EmailTokenRow, SessionRow, UserRow
from bedplate.modules.identity.public import (
    Account,
    AlreadyDisabled,
    AlreadyEnabled,
    CannotDisableYourself,
    Changes,
    Details,
    EmailTaken,
    Purpose,
    Registration,
    Role,
    User,
    UserCounts,
    UserEvent,
    UserFilter,
    UsernameTaken,
    UserNotFound,
    Users,
)

# In the order of User's fields.
COLUMNS = (
    UserRow.id,
    UserRow.email,
    UserRow.username,
    UserRow.name,
    UserRow.first_name,
    UserRow.last_name,
    UserRow.phone,
    UserRow.role,
    UserRow.email_verified,
    UserRow.disabled_at,
    UserRow.last_login_at,
    UserRow.created_at,
    UserRow.updated_at,
)
ACCOUNT = (*COLUMNS, UserRow.profile)
ALL = "users"
ROLES = {role.value: role for role in Role}

_INSERT = insert(UserRow)
_ADDRESS_TAKEN = select(UserRow.id).where(UserRow.email_key == bindparam("address"))
_BY_ID = select(*COLUMNS).where(UserRow.id == bindparam("id"))
_ACCOUNT_BY_ID = select(*ACCOUNT).where(UserRow.id == bindparam("id"))
# Locked where transactions do not take turns: of two that change parts of one profile, none undoes the other.
_PROFILE = select(UserRow.profile).where(UserRow.id == bindparam("id")).with_for_update()
_UPDATE = update(UserRow).where(UserRow.id == bindparam("user_id")).returning(*COLUMNS)
_UPDATE_ACCOUNT = update(UserRow).where(UserRow.id == bindparam("user_id")).returning(*ACCOUNT)
# Nobody has shown yet that a new address is his; another spelling of the old one is the old one.
_UPDATE_ADDRESS = _UPDATE.values(
    email_key=bindparam("new_key"),
    email_verified=and_(UserRow.email_verified, UserRow.email_key == bindparam("new_key")),
)
_DISABLE = (
    update(UserRow)
    .where(UserRow.id == bindparam("user_id"), UserRow.disabled_at.is_(None))
    .values(disabled_at=bindparam("at"), updated_at=bindparam("at"))
)
_ENABLE = (
    update(UserRow)
    .where(UserRow.id == bindparam("user_id"), UserRow.disabled_at.is_not(None))
    .values(disabled_at=None, updated_at=bindparam("at"))
)
_END_SESSIONS = (
    update(SessionRow)
    .where(SessionRow.user_id == bindparam("user"), SessionRow.revoked_at.is_(None))
    .values(revoked_at=bindparam("at"))
)


def spend_tokens(user_id: str, at: datetime) -> Update:
    """Make an account's open e-mail tokens useless. They are kept, because how often we write is counted by them."""
    whose = (EmailTokenRow.user_id == user_id, EmailTokenRow.used_at.is_(None))
    return update(EmailTokenRow).where(*whose).values(used_at=at)


async def end_access(tx: Transaction, user_id: str, at: datetime, keep_session: str | None = None) -> None:
    """End an account's sessions, but for one, and its open password resets: its password was changed."""
    sessions = _END_SESSIONS.where(SessionRow.id != keep_session) if keep_session else _END_SESSIONS
    await tx.execute(sessions, {"user": user_id, "at": at})
    await tx.execute(spend_tokens(user_id, at).where(EmailTokenRow.purpose == Purpose.RESET.value))
    tx.invalidate(tag(user_id))


def tag(user_id: str) -> str:
    """The cache tag of everything that is known of one account."""
    return f"user:{user_id}"


def user_of(row: Sequence[Any]) -> User:
    """A row that begins with COLUMNS, as a value."""
    return User(*row[:7], ROLES[row[7]], *row[8 : len(COLUMNS)])  # type: ignore[call-arg]  # mypy counts two lists


def account_of(row: Sequence[Any]) -> Account:
    """A row of ACCOUNT, as a value."""
    return Account(user_of(row), details_of.profile_of(row[len(COLUMNS)]))


@dataclass(frozen=True, slots=True)
class NewAccount:
    """A registration that keeps all rules, with its password hashed."""

    email: rules.Mailbox
    username: str | None
    name: str | None
    details: dict[str, str]
    password_hash: str


async def prepare(registration: Registration, passwords: Passwords, *, strict: bool) -> NewAccount:
    """Check the rules in the order of the form, then hash. Before any transaction: hashing takes long."""
    username = registration.username
    if registration.username_required or username is not None:
        username = rules.username(username or "")
    email = rules.email(registration.email)
    name = rules.name(registration.name) if registration.name is not None else None
    details = details_of.columns(Details(registration.first_name, registration.last_name, registration.phone))
    password = rules.password(registration.password, strict=strict)
    return NewAccount(email, username, name, details, await passwords.hash(password))


async def insert_user(tx: Transaction, account: NewAccount, at: datetime, role: Role = Role.USER) -> User:
    """Insert and announce a new account. Administrators begin verified; others are mailed a link."""
    user = User(
        id=new_id(),
        email=account.email.address,
        username=account.username,
        name=account.name,
        first_name=account.details.get("first_name"),
        last_name=account.details.get("last_name"),
        phone=account.details.get("phone"),
        role=role,
        email_verified=role is Role.ADMIN,
        disabled_at=None,
        last_login_at=None,
        created_at=at,
        updated_at=at,
    )
    # Looked at first because an engine may name either of two violations, and the address is the one to be named.
    if await tx.first(_ADDRESS_TAKEN, {"address": account.email.key}) is not None:
        raise EmailTaken()
    try:
        await tx.execute(
            _INSERT,
            {
                "id": user.id,
                "email": user.email,
                "email_key": account.email.key,
                "username": user.username,
                "username_key": rules.key_of(user.username) if user.username else None,
                "password_hash": account.password_hash,
                "name": user.name,
                "first_name": user.first_name,
                "last_name": user.last_name,
                "phone": user.phone,
                "role": role.value,
                "email_verified": user.email_verified,
                "created_at": at,
                "updated_at": at,
            },
        )
    except UniqueViolation as taken:
        raise (UsernameTaken() if taken.on("username_key") else EmailTaken()) from taken
    await record(tx, UserCreated(user.id, user.email, user.username, iso(at)), at)
    if user.is_admin:
        await emit(tx, AdminAppointed(user.id), at)
    tx.invalidate(ALL)
    return user


class UsersService(Users):
    def __init__(
        self, db: Database, cache: Cache, passwords: Passwords, clock: Clock, *, strict_passwords: bool
    ) -> None:
        self._db = db
        self._cache = cache
        self._passwords = passwords
        self._clock = clock
        self._strict = strict_passwords

    async def register(self, registration: Registration) -> User:
        account = await prepare(registration, self._passwords, strict=self._strict)
        async with self._db.transaction() as tx:
            return await insert_user(tx, account, self._clock.now())

    async def create_admin(self, registration: Registration) -> User:
        account = await prepare(registration, self._passwords, strict=self._strict)
        async with self._db.transaction() as tx:
            return await insert_user(tx, account, self._clock.now(), Role.ADMIN)

    async def promote(self, registration: Registration) -> User:
        mailbox = rules.email(registration.email)
        password = rules.password(registration.password, strict=self._strict)
        now = self._clock.now()
        changes = {
            "role": Role.ADMIN.value,
            "email_verified": True,
            "password_hash": await self._passwords.hash(password),
            "updated_at": now,
        }
        appoint = update(UserRow).where(UserRow.email_key == mailbox.key).values(changes).returning(*COLUMNS)
        async with self._db.transaction() as tx:
            row = await tx.first(appoint)
            if row is None:
                raise UserNotFound()
            await end_access(tx, row.id, now)
            await emit(tx, AdminAppointed(row.id), now)
            tx.invalidate(ALL)
        return user_of(row)

    async def get_user(self, user_id: str) -> User:
        return (await self.get_account(user_id)).user

    async def get_account(self, user_id: str) -> Account:
        async def load() -> Account:
            row = await self._db.first(_ACCOUNT_BY_ID, {"id": user_id})
            if row is None:
                raise UserNotFound()
            return account_of(row)

        if not is_id(user_id):
            raise UserNotFound()
        return await self._cache.get(f"account:{user_id}", load, lambda account: (tag(account.user.id),))

    async def list_users(self, filter: UserFilter, part: Slice) -> Page[User]:
        listing, counting = _matching(filter.role is not None, filter.email_verified is not None, bool(filter.search))
        wanted = {
            "role": filter.role,
            "verified": filter.email_verified,
            "search": f"%{_escaped(rules.key_of(filter.search or ''))}%",
            "address": f"%{_escaped((filter.search or '').lower())}%",
        }
        rows = await self._db.all(listing, {**wanted, "limit": part.limit, "offset": part.offset})

        async def count() -> int:
            return int(await self._db.scalar(counting, wanted))

        # An exact total is a scan of the table: it is remembered until an account comes, goes or changes its state.
        total = await self._cache.get(f"users:total:{filter!r}", count, lambda _: (ALL,))
        return Page([user_of(row) for row in rows], total)

    async def count_users(self) -> UserCounts:
        async def count() -> UserCounts:
            row = await self._db.first(
                select(
                    func.count(),
                    func.count(case((UserRow.email_verified, 1))),
                    func.count(case((UserRow.role == Role.ADMIN.value, 1))),
                    func.count(UserRow.disabled_at),
                ).select_from(UserRow)
            )
            assert row is not None
            return UserCounts(*row)

        return await self._cache.get("users:counts", count, lambda _: (ALL,))

    async def update_user(self, user_id: str, changes: Changes, keep_session: str | None = None) -> User:
        values = await self._values(changes)
        if not is_id(user_id):
            raise UserNotFound()
        now = self._clock.now()
        async with self._db.transaction() as tx:
            moved = "new_key" in values and await self._moves(tx, user_id, values["new_key"])
            try:
                statement = _UPDATE_ADDRESS if "new_key" in values else _UPDATE
                row = await tx.first(statement, {"user_id": user_id, "updated_at": now, **values})
            except UniqueViolation as taken:
                raise EmailTaken() from taken
            if row is None:
                raise UserNotFound()
            if moved:
                # A link that was mailed to the old address proves nothing about the new one.
                await tx.execute(spend_tokens(user_id, now))
                await emit(tx, VerificationRequested(user_id, row.email), now)
                tx.invalidate(ALL)
            if "password_hash" in values:
                await end_access(tx, user_id, now, keep_session)
            if given := [each for each in ("email", "name", "password") if getattr(changes, each) is not None]:
                await record(tx, UserUpdated(row.id, given, iso(now)), now)
            tx.invalidate(tag(row.id))
        return user_of(row)

    async def update_details(self, user_id: str, details: Details) -> Account:
        now = self._clock.now()
        values, profile = details_of.columns(details), details_of.given_of(details.profile, now.date())
        given = [*values, *(f"profile.{name}" for name in profile)]
        if not given or not is_id(user_id):
            return await self.get_account(user_id)
        async with self._db.transaction() as tx:
            if profile:
                values["profile"] = details_of.merged(await tx.scalar(_PROFILE, {"id": user_id}), profile)
            row = await tx.first(_UPDATE_ACCOUNT, {"user_id": user_id, "updated_at": now, **values})
            if row is None:
                raise UserNotFound()
            await record(tx, UserUpdated(row.id, given, iso(now)), now)
            tx.invalidate(tag(row.id))
        return account_of(row)

    async def list_events(self, user_id: str, part: Slice) -> Page[UserEvent]:
        user = await self.get_user(user_id)
        return await events_of(self._db, user.id, part)

    async def delete_user(self, user_id: str, actor_id: str) -> None:
        async with self._db.transaction() as tx:
            if not is_id(user_id) or not await tx.execute(delete(UserRow).where(UserRow.id == user_id)):
                raise UserNotFound()
            await emit(tx, UserDeleted(user_id, actor_id), self._clock.now())
            tx.invalidate(tag(user_id), ALL)

    async def disable_user(self, user_id: str, actor_id: str) -> None:
        if user_id == actor_id:
            raise CannotDisableYourself()
        now = self._clock.now()
        async with self._db.transaction() as tx:
            await _change_state(tx, _DISABLE, user_id, now, AlreadyDisabled(), UserDisabled(user_id, actor_id))
            await tx.execute(_END_SESSIONS, {"user": user_id, "at": now})

    async def enable_user(self, user_id: str, actor_id: str) -> None:
        now = self._clock.now()
        async with self._db.transaction() as tx:
            await _change_state(tx, _ENABLE, user_id, now, AlreadyEnabled(), UserEnabled(user_id, actor_id))

    async def _moves(self, tx: Transaction, user_id: str, new_key: str) -> bool:
        return bool(await tx.scalar(select(UserRow.email_key != new_key).where(UserRow.id == user_id)))

    async def _values(self, changes: Changes) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if changes.email is not None:
            email = rules.email(changes.email)
            values |= {"email": email.address, "new_key": email.key}
        if changes.name is not None:
            values["name"] = rules.name(changes.name)
        if changes.password is not None:
            values["password_hash"] = await self._passwords.hash(rules.password(changes.password, strict=self._strict))
        return values


async def _change_state(
    tx: Transaction, change: UpdateBase, user_id: str, now: datetime, unchanged: Exception, event: Event
) -> None:
    found = is_id(user_id) and await tx.first(_BY_ID, {"id": user_id})
    if not found:
        raise UserNotFound()
    if not await tx.execute(change, {"user_id": user_id, "at": now}):
        raise unchanged
    await emit(tx, event, now)
    tx.invalidate(tag(user_id), ALL)


@cache
def _matching(role: bool, verified: bool, search: bool) -> tuple[Executable, Executable]:
    """The statements for a page and for the total, by which filters are set. Built once: that costs more than to run
    them."""
    conditions = []
    if role:
        conditions.append(UserRow.role == bindparam("role"))
    if verified:
        conditions.append(UserRow.email_verified == bindparam("verified"))
    if search:
        name: BindParameter[str] = bindparam("search")
        address: BindParameter[str] = bindparam("address")
        found = (UserRow.username_key.like(name, escape="\\"), UserRow.email_key.like(address, escape="\\"))
        conditions.append(or_(*found))
    page = select(*COLUMNS).where(*conditions).order_by(UserRow.created_at.desc(), UserRow.id.desc())
    total = select(func.count()).select_from(UserRow).where(*conditions)
    return page.limit(bindparam("limit")).offset(bindparam("offset")), total


def _escaped(part: str) -> str:
    return part.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
