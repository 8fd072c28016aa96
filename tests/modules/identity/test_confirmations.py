"""Proof by e-mail, and service keys, through the facades in each deployment."""

import asyncio
import re

import pytest
from sqlalchemy import select

from bedplate.kernel.errors import InvalidField
from bedplate.kernel.ids import new_id
from bedplate.kernel.security import digest
from bedplate.models import EmailTokenRow, ServiceKeyRow
from bedplate.modules.identity.public import (
    AlreadyVerified,
    Changes,
    Confirmations,
    InvalidCredentials,
    InvalidResetToken,
    InvalidToken,
    InvalidVerificationToken,
    Principals,
    Registration,
    ServiceKeyNotFound,
    ServiceKeys,
    SessionPolicy,
    Sessions,
    TokenRevoked,
    User,
    UserNotFound,
    Users,
)
from tests import factories
from tests.factories import PASSWORD
from tests.world import World

POLICY = SessionPolicy("cobalt", access_seconds=900, refresh_seconds=604_800)
NEW_PASSWORD = "another good password"
HOUR = 3600


@pytest.fixture
def users(world: World) -> Users:
    return world.front.get(Users)


@pytest.fixture
def confirmations(world: World) -> Confirmations:
    return world.front.get(Confirmations)


@pytest.fixture
async def user(users: Users) -> User:
    return await users.register(Registration(factories.email(), PASSWORD))


async def tokens(world: World, user: User, page: str = "verify-email") -> list[str]:
    """The tokens in the links to a page that were mailed to the user, newest first."""
    found = [re.search(rf"/{page}\?token=([0-9a-f]{{64}})", mail.text) for mail in await world.mails(user.email)]
    return [each[1] for each in found if each]


async def reset_token(world: World, user: User) -> str:
    """The token in the newest reset link."""
    return (await tokens(world, user, "reset-password"))[0]


async def test_a_new_account_is_mailed_a_link_that_verifies_it(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    [token] = await tokens(world, user)
    assert (await confirmations.verify_email(token)).email_verified
    assert (await users.get_user(user.id)).email_verified


async def test_a_verification_link_is_for_one_use(world: World, confirmations: Confirmations, user: User) -> None:
    [token] = await tokens(world, user)
    outcomes = await asyncio.gather(*(confirmations.verify_email(token) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(each, InvalidVerificationToken) for each in outcomes) == 7


async def test_a_verification_link_lives_a_day(world: World, confirmations: Confirmations, user: User) -> None:
    [token] = await tokens(world, user)
    world.clock.advance(24 * HOUR + 1)
    with pytest.raises(InvalidVerificationToken):
        await confirmations.verify_email(token)


async def test_a_verification_link_still_works_just_before_its_end(
    world: World, confirmations: Confirmations, user: User
) -> None:
    [token] = await tokens(world, user)
    world.clock.advance(24 * HOUR - 60)
    assert await confirmations.verify_email(token)


async def test_an_older_link_stays_valid_beside_a_newer_one(
    world: World, confirmations: Confirmations, user: User
) -> None:
    await world.deliver()
    world.clock.advance(61)
    await confirmations.request_verification(user.id)
    newer, older = await tokens(world, user)
    assert newer != older
    assert (await confirmations.verify_email(older)).email_verified


async def test_no_more_than_one_link_is_mailed_in_a_minute(
    world: World, confirmations: Confirmations, user: User
) -> None:
    for _ in range(3):
        await confirmations.request_verification(user.id)
    assert len(await tokens(world, user)) == 1
    world.clock.advance(61)
    await confirmations.request_verification(user.id)
    assert len(await tokens(world, user)) == 2


async def test_only_an_existing_unverified_account_can_ask(
    world: World, users: Users, confirmations: Confirmations
) -> None:
    admin = await users.create_admin(Registration(factories.email(), PASSWORD))
    with pytest.raises(AlreadyVerified):
        await confirmations.request_verification(admin.id)
    with pytest.raises(UserNotFound):
        await confirmations.request_verification(new_id())
    assert await world.mails(admin.email) == []


async def test_nonsense_verifies_nothing(world: World, confirmations: Confirmations) -> None:
    for token in ("", "nonsense", "0" * 64, "\0", "x" * 100_000):
        with pytest.raises(InvalidVerificationToken):
            await confirmations.verify_email(token)
        with pytest.raises(InvalidResetToken):
            await confirmations.reset_password(token, NEW_PASSWORD)


async def test_a_token_of_one_purpose_is_none_for_the_other(
    world: World, confirmations: Confirmations, user: User
) -> None:
    [verify] = await tokens(world, user)
    await confirmations.request_password_reset(user.email)
    reset = await reset_token(world, user)
    with pytest.raises(InvalidResetToken):
        await confirmations.reset_password(verify, NEW_PASSWORD)
    with pytest.raises(InvalidVerificationToken):
        await confirmations.verify_email(reset)


async def test_a_reset_sets_the_password_and_ends_every_session(
    world: World, confirmations: Confirmations, user: User
) -> None:
    sessions, principals = world.front.get(Sessions), world.front.get(Principals)
    grants = [await sessions.sign_in(user.email, PASSWORD, POLICY) for _ in range(2)]
    await confirmations.request_password_reset(user.email.upper())
    await confirmations.reset_password(await reset_token(world, user), NEW_PASSWORD)
    for grant in grants:
        with pytest.raises(TokenRevoked):
            await principals.authenticate(grant.access_token, POLICY.audience)
        with pytest.raises(InvalidToken):
            await sessions.refresh(grant.refresh_token, POLICY)
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(user.email, PASSWORD, POLICY)
    assert await sessions.sign_in(user.email, NEW_PASSWORD, POLICY)


async def test_a_reset_link_is_for_one_use_and_lives_an_hour(
    world: World, confirmations: Confirmations, user: User
) -> None:
    await confirmations.request_password_reset(user.email)
    token = await reset_token(world, user)
    outcomes = await asyncio.gather(
        *(confirmations.reset_password(token, f"{NEW_PASSWORD} {n}") for n in range(4)), return_exceptions=True
    )
    assert sum(isinstance(each, InvalidResetToken) for each in outcomes) == 3

    world.clock.advance(61)
    await confirmations.request_password_reset(user.email)
    token = await reset_token(world, user)
    world.clock.advance(HOUR + 1)
    with pytest.raises(InvalidResetToken):
        await confirmations.reset_password(token, NEW_PASSWORD)


async def test_a_new_password_ends_every_open_reset(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    async def opened() -> tuple[str, str]:
        for _ in range(2):
            world.clock.advance(61)
            await confirmations.request_password_reset(user.email)
            await world.deliver()
        newest, older, *_ = await tokens(world, user, "reset-password")
        return newest, older

    newest, older = await opened()
    await confirmations.reset_password(older, NEW_PASSWORD)
    with pytest.raises(InvalidResetToken):
        await confirmations.reset_password(newest, PASSWORD)

    both = await opened()
    await users.update_user(user.id, Changes(password=f"{NEW_PASSWORD} again"))
    for token in both:
        with pytest.raises(InvalidResetToken):
            await confirmations.reset_password(token, PASSWORD)
    assert await world.front.get(Sessions).sign_in(user.email, f"{NEW_PASSWORD} again", POLICY)
    [verify] = await tokens(world, user)
    assert (await confirmations.verify_email(verify)).email_verified, "that is about the address"


async def test_the_same_address_again_keeps_the_link_and_another_is_mailed_a_new_one(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    [link] = await tokens(world, user)
    world.clock.advance(61)
    for same in (user.email, user.email.upper()):
        await users.update_user(user.id, Changes(email=same))
    assert await tokens(world, user) == [link], "nothing more was mailed"
    assert (await confirmations.verify_email(link)).email_verified

    moved = await users.update_user(user.id, Changes(email=factories.email("moved")))
    assert not moved.email_verified
    [fresh] = await tokens(world, moved)
    assert (await confirmations.verify_email(fresh)).email_verified


async def test_a_password_that_breaks_the_rules_does_not_spend_the_link(
    world: World, confirmations: Confirmations, user: User
) -> None:
    await confirmations.request_password_reset(user.email)
    token = await reset_token(world, user)
    with pytest.raises(InvalidField):
        await confirmations.reset_password(token, "short")
    await confirmations.reset_password(token, NEW_PASSWORD)


async def test_a_reset_of_an_unknown_address_looks_like_any_other_and_mails_nothing(
    world: World, confirmations: Confirmations
) -> None:
    await confirmations.request_password_reset("nobody@example.com")
    assert await world.mails("nobody@example.com") == []


async def test_a_disabled_account_is_mailed_nothing(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    await world.deliver()
    await users.disable_user(user.id, new_id())
    await confirmations.request_password_reset(user.email)
    assert len(await world.mails(user.email)) == 1, "only the first, from before"


async def test_only_hashes_of_tokens_are_stored(world: World, user: User) -> None:
    [token] = await tokens(world, user)
    assert world.runtime.database is not None
    rows = await world.runtime.database.all(select(EmailTokenRow.token_hash))
    assert [row.token_hash for row in rows] == [digest(token)]


async def test_a_service_key_is_known_until_it_is_revoked(world: World) -> None:
    keys = world.front.get(ServiceKeys)
    new = await keys.create_key(" orders ")
    assert new.key.startswith("bp_")
    for _ in range(2):
        assert (await keys.authenticate_key(new.key)).name == "orders"
    await keys.revoke_key(new.id)
    with pytest.raises(InvalidToken):
        await keys.authenticate_key(new.key)
    with pytest.raises(ServiceKeyNotFound):
        await keys.revoke_key(new.id)


async def test_service_keys_are_listed_newest_first_without_the_keys(world: World) -> None:
    keys = world.front.get(ServiceKeys)
    made = []
    for name in ("first", "second"):
        made.append(await keys.create_key(name))
        world.clock.advance(1)
    await keys.revoke_key(made[0].id)
    listed = await keys.list_keys()
    assert [(key.name, key.revoked_at is None) for key in listed] == [("second", True), ("first", False)]
    assert all(new.key not in repr(listed) for new in made)
    assert world.runtime.database is not None
    stored = await world.runtime.database.all(select(ServiceKeyRow.key_hash))
    assert {row.key_hash for row in stored} == {digest(new.key) for new in made}


async def test_what_is_no_service_key_is_refused(world: World) -> None:
    keys = world.front.get(ServiceKeys)
    for key in ("", "bp_", "bp_" + "0" * 64, "\0"):
        with pytest.raises(InvalidToken):
            await keys.authenticate_key(key)
    for key_id in ("", "1", "\0", new_id()):
        with pytest.raises(ServiceKeyNotFound):
            await keys.revoke_key(key_id)
    with pytest.raises(InvalidField):
        await keys.create_key("  ")
