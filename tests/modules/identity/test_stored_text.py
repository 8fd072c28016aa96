"""Text as long as the rules admit is stored, or refused, alike on every engine."""

import re

import pytest

from bedplate.modules.identity.public import Changes, Registration, SessionPolicy, Sessions, Users
from tests import factories
from tests.factories import PASSWORD
from tests.world import World

POLICY = SessionPolicy("cobalt", access_seconds=900, refresh_seconds=604_800)
LONG_DOMAIN = ".".join(["d" * 61, "e" * 61, "f" * 61, "com"])
LONGEST = f"{'l' * 64}@{LONG_DOMAIN}"[-254:]


def test_the_longest_address_is_as_long_as_can_be() -> None:
    assert len(LONGEST) == 254


async def test_the_longest_address_is_registered_reset_and_looked_for(world: World) -> None:
    client = world.client("cobalt")
    forgotten = await client.post("/api/auth/forgot-password", json={"email": LONGEST})
    assert forgotten.status_code == 200, "nobody has it yet"
    await world.deliver()
    details = {"username": "u" * 50, "email": LONGEST, "password": "p" * 128}
    assert (await client.post("/api/auth/register", json=details)).status_code == 201
    world.clock.advance(3600)
    again = await client.post("/api/auth/forgot-password", json={"email": LONGEST.upper()})
    assert (again.status_code, again.json()) == (200, forgotten.json())
    subjects = [mail.subject for mail in await world.mails(LONGEST)]
    assert sorted(subjects) == ["Reset your password", "Verify your email address"]
    for login in (LONGEST, LONGEST.upper(), "U" * 50):
        assert await world.front.get(Sessions).sign_in(login, "p" * 128, POLICY)


async def test_a_longer_address_is_refused_everywhere(world: World) -> None:
    client = world.client("cobalt")
    too_long = f"l{LONGEST}"
    for path, body in (
        ("/api/auth/forgot-password", {"email": too_long}),
        ("/api/auth/register", {"username": "alice", "email": too_long, "password": PASSWORD}),
    ):
        answer = await client.post(path, json=body)
        assert (answer.status_code, "Invalid email format" in answer.text) == (400, True), path
    for login in (too_long, "l" * 100_000, "l" * 100_000 + "@example.com"):
        answer = await client.post("/api/auth/login", json={"username": login, "password": PASSWORD})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "username",
    [
        pytest.param("\ufdfa" * 50, id="eighteen letters for each"),
        pytest.param("\ufb03" * 17, id="three letters for each"),
        pytest.param("alice\uff20example.com", id="wide at"),
        pytest.param("alice\ufe6bexample.com", id="small at"),
        pytest.param("alice\u00a8bob", id="a space and an accent"),
        pytest.param("alice\u3000bob", id="wide space"),
        pytest.param("alice\u00a0bob", id="hard space"),
    ],
)
async def test_a_username_that_is_compared_as_something_else_is_refused(world: World, username: str) -> None:
    details = {"username": username, "email": factories.email(), "password": PASSWORD}
    answer = await world.client("cobalt").post("/api/auth/register", json=details)
    assert answer.status_code == 400
    assert "Username must" in answer.text


async def test_a_username_that_folds_to_fifty_letters_is_taken(world: World) -> None:
    users = world.front.get(Users)
    for username in ("ß" * 25, "\ufb03" * 16, "\U0001d4d0" * 50):
        user = await users.register(Registration(factories.email(), PASSWORD, username=username))
        assert (await users.get_user(user.id)).username == username


async def test_names_of_any_letters_are_as_long_as_the_rules_admit(world: World) -> None:
    users = world.front.get(Users)
    for letter in ("n", "ü", "王", "\U0001f600"):
        user = await users.register(Registration(factories.email(), PASSWORD, name=letter * 200))
        assert (await users.get_user(user.id)).name == letter * 200
    moved = await users.update_user(user.id, Changes(email=LONGEST))
    assert moved.email == LONGEST
    [mail] = [each for each in await world.mails(LONGEST) if "verify-email?token=" in each.text]
    assert re.search(r"token=[0-9a-f]{64}", mail.text)
