"""What an account tells of itself, and what is remembered of it, through the facades in each deployment."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from bedplate.kernel.db import Committed, Effects
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.events import Event
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.paging import Slice
from bedplate.models import UserEventRow
from bedplate.modules.identity.events import UserCreated, UserUpdated, UserVerified
from bedplate.modules.identity.public import (
    Account,
    Changes,
    Confirmations,
    Details,
    EmailTaken,
    InvalidVerificationToken,
    Principals,
    Profile,
    Purpose,
    Registration,
    SessionPolicy,
    Sessions,
    User,
    UserEvent,
    UserNotFound,
    Users,
)
from tests import factories
from tests.factories import PASSWORD
from tests.world import World

POLICY = SessionPolicy("cobalt", access_seconds=900, refresh_seconds=604_800)
ALL_ON = {"email_notifications": True, "push_notifications": True}
EVERYTHING = Slice(100, 0)
DAY = 24 * 3600
NOBODY = ("", "1", "usr_x", "'; DROP TABLE identity_users; --", "\0")


@pytest.fixture
def users(world: World) -> Users:
    return world.front.get(Users)


@pytest.fixture
def confirmations(world: World) -> Confirmations:
    return world.front.get(Confirmations)


@pytest.fixture
async def user(users: Users) -> User:
    return await users.register(Registration(factories.email(), PASSWORD, username=factories.username()))


class Said(Committed):
    """Hears what is said in every transaction that is committed."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def committed(self, effects: Effects) -> None:
        self.events += effects.emitted


@pytest.fixture
def said(world: World) -> Said:
    assert world.runtime.database is not None
    hearer = Said()
    world.runtime.database.listeners.append(hearer)
    return hearer


async def token_for(world: World, user: User) -> str:
    """Another verification token of an account."""
    confirmations = world.runtime.get(Confirmations)
    issued = await confirmations.issue_email_token(Purpose.VERIFY, user.email, "one cause", world.clock.now())
    assert issued is not None
    return issued.token


async def history(users: Users, user: User) -> list[UserEvent]:
    return (await users.list_events(user.id, EVERYTHING)).items


def types(events: Sequence[UserEvent]) -> list[str]:
    return [event.event_type for event in events]


async def test_names_and_telephone_number_are_kept_as_they_were_given(users: Users, world: World) -> None:
    given = {"first_name": " John ", "last_name": "Doe", "phone": "+1 (234) 567-890"}
    user = await users.register(Registration(factories.email(), PASSWORD, **given))
    assert (user.first_name, user.last_name, user.phone) == ("John", "Doe", "+1 (234) 567-890")
    assert await users.get_user(user.id) == user
    other = Registration(factories.email(), PASSWORD, **given)
    grant = await world.front.get(Sessions).sign_up(other, POLICY)
    assert (grant.user.first_name, grant.user.last_name, grant.user.phone) == ("John", "Doe", "+1 (234) 567-890")


BROKEN_RULES: list[tuple[dict[str, Any], str, str]] = [
    ({"first_name": ""}, "first_name", "First name cannot be empty"),
    ({"first_name": "   "}, "first_name", "First name cannot be empty"),
    ({"first_name": "n" * 101}, "first_name", "First name must not exceed 100 characters"),
    ({"first_name": "evil\nname"}, "first_name", "First name must not contain control characters"),
    ({"last_name": ""}, "last_name", "Last name cannot be empty"),
    ({"last_name": "n" * 101}, "last_name", "Last name must not exceed 100 characters"),
    ({"last_name": "bell\x07"}, "last_name", "Last name must not contain control characters"),
] + [
    ({"phone": phone}, "phone", "Phone must be 3 to 32 characters: digits, spaces and + - ( ) . /")
    for phone in ("", "12", "1" * 33, "call me", "0800-SHOP", "+++", "123\n456", "\uff11\uff12\uff13", "1;2;3")
]


async def test_names_and_numbers_that_break_a_rule_are_told_which(users: Users, user: User) -> None:
    for given, field, reason in BROKEN_RULES:
        with pytest.raises(InvalidField) as refused:
            await users.register(Registration(factories.email(), PASSWORD, **given))
        assert (refused.value.details["field"], str(refused.value)) == (field, reason), given
        with pytest.raises(InvalidField) as refused:
            await users.update_details(user.id, Details(**given))
        assert (refused.value.details["field"], str(refused.value)) == (field, reason), given
    assert types(await history(users, user)) == ["user_created"]
    assert (await users.count_users()).total == 1


async def test_what_is_within_the_rules_is_taken(users: Users, user: User) -> None:
    for given in (
        {"first_name": "n" * 100},
        {"last_name": "\u738b" * 100},
        {"last_name": "O'Hara-Zo\u00eb"},
        {"phone": "112"},
        {"phone": "1" * 32},
        {"phone": "030/123.456-78 (9)"},
    ):
        account = await users.update_details(user.id, Details(**given))
        for name, value in given.items():
            assert getattr(account.user, name) == value


async def test_a_new_account_has_an_empty_profile_and_wants_to_hear_of_everything(users: Users, user: User) -> None:
    assert await users.get_account(user.id) == Account(user, Profile(preferences=ALL_ON))


async def test_details_change_what_they_name_and_nothing_else(users: Users, user: User, world: World) -> None:
    whole = Profile(
        avatar_url="https://example.com/me.png",
        bio="Software developer\nand gardener",
        date_of_birth="1990-12-31",
        gender="female",
        country="USA",
        city="San Francisco",
        address="1 Main Street\nApartment 2",
        postal_code="94105",
        preferences={"email_notifications": False, "push_notifications": False},
    )
    world.clock.advance(10)
    first = await users.update_details(user.id, Details("Jane", "Smith", "+1234567891", whole))
    assert (first.user.first_name, first.user.last_name, first.user.phone) == ("Jane", "Smith", "+1234567891")
    assert first.profile == whole
    assert first.user.updated_at > user.updated_at
    world.clock.advance(10)
    part = Profile(city="Oakland", preferences={"push_notifications": True})
    second = await users.update_details(user.id, Details(last_name="Jones", profile=part))
    assert second.user == first.user._replace(last_name="Jones", updated_at=second.user.updated_at)
    changed = {name: getattr(whole, name) for name in Profile.__dataclass_fields__} | {"city": "Oakland"}
    changed["preferences"] = {"email_notifications": False, "push_notifications": True}
    assert second.profile == Profile(**changed)
    assert await users.get_account(user.id) == second


async def test_an_empty_text_empties_a_part_of_the_profile(users: Users, user: User) -> None:
    await users.update_details(user.id, Details(profile=Profile(bio="Developer", date_of_birth="1990-12-31", city="X")))
    emptied = Profile(bio="", date_of_birth=" ", avatar_url="")
    account = await users.update_details(user.id, Details(profile=emptied))
    assert account.profile == Profile(city="X", preferences=ALL_ON)


BROKEN_PROFILES: list[tuple[dict[str, Any], str]] = [
    ({"bio": "b" * 1001}, "Bio must not exceed 1000 characters"),
    ({"bio": "bell\x07"}, "Bio must not contain control characters"),
    ({"city": "c" * 101}, "City must not exceed 100 characters"),
    ({"city": "two\nlines"}, "City must not contain control characters"),
    ({"country": "c" * 101}, "Country must not exceed 100 characters"),
    ({"gender": "g" * 31}, "Gender must not exceed 30 characters"),
    ({"address": "a" * 301}, "Address must not exceed 300 characters"),
    ({"postal_code": "p" * 21}, "Postal code must not exceed 20 characters"),
    ({"avatar_url": "https://e.example/" + "a" * 500}, "Avatar URL must not exceed 500 characters"),
    *(
        ({"avatar_url": url}, "Avatar URL must be an address like https://example.com/me.png")
        for url in ("me.png", "javascript:alert(1)", "//e.example/a", "data:image/png,x", "https://", "https://[::1")
    ),
    ({"avatar_url": "https://a b/"}, "Avatar URL must be an address like https://example.com/me.png"),
    *(
        ({"date_of_birth": day}, "Date of birth must be a past day like 1990-12-31")
        for day in ("1899-12-31", "2999-01-01", "1990-02-30", "1990-W01-1", "19901231", "soon", "\uff11990-12-31")
    ),
    ({"preferences": {"phone": True}}, "There is no preference 'phone'"),
]


async def test_a_profile_that_breaks_a_rule_is_told_which(users: Users, user: User) -> None:
    for given, reason in BROKEN_PROFILES:
        with pytest.raises(InvalidField) as refused:
            await users.update_details(user.id, Details(first_name="Jane", profile=Profile(**given)))
        [field] = given
        assert (refused.value.details["field"], str(refused.value)) == (f"profile.{field}", reason), given
    assert await users.get_account(user.id) == Account(user, Profile(preferences=ALL_ON))


async def test_whoever_is_born_today_is_old_enough_and_tomorrow_is_not(users: Users, user: User, world: World) -> None:
    today = world.clock.now().date()
    account = await users.update_details(user.id, Details(profile=Profile(date_of_birth=today.isoformat())))
    assert account.profile.date_of_birth == today.isoformat()
    tomorrow = (today + timedelta(days=2)).isoformat()  # two: midnight may be near
    with pytest.raises(InvalidField):
        await users.update_details(user.id, Details(profile=Profile(date_of_birth=tomorrow)))


async def test_changes_of_one_profile_at_once_do_not_undo_each_other(users: Users, user: User) -> None:
    parts = {name: f"my {name}" for name in ("bio", "gender", "country", "city", "address", "postal_code")}
    await asyncio.gather(
        *(users.update_details(user.id, Details(profile=Profile(**{name: text}))) for name, text in parts.items())
    )
    assert (await users.get_account(user.id)).profile == Profile(**parts, preferences=ALL_ON)
    assert len(await history(users, user)) == 1 + len(parts)


async def test_changed_names_are_seen_by_whoever_is_signed_in(users: Users, user: User, world: World) -> None:
    grant = await world.front.get(Sessions).sign_in(user.email, PASSWORD, POLICY)
    principals = world.front.get(Principals)
    assert (await principals.authenticate(grant.access_token, POLICY.audience)).user.first_name is None
    await users.update_details(user.id, Details(first_name="Jane"))
    assert (await principals.authenticate(grant.access_token, POLICY.audience)).user.first_name == "Jane"


async def test_an_account_that_is_not_there_has_neither_details_nor_history(
    users: Users, confirmations: Confirmations
) -> None:
    for user_id in (*NOBODY, new_id()):
        with pytest.raises(UserNotFound):
            await users.get_account(user_id)
        for details in (Details(), Details(first_name="Jane"), Details(profile=Profile(city="X"))):
            with pytest.raises(UserNotFound):
                await users.update_details(user_id, details)
        with pytest.raises(UserNotFound):
            await users.list_events(user_id, EVERYTHING)
        with pytest.raises(UserNotFound):
            await confirmations.verify_user(user_id, "0" * 64)


async def test_the_history_tells_what_happened_oldest_first_and_never_the_values(
    users: Users, confirmations: Confirmations, world: World, said: Said
) -> None:
    user = await users.register(Registration("jane@example.com", PASSWORD, username="jane"))
    world.clock.advance(1)
    verified = await confirmations.verify_user(user.id, await token_for(world, user))
    world.clock.advance(1)
    profile = Profile(city="Oakland", preferences={"push_notifications": False})
    detailed = await users.update_details(user.id, Details(phone="+1234567891", profile=profile))
    world.clock.advance(1)
    updated = await users.update_user(user.id, Changes(name="Jane Roe", password="another good password"))
    created, proved, told, renamed = await history(users, user)

    assert types([created, proved, told, renamed]) == ["user_created", "user_verified", "user_updated", "user_updated"]
    assert all(is_id(event.id) for event in (created, proved, told, renamed))
    moments = [user.created_at, verified.user.updated_at, detailed.user.updated_at, updated.updated_at]
    assert [event.created_at for event in (created, proved, told, renamed)] == moments
    texts = [moment.isoformat().replace("+00:00", "Z") for moment in moments]
    assert created.data == {"email": "jane@example.com", "username": "jane", "created_at": texts[0]}
    assert proved.data == {"verified_at": texts[1]}
    fields = ["phone", "profile.city", "profile.preferences"]
    assert told.data == {"fields": fields, "updated_at": texts[2]}
    assert renamed.data == {"fields": ["name", "password"], "updated_at": texts[3]}
    assert said.events == [
        UserCreated(user.id, "jane@example.com", "jane", texts[0]),
        UserVerified(user.id, texts[1]),
        UserUpdated(user.id, fields, texts[2]),
        UserUpdated(user.id, ["name", "password"], texts[3]),
    ]


async def test_the_history_is_paged_with_the_exact_total(users: Users, user: User) -> None:
    for number in range(4):
        await users.update_details(user.id, Details(first_name=f"Jane {number}"))
    whole = await history(users, user)
    assert types(whole) == ["user_created", *["user_updated"] * 4]
    part = await users.list_events(user.id, Slice(2, 1))
    assert (part.items, part.total) == (whole[1:3], 5)
    beyond = await users.list_events(user.id, Slice(10, 2**31))
    assert (beyond.items, beyond.total) == ([], 5)


async def test_a_history_is_of_one_account_and_goes_with_it(users: Users, user: User, world: World) -> None:
    other = await users.register(Registration(factories.email(), PASSWORD))
    await users.update_details(other.id, Details(first_name="Other"))
    assert types(await history(users, user)) == ["user_created"]
    await users.delete_user(other.id, user.id)
    with pytest.raises(UserNotFound):
        await users.list_events(other.id, EVERYTHING)
    assert world.runtime.database is not None
    kept = await world.runtime.database.scalar(
        select(func.count()).select_from(UserEventRow).where(UserEventRow.user_id == other.id)
    )
    assert kept == 0


async def test_where_nothing_is_given_nothing_is_said(users: Users, user: User, world: World, said: Said) -> None:
    world.clock.advance(10)
    for nothing in (Details(), Details(profile=Profile())):
        assert (await users.update_details(user.id, nothing)).user == user
    await users.update_user(user.id, Changes())
    assert types(await history(users, user)) == ["user_created"]
    assert said.events == []


async def test_a_change_that_is_refused_leaves_no_trace(users: Users, user: User, said: Said) -> None:
    taken = await users.register(Registration(factories.email(), PASSWORD))
    said.events.clear()
    with pytest.raises(EmailTaken):
        await users.update_user(user.id, Changes(email=taken.email, name="New"))
    assert types(await history(users, user)) == ["user_created"]
    assert said.events == []


async def test_the_token_of_an_account_verifies_it_once(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    token = await token_for(world, user)
    outcomes = await asyncio.gather(
        *(confirmations.verify_user(user.id, token) for _ in range(8)), return_exceptions=True
    )
    [account] = [each for each in outcomes if isinstance(each, Account)]
    assert sum(isinstance(each, InvalidVerificationToken) for each in outcomes) == 7
    assert account.user.email_verified
    assert account == await users.get_account(user.id)
    assert types(await history(users, user)) == ["user_created", "user_verified"]


async def test_a_token_of_somebody_else_is_refused_and_stays_good_for_him(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    other = await users.register(Registration(factories.email(), PASSWORD))
    token = await token_for(world, other)
    with pytest.raises(InvalidVerificationToken):
        await confirmations.verify_user(user.id, token)
    assert not (await users.get_user(user.id)).email_verified
    assert not (await users.get_user(other.id)).email_verified
    assert (await confirmations.verify_user(other.id, token)).user.email_verified


async def test_what_is_no_good_token_verifies_nobody(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    expired = await token_for(world, user)
    await world.deliver()
    world.clock.advance(DAY + 1)
    reset = await world.runtime.get(Confirmations).issue_email_token(
        Purpose.RESET, user.email, "cause", world.clock.now()
    )
    assert reset is not None
    for token in ("", "nonsense", "0" * 64, "\0", "x" * 100_000, expired, reset.token):
        with pytest.raises(InvalidVerificationToken):
            await confirmations.verify_user(user.id, token)
    assert not (await users.get_user(user.id)).email_verified


async def test_the_second_link_of_an_account_is_good_but_it_is_verified_only_once(
    world: World, users: Users, confirmations: Confirmations, user: User, said: Said
) -> None:
    first, second, third = [await token_for(world, user) for _ in range(3)]
    assert (await confirmations.verify_email(first)).email_verified
    assert (await confirmations.verify_user(user.id, second)).user.email_verified
    assert (await confirmations.verify_email(third)).email_verified
    assert types(await history(users, user)) == ["user_created", "user_verified"]
    assert [type(event) for event in said.events] == [UserVerified]


async def test_links_that_are_followed_at_once_verify_an_account_once(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    tokens = [await token_for(world, user) for _ in range(4)]
    accounts = await asyncio.gather(*(confirmations.verify_user(user.id, token) for token in tokens))
    assert all(account.user.email_verified for account in accounts)
    assert types(await history(users, user)) == ["user_created", "user_verified"]


async def test_an_address_that_was_changed_is_verified_anew(
    world: World, users: Users, confirmations: Confirmations, user: User
) -> None:
    await confirmations.verify_user(user.id, await token_for(world, user))
    moved = await users.update_user(user.id, Changes(email=factories.email("moved")))
    assert not moved.email_verified
    await confirmations.verify_user(user.id, await token_for(world, moved))
    told = ["user_created", "user_verified", "user_updated", "user_verified"]
    assert types(await history(users, user)) == told
