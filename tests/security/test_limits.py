"""A limit of N admits N: not one more in a crowd, not one less, and nobody talks his way into another window."""

import httpx2
import pytest

from tests.security.crowd import CROWD, at_once, statuses
from tests.world import World

pytestmark = pytest.mark.limits

# Operation, limit and window in seconds, as the documents have them; Commerce's has none, so they are ours.
LIMITS = [
    pytest.param("cobalt", "POST", "/api/auth/login", 5, 900, id="cobalt logins"),
    pytest.param("cobalt", "POST", "/api/auth/register", 3, 3600, id="cobalt registrations"),
    pytest.param("cobalt", "POST", "/api/auth/forgot-password", 3, 3600, id="cobalt resets"),
    pytest.param("user-service", "POST", "/api/auth/login", 20, 900, id="commerce logins"),
    pytest.param("user-service", "POST", "/api/users", 20, 3600, id="commerce registrations"),
    pytest.param("payment-service", "POST", "/api/payments", 60, 60, id="commerce payments"),
    pytest.param("pantstack", "GET", "/api/v1/users/usr_1", 100, 60, id="pantstack everything"),
    pytest.param("pynode", "GET", "/api/users/me", 10, 900, id="pynode unknown callers"),
    pytest.param("pantstack", "GET", "/api/v2/users", 10, 60, id="pantstack lists"),
]
each_limit = pytest.mark.parametrize(("system", "method", "path", "limit", "window"), LIMITS)
CLAIMS = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "CF-Connecting-IP", "True-Client-IP")


async def knock(world: World, system: str, method: str, path: str, address: str, **headers: str) -> httpx2.Response:
    async with world.client(system, address) as client:
        return await client.request(method, path, headers=headers)


@each_limit
async def test_a_crowd_gets_what_the_limit_admits(
    world: World, system: str, method: str, path: str, limit: int, window: int
) -> None:
    answers = await at_once(lambda _: knock(world, system, method, path, "192.0.2.1"), limit + CROWD)
    assert statuses(answers)[429] == CROWD
    waits = {int(answer.headers["retry-after"]) for answer in answers if answer.status_code == 429}
    assert waits and all(window - 3 <= wait <= window for wait in waits), waits
    for passed in (window // 3, window // 3):
        world.clock.advance(passed)
        left = max(waits) - passed
        waits = {int((await knock(world, system, method, path, "192.0.2.1")).headers["retry-after"])}
        assert all(left - 3 <= wait <= left for wait in waits), (left, waits)
    world.clock.advance(max(waits))
    again = await at_once(lambda _: knock(world, system, method, path, "192.0.2.1"), limit + CROWD)
    assert statuses(again)[429] == CROWD


@each_limit
async def test_nobody_talks_his_way_into_another_window(
    world: World, system: str, method: str, path: str, limit: int, window: int
) -> None:
    async def claim(index: int) -> httpx2.Response:
        value = f"198.51.100.{index}" if index % 2 else f"for=198.51.100.{index}"
        headers = dict.fromkeys(CLAIMS, value) | {"Authorization": f"Bearer junk{index}", "X-API-Key": f"junk{index}"}
        return await knock(world, system, method, path, "192.0.2.2", **headers)

    answers = await at_once(claim, limit + CROWD)
    assert statuses(answers)[429] == CROWD


@each_limit
async def test_a_subscriber_has_one_window_for_all_his_addresses(
    world: World, system: str, method: str, path: str, limit: int, window: int
) -> None:
    answers = await at_once(lambda i: knock(world, system, method, path, f"2001:db8:0:7::{i + 1:x}"), limit + CROWD)
    assert statuses(answers)[429] == CROWD
    neighbour = await knock(world, system, method, path, "2001:db8:0:8::1")
    assert neighbour.status_code != 429
    mapped = await at_once(
        lambda i: knock(world, system, method, path, "::ffff:192.0.2.3" if i % 2 else "192.0.2.3"), limit + CROWD
    )
    assert statuses(mapped)[429] == CROWD
