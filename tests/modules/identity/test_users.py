"""Accounts, through the Users facade in each deployment."""

import asyncio
from datetime import date
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.kernel.errors import InvalidField, Problem
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.paging import Slice
from bedplate.modules.identity import rules
from bedplate.modules.identity.public import (
    AlreadyDisabled,
    AlreadyEnabled,
    CannotDisableYourself,
    Changes,
    Confirmations,
    EmailTaken,
    InvalidCredentials,
    Purpose,
    Registration,
    Role,
    SessionPolicy,
    Sessions,
    User,
    UserCounts,
    UserFilter,
    UsernameTaken,
    UserNotFound,
    Users,
)
from tests import factories
from tests.factories import PASSWORD
from tests.world import World

POLICY = SessionPolicy("cobalt", access_seconds=900, refresh_seconds=604_800)


@pytest.fixture
def users(world: World) -> Users:
    return world.front.get(Users)


@pytest.fixture
def sessions(world: World) -> Sessions:
    return world.front.get(Sessions)


def registration(**details: Any) -> Registration:
    return Registration(**({"email": factories.email(), "password": PASSWORD} | details))


async def test_a_new_account_is_a_user_who_has_still_to_verify(users: Users, world: World) -> None:
    before = world.clock.now()
    user = await users.register(registration(email="Alice.Liddell@Example.COM", username="alice", name=" Alice "))
    assert is_id(user.id)
    assert (user.email, user.username, user.name) == ("Alice.Liddell@example.com", "alice", "Alice")
    assert (user.role, user.email_verified, user.disabled_at, user.last_login_at) == (Role.USER, False, None, None)
    assert before <= user.created_at == user.updated_at <= world.clock.now()
    assert await users.get_user(user.id) == user


async def test_an_administrator_begins_verified(users: Users) -> None:
    user = await users.create_admin(registration())
    assert (user.is_admin, user.email_verified) == (True, True)


async def test_an_address_exists_once_in_any_spelling(users: Users) -> None:
    await users.register(registration(email="bob@example.com"))
    for other in ("bob@example.com", "BOB@EXAMPLE.COM", "Bob@Example.Com"):
        with pytest.raises(EmailTaken):
            await users.register(registration(email=other))


async def test_a_username_exists_once_in_any_spelling(users: Users) -> None:
    await users.register(registration(username="strasse"))
    for other in ("strasse", "STRASSE", "straße", "\uff33trasse"):
        with pytest.raises(UsernameTaken):
            await users.register(registration(username=other))


async def test_of_many_simultaneous_registrations_one_succeeds_and_the_others_are_conflicts(users: Users) -> None:
    outcomes = await asyncio.gather(
        *(users.register(registration(email="race@example.com")) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(each, User) for each in outcomes) == 1
    assert sum(isinstance(each, EmailTaken) for each in outcomes) == 9


BROKEN_RULES: list[tuple[dict[str, Any], str, str]] = [
    ({"username": ""}, "username", "Username cannot be empty"),
    ({"username_required": True}, "username", "Username cannot be empty"),
    ({"username": "ab"}, "username", "Username must be between 3 and 50 characters"),
    ({"username": "a" * 51}, "username", "Username must be between 3 and 50 characters"),
    ({"username": "a@b.example"}, "username", "Username must not contain @, spaces or control characters"),
    ({"username": "two words"}, "username", "Username must not contain @, spaces or control characters"),
    ({"username": "bell\x07bell"}, "username", "Username must not contain @, spaces or control characters"),
    ({"username": "line\u2028end"}, "username", "Username must not contain @, spaces or control characters"),
    ({"email": ""}, "email", "Email cannot be empty"),
    ({"email": "nobody"}, "email", "Invalid email format"),
    ({"email": "a@b@c.example"}, "email", "Invalid email format"),
    ({"email": "a b@example.com"}, "email", "Invalid email format"),
    ({"email": f"a@{'b' * 250}.example"}, "email", "Invalid email format"),
    ({"email": "evil\r\nBcc: x@example.com"}, "email", "Invalid email format"),
    ({"email": "=?utf-8?q?ada?=@example.com"}, "email", "Invalid email format"),
    ({"email": "=?utf-8?q?a=40evil.example=2C?=@example.com"}, "email", "Invalid email format"),
    ({"name": "   "}, "name", "Name cannot be empty"),
    ({"name": "n" * 201}, "name", "Name must not exceed 200 characters"),
    ({"name": "evil\nname"}, "name", "Name must not contain control characters"),
    ({"password": "1234567"}, "password", "Password must be at least 8 characters"),
    ({"password": "x" * 129}, "password", "Password must not exceed 128 characters"),
    ({"password": ""}, "password", "Password must be at least 8 characters"),
]


async def test_a_registration_that_breaks_a_rule_is_told_which(users: Users) -> None:
    for details, field, reason in BROKEN_RULES:
        with pytest.raises(InvalidField) as refused:
            await users.register(registration(**details))
        assert (refused.value.details["field"], str(refused.value)) == (field, reason), details
    assert (await users.count_users()).total == 0


WITHIN_THE_RULES = [
    {"username": "abc"},
    {"username": "a" * 50},
    {"username": "日本語"},
    {"password": "x" * 8},
    {"password": "ü" * 128},
    {"name": "n" * 200},
    {"name": "Zoë O'Hara 王"},
    {"email": "very.common+tag@sub.example.com"},
]


async def test_what_is_within_the_rules_is_taken_and_kept_as_it_is(users: Users, sessions: Sessions) -> None:
    for details in WITHIN_THE_RULES:
        user = await users.register(registration(**details))
        for name, value in details.items():
            if name != "password":
                assert getattr(user, name) == value
        assert (await sessions.sign_in(user.email, details.get("password", PASSWORD), POLICY)).user.id == user.id


@given(st.text())
def test_the_rules_answer_any_text_with_a_value_or_a_reason(text: str) -> None:
    texts = (partial(rules.profile_text, field="bio", longest=10, lines=lines) for lines in (True, False))
    day = partial(rules.date_of_birth, today=date(2026, 11, 22))
    address = partial(rules.web_address, field="profile.avatar_url")
    for rule in (rules.username, rules.email, rules.name, rules.phone, *texts, day, address):
        try:
            assert rule(text) is not None
        except InvalidField as refused:
            assert refused.details["reason"]
    assert isinstance(rules.key_of(text), str)


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("x1!x1!x1!x1", "Password must be at least 12 characters"),
        ("Passw0rd", "Password must be at least 12 characters"),
        ("Password1234", "Password is too common"),
        ("QWERTYUIOPASDFGH", None),
        ("correct horse battery", None),
    ],
)
def test_the_strict_policy_wants_length_and_no_common_password(password: str, reason: str | None) -> None:
    if reason is None:
        assert rules.password(password, strict=True) == password
        return
    with pytest.raises(InvalidField) as refused:
        rules.password(password, strict=True)
    assert str(refused.value) == reason


async def test_an_unknown_id_is_not_found_whatever_it_looks_like(users: Users) -> None:
    for user_id in ("", "1", "usr_x", "'; DROP TABLE identity_users; --", "\0", new_id()):
        with pytest.raises(UserNotFound):
            await users.get_user(user_id)
        with pytest.raises(UserNotFound):
            await users.update_user(user_id, Changes(name="New"))
        for act in (users.delete_user, users.disable_user, users.enable_user):
            with pytest.raises(UserNotFound):
                await act(user_id, new_id())


async def test_changes_change_what_they_name_and_nothing_else(users: Users, world: World) -> None:
    user = await users.register(registration(username="carol", name="Carol"))
    world.clock.advance(10)
    changed = await users.update_user(user.id, Changes(name="Caroline"))
    assert changed.name == "Caroline"
    assert changed.updated_at > user.updated_at
    assert changed._replace(name="Carol", updated_at=user.updated_at) == user
    assert await users.get_user(user.id) == changed


async def test_another_address_has_to_be_verified_again_and_old_links_are_dead(users: Users, world: World) -> None:
    user = await users.register(registration())
    confirmations = world.front.get(Confirmations)
    issued = await confirmations.issue_email_token(Purpose.VERIFY, user.email, "cause", world.clock.now())
    assert issued is not None
    other = await confirmations.issue_email_token(Purpose.VERIFY, user.email, "cause", world.clock.now())
    assert other is not None
    assert (await confirmations.verify_email(issued.token)).email_verified
    moved = await users.update_user(user.id, Changes(email=factories.email("moved")))
    assert not moved.email_verified
    with pytest.raises(Problem):
        await confirmations.verify_email(other.token)


async def test_the_same_address_again_stays_verified(users: Users, world: World) -> None:
    admin = await users.create_admin(registration(email="dora@example.com"))
    assert (await users.update_user(admin.id, Changes(email="DORA@example.com"))).email_verified


async def test_somebody_elses_address_is_taken(users: Users) -> None:
    await users.register(registration(email="first@example.com"))
    second = await users.register(registration())
    with pytest.raises(EmailTaken):
        await users.update_user(second.id, Changes(email="First@Example.com"))


async def test_a_new_password_replaces_the_old_one(users: Users, sessions: Sessions) -> None:
    user = await users.register(registration())
    await users.update_user(user.id, Changes(password="another good password"))
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(user.email, PASSWORD, POLICY)
    assert await sessions.sign_in(user.email, "another good password", POLICY)


async def test_a_deleted_account_is_gone_and_its_address_free(users: Users, sessions: Sessions) -> None:
    user = await users.register(registration(username="erin"))
    await users.delete_user(user.id, new_id())
    with pytest.raises(UserNotFound):
        await users.get_user(user.id)
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(user.email, PASSWORD, POLICY)
    again = await users.register(registration(email=user.email, username="erin"))
    assert again.id != user.id


async def test_disabling_and_enabling_are_done_once(users: Users) -> None:
    admin = await users.create_admin(registration())
    user = await users.register(registration())
    with pytest.raises(AlreadyEnabled):
        await users.enable_user(user.id, admin.id)
    await users.disable_user(user.id, admin.id)
    assert (await users.get_user(user.id)).disabled_at is not None
    with pytest.raises(AlreadyDisabled):
        await users.disable_user(user.id, admin.id)
    await users.enable_user(user.id, admin.id)
    assert (await users.get_user(user.id)).disabled_at is None


async def test_nobody_disables_himself(users: Users) -> None:
    admin = await users.create_admin(registration())
    with pytest.raises(CannotDisableYourself):
        await users.disable_user(admin.id, admin.id)


async def test_an_existing_account_is_made_a_verified_administrator(users: Users) -> None:
    user = await users.register(registration(email="frank@example.com"))
    promoted = await users.promote(Registration("FRANK@example.com", PASSWORD))
    assert (promoted.id, promoted.is_admin, promoted.email_verified) == (user.id, True, True)
    with pytest.raises(UserNotFound):
        await users.promote(Registration("nobody@example.com", PASSWORD))


async def test_lists_are_newest_first_with_the_exact_total(users: Users, world: World) -> None:
    made = []
    for _ in range(5):
        made.append(await users.register(registration()))
        world.clock.advance(1)
    newest_first = [user.id for user in reversed(made)]
    page = await users.list_users(UserFilter(), Slice(2, 1))
    assert [user.id for user in page.items] == newest_first[1:3]
    assert page.total == 5
    beyond = await users.list_users(UserFilter(), Slice(10, 2**31))
    assert (beyond.items, beyond.total) == ([], 5)


async def test_totals_and_counts_follow_every_change(users: Users) -> None:
    admin = await users.create_admin(registration())
    assert await users.count_users() == UserCounts(total=1, verified=1, admins=1, disabled=0)
    user = await users.register(registration())
    assert await users.count_users() == UserCounts(total=2, verified=1, admins=1, disabled=0)
    await users.disable_user(user.id, admin.id)
    assert await users.count_users() == UserCounts(total=2, verified=1, admins=1, disabled=1)
    await users.promote(Registration(user.email, PASSWORD))
    assert await users.count_users() == UserCounts(total=2, verified=2, admins=2, disabled=1)
    await users.delete_user(user.id, admin.id)
    assert await users.count_users() == UserCounts(total=1, verified=1, admins=1, disabled=0)
    assert (await users.list_users(UserFilter(), Slice(10, 0))).total == 1


async def test_lists_are_filtered_by_role_state_and_any_part_of_a_name(users: Users) -> None:
    await users.create_admin(registration(email="root@corp.example", username="Root"))
    await users.register(registration(email="gina@corp.example", username="gina_100%"))
    await users.register(registration(email="hugo@home.example", username="Hugo"))

    async def found(**wanted: Any) -> list[str | None]:
        page = await users.list_users(UserFilter(**wanted), Slice(10, 0))
        assert page.total == len(page.items)
        return sorted(user.username or "" for user in page.items)

    assert await found(role=Role.ADMIN) == ["Root"]
    assert await found(role=Role.USER) == ["Hugo", "gina_100%"]
    assert await found(email_verified=True) == ["Root"]
    assert await found(email_verified=False, role=Role.ADMIN) == []
    assert await found(search="CORP.") == ["Root", "gina_100%"]
    assert await found(search="hug") == ["Hugo"]
    assert await found(search="100%") == ["gina_100%"]
    assert await found(search="%") == ["gina_100%"]
    assert await found(search="a_1") == ["gina_100%"]
    assert await found(search="a\\_1") == []
    assert await found(search="") == ["Hugo", "Root", "gina_100%"]


def test_values_do_not_print_their_secrets() -> None:
    assert "hunter2" not in repr(registration(password="hunter2hunter2"))
    assert "hunter2" not in repr(Changes(password="hunter2hunter2"))
