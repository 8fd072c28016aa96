"""What may happen once happens once, however many try at the same moment."""

from typing import Any

import httpx2
from sqlalchemy import func, select

from bedplate.kernel.ids import prefixed
from bedplate.models import UserRow
from bedplate.modules.identity.public import Confirmations, Purpose
from bedplate.modules.identity.rules import key_of
from tests import factories
from tests.factories import PASSWORD
from tests.security.crowd import CROWD, at_once, on_both_engines, rounds, statuses
from tests.world import World


async def post(world: World, system: str, path: str, body: dict[str, Any], **headers: str) -> httpx2.Response:
    async with world.client(system) as client:
        return await client.post(path, json=body, headers=headers)


async def rows(world: World, column: Any, key: str) -> int:
    assert world.runtime.database is not None
    return int(await world.runtime.database.scalar(select(func.count()).where(column == key)))


async def mailed_token(world: World, purpose: Purpose, email: str) -> str:
    confirmations = world.runtime.get(Confirmations)
    issued = await confirmations.issue_email_token(purpose, email, f"test {factories.number()}", world.clock.now())
    assert issued is not None
    return issued.token


@on_both_engines
@rounds(1)
async def test_one_of_many_gets_an_e_mail_address(world: World, rounds: int) -> None:
    for _ in range(rounds):
        email = factories.email()

        async def register(index: int, email: str = email) -> httpx2.Response:
            spelled = email.upper() if index % 2 else email
            if index % 3:
                body = {"username": factories.username(), "email": spelled, "password": PASSWORD}
                return await post(world, "cobalt", "/api/auth/register", body)
            return await post(
                world, "pantstack", "/api/v1/users", {"name": "A", "email": spelled, "password": PASSWORD}
            )

        answers = await at_once(register)
        assert statuses(answers) == {201: 1, 409: CROWD - 1}
        for answer in answers:
            if answer.status_code == 409:
                assert answer.json().get("code", answer.json()["error"]) in ("User already exists", "RES_002")
        assert await rows(world, UserRow.email_key, key_of(email)) == 1


@on_both_engines
@rounds(1)
async def test_one_of_many_gets_a_username(world: World, rounds: int) -> None:
    for _ in range(rounds):
        username = factories.username("Straße")

        async def register(index: int, username: str = username) -> httpx2.Response:
            spelled = username.replace("ß", "SS").upper() if index % 2 else username
            body = {"username": spelled, "email": factories.email(), "password": PASSWORD}
            return await post(world, "cobalt", "/api/auth/register", body)

        answers = await at_once(register)
        assert statuses(answers) == {201: 1, 409: CROWD - 1}
        assert {answer.text for answer in answers if answer.status_code == 409} == {'{"error":"User already exists"}'}
        assert await rows(world, UserRow.username_key, key_of(username)) == 1


@on_both_engines
@rounds(2)
async def test_one_of_many_changes_to_an_e_mail_address(world: World, rounds: int) -> None:
    accounts = [await world.user("pantstack") for _ in range(10)]
    for _ in range(rounds):
        email = factories.email()

        async def change(index: int, email: str = email) -> httpx2.Response:
            own = f"/api/v1/users/{prefixed('usr', accounts[index].id)}"
            return await accounts[index].client.put(own, json={"email": email})

        answers = await at_once(change, 10)
        assert statuses(answers) == {200: 1, 409: 9}


@on_both_engines
@rounds(3)
async def test_a_verification_token_is_good_for_one_of_many(world: World, rounds: int) -> None:
    for _ in range(rounds):
        account = await world.user("cobalt")
        token = await mailed_token(world, Purpose.VERIFY, account.email)

        async def verify(_: int, token: str = token) -> httpx2.Response:
            return await post(world, "cobalt", "/api/auth/verify-email", {"token": token})

        answers = await at_once(verify)
        assert statuses(answers) == {200: 1, 400: CROWD - 1}
        losers = {answer.text for answer in answers if answer.status_code == 400}
        assert losers == {'{"error":"Verification failed: Invalid or expired token"}'}


@on_both_engines
@rounds(2)
async def test_a_reset_token_is_good_for_one_of_many(world: World, rounds: int) -> None:
    account = await world.user("cobalt")
    for _ in range(rounds):
        world.clock.advance(61)  # one mail a minute
        token = await mailed_token(world, Purpose.RESET, account.email)
        run = factories.number()

        async def reset(index: int, token: str = token, run: int = run) -> httpx2.Response:
            body = {"token": token, "password": f"{PASSWORD}-{run}-{index}"}
            return await post(world, "cobalt", "/api/auth/reset-password", body)

        answers = await at_once(reset)
        assert statuses(answers) == {200: 1, 400: CROWD - 1}
        winner = next(index for index, answer in enumerate(answers) if answer.status_code == 200)
        for index in (winner, (winner + 1) % CROWD):
            body = {"username": account.email, "password": f"{PASSWORD}-{run}-{index}"}
            entered = await post(world, "cobalt", "/api/auth/login", body)
            assert entered.status_code == (200 if index == winner else 401)


@on_both_engines
@rounds(3)
async def test_one_of_many_disables_an_account(world: World, rounds: int) -> None:
    admin = await world.admin("cobalt")
    account = await world.user("cobalt")
    for _ in range(rounds):
        for act in ("disable", "enable"):
            path = f"/api/admin/users/{account.id}/{act}"
            answers = await at_once(lambda _, path=path: admin.patch(path))
            assert statuses(answers) == {200: 1, 400: CROWD - 1}
