"""Signing in, staying in, signing out, through the facades in each deployment."""

import asyncio

import pytest
from argon2 import PasswordHasher
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from bedplate.kernel.ids import new_id
from bedplate.kernel.security import digest
from bedplate.models import RefreshTokenRow, SessionRow, UserRow
from bedplate.modules.identity.public import (
    AccountDisabled,
    AccountGone,
    Changes,
    Grant,
    InvalidCredentials,
    InvalidToken,
    Principals,
    Registration,
    SessionPolicy,
    Sessions,
    TokenExpired,
    TokenRevoked,
    User,
    Users,
)
from tests import factories
from tests.factories import PASSWORD
from tests.world import World

POLICY = SessionPolicy("pantstack", access_seconds=900, refresh_seconds=604_800)
STRICT = SessionPolicy("cobalt", access_seconds=900, refresh_seconds=604_800, reuse_ends_all=True)
LASTING = SessionPolicy("pynode", access_seconds=900, refresh_seconds=604_800, rotates=False)


@pytest.fixture
def users(world: World) -> Users:
    return world.front.get(Users)


@pytest.fixture
def sessions(world: World) -> Sessions:
    return world.front.get(Sessions)


@pytest.fixture
def principals(world: World) -> Principals:
    return world.front.get(Principals)


@pytest.fixture
async def user(users: Users) -> User:
    return await users.register(Registration(factories.email(), PASSWORD, username=factories.username()))


@pytest.fixture
async def grant(sessions: Sessions, user: User) -> Grant:
    return await sessions.sign_in(user.email, PASSWORD, POLICY)


async def is_ended(principals: Principals, grant: Grant, policy: SessionPolicy = POLICY) -> bool:
    try:
        await principals.authenticate(grant.access_token, policy.audience)
    except (TokenRevoked, InvalidToken, AccountGone):
        return True
    return False


async def test_who_signs_in_is_known_by_the_token(
    sessions: Sessions, principals: Principals, user: User, world: World
) -> None:
    grant = await sessions.sign_in(user.email, PASSWORD, POLICY)
    assert grant.expires_in == 900
    principal = await principals.authenticate(grant.access_token, POLICY.audience)
    assert (principal.user.id, principal.session_id) == (user.id, grant.session_id)
    assert principal.user.last_login_at is not None
    left = (principal.expires_at - world.clock.now()).total_seconds()
    assert 890 < left <= 900


async def test_one_may_sign_in_by_name_or_address_in_any_spelling(sessions: Sessions, user: User) -> None:
    assert user.username is not None
    for login in (user.email, user.email.upper(), user.username, user.username.upper()):
        assert (await sessions.sign_in(login, PASSWORD, POLICY)).user.id == user.id


async def test_a_wrong_password_and_an_unknown_name_are_refused_in_the_same_words(
    sessions: Sessions, user: User
) -> None:
    passwords = ("", "wrong password", PASSWORD.lower(), PASSWORD + " ", "x" * 5000)
    logins = ("", "nobody", "nobody@example.com", "' OR 1=1 --", "%")
    for login, password in [*((user.email, each) for each in passwords), *((each, PASSWORD) for each in logins)]:
        with pytest.raises(InvalidCredentials, match="^Invalid credentials$"):
            await sessions.sign_in(login, password, POLICY)


async def test_who_signs_up_is_signed_in(sessions: Sessions, principals: Principals) -> None:
    grant = await sessions.sign_up(Registration(factories.email(), PASSWORD), POLICY)
    assert (await principals.authenticate(grant.access_token, POLICY.audience)).user == grant.user


async def test_a_disabled_account_is_told_so_only_with_its_password(
    sessions: Sessions, users: Users, user: User
) -> None:
    await users.disable_user(user.id, new_id())
    with pytest.raises(AccountDisabled):
        await sessions.sign_in(user.email, PASSWORD, POLICY)
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(user.email, "wrong password", POLICY)


async def test_a_token_of_one_system_is_none_in_another(principals: Principals, grant: Grant) -> None:
    with pytest.raises(InvalidToken):
        await principals.authenticate(grant.access_token, "cobalt")
    with pytest.raises(InvalidToken):
        await principals.authenticate(grant.refresh_token, POLICY.audience)


async def test_a_token_of_one_kind_does_not_do_for_the_other(sessions: Sessions, grant: Grant) -> None:
    with pytest.raises(InvalidToken):
        await sessions.refresh(grant.access_token, POLICY)
    with pytest.raises(InvalidToken):
        await sessions.refresh(grant.refresh_token, STRICT)


async def test_an_access_token_ends_when_it_says(principals: Principals, grant: Grant, world: World) -> None:
    await principals.authenticate(grant.access_token, POLICY.audience)
    world.clock.advance(POLICY.access_seconds + 1)
    with pytest.raises(TokenExpired):
        await principals.authenticate(grant.access_token, POLICY.audience)


async def test_a_refresh_token_ends_when_it_says(sessions: Sessions, grant: Grant, world: World) -> None:
    world.clock.advance(POLICY.refresh_seconds + 1)
    with pytest.raises(TokenExpired):
        await sessions.refresh(grant.refresh_token, POLICY)


async def test_refreshing_gives_a_new_pair_of_the_same_session(
    sessions: Sessions, principals: Principals, grant: Grant, world: World
) -> None:
    world.clock.advance(600)
    fresh = await sessions.refresh(grant.refresh_token, POLICY)
    assert fresh.session_id == grant.session_id
    assert fresh.refresh_token != grant.refresh_token
    assert fresh.access_token != grant.access_token
    world.clock.advance(600)
    assert await principals.authenticate(fresh.access_token, POLICY.audience)


async def test_a_session_that_is_refreshed_lives_on(sessions: Sessions, grant: Grant, world: World) -> None:
    for _ in range(4):
        world.clock.advance(POLICY.refresh_seconds - 60)
        grant = await sessions.refresh(grant.refresh_token, POLICY)


async def test_of_fifty_simultaneous_refreshes_exactly_one_child_comes_into_being(
    sessions: Sessions, grant: Grant, world: World
) -> None:
    grants = await asyncio.gather(*(sessions.refresh(grant.refresh_token, POLICY) for _ in range(50)))
    assert len({each.refresh_token for each in grants}) == 1
    assert world.runtime.database is not None
    tokens = await world.runtime.database.all(
        select(RefreshTokenRow.id).where(RefreshTokenRow.session_id == grant.session_id)
    )
    assert len(tokens) == 2


async def test_a_lost_answer_may_be_asked_for_again_within_ten_seconds(
    sessions: Sessions, grant: Grant, world: World
) -> None:
    first = await sessions.refresh(grant.refresh_token, POLICY)
    world.clock.advance(9)
    again = await sessions.refresh(grant.refresh_token, POLICY)
    assert again.refresh_token == first.refresh_token


async def test_a_token_spent_longer_ago_ends_its_session(
    sessions: Sessions, principals: Principals, grant: Grant, world: World
) -> None:
    fresh = await sessions.refresh(grant.refresh_token, POLICY)
    world.clock.advance(11)
    with pytest.raises(InvalidToken):
        await sessions.refresh(grant.refresh_token, POLICY)
    assert await is_ended(principals, fresh)
    with pytest.raises(InvalidToken):
        await sessions.refresh(fresh.refresh_token, POLICY)


async def test_an_older_ancestor_ends_the_session_at_once(
    sessions: Sessions, principals: Principals, grant: Grant
) -> None:
    child = await sessions.refresh(grant.refresh_token, POLICY)
    grandchild = await sessions.refresh(child.refresh_token, POLICY)
    with pytest.raises(InvalidToken):
        await sessions.refresh(grant.refresh_token, POLICY)
    assert await is_ended(principals, grandchild)


async def test_reuse_ends_one_session_or_all_of_the_system_as_the_policy_says(
    sessions: Sessions, principals: Principals, user: User, world: World
) -> None:
    for policy, others_end in ((POLICY, False), (STRICT, True)):
        stolen, other = [await sessions.sign_in(user.email, PASSWORD, policy) for _ in range(2)]
        elsewhere = await sessions.sign_in(user.email, PASSWORD, SessionPolicy("third", 900, 3600))
        await sessions.refresh(stolen.refresh_token, policy)
        world.clock.advance(11)
        with pytest.raises(InvalidToken):
            await sessions.refresh(stolen.refresh_token, policy)
        assert await is_ended(principals, other, policy) == others_end
        assert (await principals.authenticate(elsewhere.access_token, "third")).user.id == user.id


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 3, 9, 11, 600])), max_size=8))
async def test_whatever_is_presented_a_family_has_one_living_line(
    sessions: Sessions, user: User, world: World, steps: list[tuple[int, int]]
) -> None:
    """A model of rotation: the newest token may be spent; the one before it again within ten seconds; no other."""
    line = [(await sessions.sign_in(user.email, PASSWORD, POLICY)).refresh_token]
    spent_at, ended = float("-inf"), False
    for back, pause in steps:
        world.clock.advance(pause)
        index = max(0, len(line) - 1 - back)
        now = world.clock.timestamp()
        newest, parent = index == len(line) - 1, index == len(line) - 2
        try:
            grant = await sessions.refresh(line[index], POLICY)
        except InvalidToken:
            assert ended or not newest
            assert ended or not parent or now - spent_at > 9.5
            ended = True
            continue
        assert not ended
        if newest:
            line.append(grant.refresh_token)
            spent_at = now
        else:
            assert parent
            assert grant.refresh_token == line[-1]


async def test_what_ends_a_session_is_known_at_once(
    sessions: Sessions, users: Users, principals: Principals, user: User
) -> None:
    async def sign_in() -> Grant:
        grant = await sessions.sign_in(user.email, PASSWORD, POLICY)
        assert not await is_ended(principals, grant)
        return grant

    grant = await sign_in()
    await sessions.end_session(grant.session_id)
    assert await is_ended(principals, grant)
    await sessions.end_session(grant.session_id)

    grant = await sign_in()
    await sessions.sign_out(grant.refresh_token, POLICY.audience)
    assert await is_ended(principals, grant)
    await sessions.sign_out(grant.refresh_token, POLICY.audience)

    grant, kept = await sign_in(), await sign_in()
    await users.update_user(user.id, Changes(password=PASSWORD), keep_session=kept.session_id)
    assert await is_ended(principals, grant)
    assert not await is_ended(principals, kept)

    await users.disable_user(user.id, new_id())
    assert await is_ended(principals, kept)
    await users.enable_user(user.id, new_id())
    assert await is_ended(principals, kept), "an ended session does not come back"

    grant = await sign_in()
    await users.delete_user(user.id, new_id())
    with pytest.raises(AccountGone):
        await principals.authenticate(grant.access_token, POLICY.audience)
    with pytest.raises(InvalidToken):
        await sessions.refresh(grant.refresh_token, POLICY)


async def test_a_change_of_the_account_is_seen_with_the_next_token_check(
    users: Users, principals: Principals, grant: Grant
) -> None:
    await principals.authenticate(grant.access_token, POLICY.audience)
    await users.update_user(grant.user.id, Changes(name="New Name"))
    assert (await principals.authenticate(grant.access_token, POLICY.audience)).user.name == "New Name"


async def test_whoever_had_an_account_that_becomes_an_administrators_is_out(
    users: Users, sessions: Sessions, principals: Principals, grant: Grant
) -> None:
    await users.promote(Registration(grant.user.email, "the operator's password"))
    assert await is_ended(principals, grant)
    with pytest.raises(InvalidCredentials):
        await sessions.sign_in(grant.user.email, PASSWORD, POLICY)
    new = await sessions.sign_in(grant.user.email, "the operator's password", POLICY)
    assert (await principals.authenticate(new.access_token, POLICY.audience)).user.is_admin


async def test_signing_out_ends_the_session_of_the_access_token_that_is_shown_too(
    sessions: Sessions, principals: Principals, user: User
) -> None:
    one, two = [await sessions.sign_in(user.email, PASSWORD, POLICY) for _ in range(2)]
    await sessions.sign_out(one.refresh_token, POLICY.audience, access_token=two.access_token)
    assert await is_ended(principals, one)
    assert await is_ended(principals, two)


async def test_signing_out_with_nothing_is_refused(sessions: Sessions) -> None:
    for token in ("", "nonsense", "a.b.c"):
        with pytest.raises(InvalidToken):
            await sessions.sign_out(token, POLICY.audience)


async def test_tokens_are_stored_as_hashes(world: World, grant: Grant) -> None:
    assert world.runtime.database is not None
    rows = await world.runtime.database.all(select(RefreshTokenRow.__table__))
    assert [row.token_hash for row in rows] == [digest(grant.refresh_token)]


@pytest.mark.hashing
async def test_a_password_is_hashed_anew_when_parameters_have_risen(
    world: World, sessions: Sessions, user: User
) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(PASSWORD)
    database = world.runtime.database
    assert database is not None
    async with database.transaction() as tx:
        await tx.execute(update(UserRow).where(UserRow.id == user.id).values(password_hash=weak))
    await sessions.sign_in(user.email, PASSWORD, POLICY)
    stored = await database.scalar(select(UserRow.password_hash).where(UserRow.id == user.id))
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    await sessions.sign_in(user.email, PASSWORD, POLICY)
    assert stored == await database.scalar(select(UserRow.password_hash).where(UserRow.id == user.id)), "once"


async def test_ended_sessions_are_swept_away_a_day_later(world: World, sessions: Sessions, grant: Grant) -> None:
    here = world.runtime.get(Sessions)
    database = world.runtime.database
    assert database is not None
    world.clock.advance(POLICY.refresh_seconds + 3600)
    await here.forget_expired()  # type: ignore[attr-defined]
    assert len(await database.all(select(SessionRow.id))) == 1
    world.clock.advance(86_400)
    await here.forget_expired()  # type: ignore[attr-defined]
    assert (await database.all(select(SessionRow.id)), await database.all(select(RefreshTokenRow.id))) == ([], [])


async def test_spent_refresh_tokens_of_a_living_session_are_swept_away_too(
    world: World, sessions: Sessions, grant: Grant
) -> None:
    here, database = world.runtime.get(Sessions), world.runtime.database
    assert database is not None
    for _ in range(6):
        world.clock.advance(POLICY.refresh_seconds / 2)
        grant = await sessions.refresh(grant.refresh_token, POLICY)
    assert len(await database.all(select(RefreshTokenRow.id))) == 7
    await here.forget_expired()  # type: ignore[attr-defined]
    left = await database.all(select(RefreshTokenRow.id).order_by(RefreshTokenRow.issued_at))
    assert len(left) == 3, "of a week and a day"
    assert len(await database.all(select(SessionRow.id))) == 1
    assert (await sessions.refresh(grant.refresh_token, POLICY)).session_id == grant.session_id


async def test_a_refresh_token_that_does_not_rotate_stays_good_until_its_session_ends(
    sessions: Sessions, principals: Principals, user: User, world: World
) -> None:
    first = await sessions.sign_in(user.email, PASSWORD, LASTING)
    crowd = await asyncio.gather(*(sessions.refresh(first.refresh_token, LASTING) for _ in range(20)))
    assert {each.refresh_token for each in crowd} == {first.refresh_token}
    assert {each.session_id for each in crowd} == {first.session_id}
    assert len({each.access_token for each in (first, *crowd)}) == 21
    world.clock.advance(604_000)
    later = await sessions.refresh(first.refresh_token, LASTING)
    assert (await principals.authenticate(later.access_token, "pynode")).user.id == user.id
    with pytest.raises(InvalidToken):
        await sessions.refresh(later.access_token, LASTING)
    with pytest.raises(InvalidToken):
        await sessions.refresh(first.refresh_token, POLICY)
    await sessions.end_session(first.session_id)
    assert await is_ended(principals, later, LASTING)
    with pytest.raises(InvalidToken):
        await sessions.refresh(first.refresh_token, LASTING)


async def test_a_refresh_token_that_does_not_rotate_runs_out(sessions: Sessions, user: User, world: World) -> None:
    grant = await sessions.sign_in(user.email, PASSWORD, LASTING)
    world.clock.advance(604_801)
    with pytest.raises(TokenExpired):
        await sessions.refresh(grant.refresh_token, LASTING)


async def test_a_new_password_ends_sessions_that_do_not_rotate(sessions: Sessions, users: Users, user: User) -> None:
    grant = await sessions.sign_in(user.email, PASSWORD, LASTING)
    await users.update_user(user.id, Changes(password=PASSWORD + "!"))
    with pytest.raises(InvalidToken):
        await sessions.refresh(grant.refresh_token, LASTING)
