"""No body changes what its operation does not take: thirty privileged fields, in every operation that writes."""

from typing import Any

import httpx2
from sqlalchemy import select

from bedplate.kernel.ids import new_id, prefixed
from bedplate.models import SessionRow, UserRow
from bedplate.modules.identity.public import Confirmations, Purpose
from tests import factories
from tests.factories import PASSWORD, Account
from tests.security.crowd import on_both_engines
from tests.world import World

PAST = "2001-01-01T00:00:00Z"
STOLEN = new_id()
PRIVILEGED: dict[str, Any] = {
    "id": STOLEN,
    "user_id": STOLEN,
    "sub": STOLEN,
    "role": "admin",
    "roles": ["admin"],
    "is_admin": True,
    "admin": True,
    "isAdmin": True,
    "is_superuser": True,
    "is_staff": True,
    "permissions": ["*"],
    "scopes": ["admin"],
    "email_verified": True,
    "emailVerified": True,
    "verified": True,
    "is_active": True,
    "disabled": False,
    "disabled_at": PAST,
    "password_hash": "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$bm90aGluZw",
    "hashed_password": "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$bm90aGluZw",
    "email_key": "stolen@example.com",
    "username_key": "stolen",
    "created_at": PAST,
    "updated_at": PAST,
    "last_login_at": PAST,
    "session_id": STOLEN,
    "sid": STOLEN,
    "expires_at": "2999-01-01T00:00:00Z",
    "expires_in": 10**9,
    "audience": "internal",
    "actor_id": STOLEN,
    "tenant_id": STOLEN,
    "__proto__": {"role": "admin"},
    "profile": {"role": "admin"},
    "user": {"role": "admin", "email_verified": True},
}
SIGN_UPS = (
    ("cobalt", "/api/auth/register"),
    ("pantstack", "/api/v1/users"),
    ("pynode", "/api/auth/register"),
)
KEPT = (
    "id",
    "role",
    "email_verified",
    "disabled_at",
    "created_at",
    "email",
    "email_key",
    "username",
    "username_key",
    "phone",
    "profile",
    "first_name",
    "last_name",
    "password_hash",
)


async def row_of(world: World, email: str) -> dict[str, Any]:
    assert world.runtime.database is not None
    row = await world.runtime.database.first(select(UserRow.__table__).where(UserRow.email == email))
    assert row is not None, f"no account of {email}"
    return dict(row._mapping)


async def kept(world: World, email: str, *but: str) -> dict[str, Any]:
    row = await row_of(world, email)
    return {name: row[name] for name in KEPT if name not in but}


async def sessions(world: World, email: str) -> set[tuple[Any, ...]]:
    assert world.runtime.database is not None
    of_account = select(SessionRow.id, SessionRow.audience, SessionRow.expires_at).join(
        UserRow, UserRow.id == SessionRow.user_id
    )
    return {tuple(row) for row in await world.runtime.database.all(of_account.where(UserRow.email == email))}


def assert_new_account_is_ordinary(row: dict[str, Any]) -> None:
    assert row["id"] != STOLEN
    assert (row["role"], row["email_verified"], row["disabled_at"], row["profile"]) == ("user", False, None, None)
    assert row["created_at"].year > 2001
    assert row["email_key"] == row["email"]
    assert row["password_hash"] not in PRIVILEGED.values()


@on_both_engines
async def test_a_new_account_is_an_ordinary_one(world: World) -> None:
    for field, value in PRIVILEGED.items():
        more = {field: value}
        for system, path in SIGN_UPS:
            email = factories.email()
            body = {"email": email, "username": factories.username(), "name": "Mallory", "password": PASSWORD}
            answer = await world.client(system).post(path, json=body | more, params=flat(more))
            assert answer.status_code == 201, f"{field}: {answer.text}"
            assert_new_account_is_ordinary(await row_of(world, email))


@on_both_engines
async def test_no_field_more_changes_an_account(world: World) -> None:
    account = await world.user("pantstack")
    own = f"/api/v1/users/{prefixed('usr', account.id)}"
    before = await kept(world, account.email)
    for field, value in PRIVILEGED.items():
        more = {field: value}
        answer = await account.client.put(own, json={"name": f"Not {field}"} | more, params=flat(more))
        assert answer.status_code == 200, answer.text
        assert (await row_of(world, account.email))["name"] == f"Not {field}"
        answer = await account.client.put(own, json=more)
        assert answer.status_code == 200, answer.text
    assert await kept(world, account.email) == before
    assert (await account.client.get("/api/v1/users")).status_code == 403


@on_both_engines
async def test_no_field_more_changes_what_the_other_operations_do(world: World) -> None:
    """Signing in and out, refreshing, verifying, resetting: the account stays what it was, sessions are as granted."""
    account = await world.user("cobalt")
    before = await kept(world, account.email)
    known = await sessions(world, account.email)
    for field, value in PRIVILEGED.items():
        for answer in await act(world, account, {field: value}):
            assert answer.status_code in (200, 204), f"{field}: {answer.text}"
    assert await kept(world, account.email) == before
    for session_id, audience, expires_at in await sessions(world, account.email) - known:
        assert session_id != STOLEN
        assert audience in ("cobalt", "pantstack")
        assert expires_at.year < 2999


async def act(world: World, account: Account, more: dict[str, Any]) -> list[httpx2.Response]:
    cobalt, pantstack = world.client("cobalt"), world.client("pantstack")
    login = {"username": account.email, "email": account.email, "password": PASSWORD}
    answers = [
        await cobalt.post("/api/auth/login", json=login | more, params=flat(more)),
        await cobalt.post("/api/auth/refresh", json=more),
        await cobalt.post("/api/auth/forgot-password", json={"email": account.email} | more),
        await pantstack.post("/api/v1/auth/login", json=login | more, params=flat(more)),
    ]
    tokens = answers[-1].json()
    pantstack.headers["Authorization"] = f"Bearer {tokens['refresh_token']}"
    answers.append(await pantstack.post("/api/v1/auth/refresh", json=more, params=flat(more)))
    pantstack.headers["Authorization"] = f"Bearer {answers[-1].json()['access_token']}"
    answers.append(await pantstack.post("/api/v1/auth/logout", json=more))
    answers.append(await cobalt.post("/api/auth/logout", json=more))
    return answers


@on_both_engines
async def test_a_token_proves_its_address_and_nothing_else(world: World) -> None:
    account = await world.user("cobalt")
    before = await kept(world, account.email, "email_verified", "password_hash")
    confirmations = world.runtime.get(Confirmations)
    for purpose, path in ((Purpose.VERIFY, "/api/auth/verify-email"), (Purpose.RESET, "/api/auth/reset-password")):
        issued = await confirmations.issue_email_token(purpose, account.email, "test", world.clock.now())
        assert issued is not None
        proof = {"token": issued.token, "password": PASSWORD}
        answer = await world.client("cobalt").post(path, json={**PRIVILEGED, **proof})
        assert answer.status_code == 200, answer.text
    assert await kept(world, account.email, "email_verified", "password_hash") == before
    login = {"username": account.email, "password": PASSWORD}
    assert (await world.client("cobalt").post("/api/auth/login", json=login)).status_code == 200


@on_both_engines
async def test_administration_changes_what_it_says_and_nothing_else(world: World) -> None:
    cobalt, pantstack = await world.admin("cobalt"), await world.admin("pantstack")
    account = await world.user("cobalt")
    before = await kept(world, account.email)
    for act in ("disable", "enable"):
        answer = await cobalt.patch(f"/api/admin/users/{account.id}/{act}", json=PRIVILEGED)
        assert answer.status_code == 200, answer.text
    assert await kept(world, account.email) == before
    answer = await pantstack.post("/api/v1/admin/maintenance", json={**PRIVILEGED, "enabled": False})
    assert answer.status_code == 200
    assert answer.json()["updated_at"] > PAST
    assert await kept(world, account.email) == before


@on_both_engines
async def test_no_field_more_makes_anything_of_somebody_elses(world: World) -> None:
    """Dev-PyNode: the account, its messages and its files stay its own."""
    account = await world.user("pynode")
    before = await kept(world, account.email)
    for field, value in PRIVILEGED.items():
        more = {field: value}
        answers = [
            await account.client.put("/api/users/me", json={"name": f"Not {field}"} | more, params=flat(more)),
            await account.client.post("/api/chat", json={"message": "Hello"} | more, params=flat(more)),
            await account.client.post(
                "/api/files/upload", files={"file": ("a.txt", b"a", "text/plain")}, data=flat(more), params=flat(more)
            ),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 201], f"{field}: {answers[-1].text}"
    assert await kept(world, account.email) == before
    history = (await account.client.get("/api/chat/history", params={"limit": 100})).json()
    assert history["total"] == len(PRIVILEGED)
    assert all(each["id"].startswith("chat-") and each["created_at"] > PAST for each in history["messages"])
    assert (await account.client.get("/api/files")).json()["total"] == len(PRIVILEGED)


def flat(more: dict[str, Any]) -> dict[str, str]:
    """The same fields as a query."""
    return {name: str(value) for name, value in more.items()}
