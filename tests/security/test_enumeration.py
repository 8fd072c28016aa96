"""Nobody learns from an answer, or from how long it takes, whether there is an account."""

import random
import re
import time
from bisect import bisect_left, bisect_right

import httpx2
import pytest

from bedplate.modules.identity.public import Users
from tests import factories
from tests.world import World

pytestmark = pytest.mark.hashing

WARM_UP = 20
ATTEMPTS = 3
CHANGING = re.compile(r'"(request_id|timestamp)":"[^"]*"')
OPERATIONS = ("cobalt login", "cobalt forgot-password", "pantstack login", "pynode login")


def area_under_curve(one: list[float], other: list[float]) -> float:
    """The chance that a value of `one` is greater than one of `other`: 0.5 if nothing tells them apart."""
    ordered = sorted(other)
    below = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in one)
    return below / (2 * len(one) * len(other))


def greatest_distance(one: list[float], other: list[float]) -> float:
    """Between the two distributions (Kolmogorov and Smirnov): 0 to 1."""
    first, second = sorted(one), sorted(other)
    return max(
        abs(bisect_right(first, value) / len(first) - bisect_right(second, value) / len(second))
        for value in (*first, *second)
    )


async def ask(client: httpx2.AsyncClient, operation: str, email: str) -> httpx2.Response:
    if operation == "cobalt forgot-password":
        return await client.post("/api/auth/forgot-password", json={"email": email})
    if operation == "cobalt login":
        return await client.post("/api/auth/login", json={"username": email, "password": "not the password"})
    path = "/api/auth/login" if operation == "pynode login" else "/api/v1/auth/login"
    return await client.post(path, json={"email": email, "password": "not the password"})


def masked(answer: httpx2.Response) -> tuple[int, str, tuple[str, ...]]:
    return answer.status_code, CHANGING.sub("", answer.text), tuple(sorted(answer.headers))


async def addresses(world: World) -> dict[str, str]:
    """An address of each kind that somebody might want to find out."""
    users = world.runtime.get(Users)
    known = await world.user("cobalt")
    unverified = await world.user("cobalt", email_verified=False)
    disabled = await world.user("cobalt")
    await users.disable_user(disabled.id, actor_id=known.id)
    deleted = await world.user("cobalt")
    await users.delete_user(deleted.id, actor_id=known.id)
    return {
        "known": known.email,
        "unverified": unverified.email,
        "disabled": disabled.email,
        "deleted": deleted.email,
        "unknown": factories.email("nobody"),
    }


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_answers_tell_no_account_from_none(world: World, operation: str) -> None:
    client = world.client(operation.split()[0])
    answers = {kind: masked(await ask(client, operation, email)) for kind, email in (await addresses(world)).items()}
    assert set(answers.values()) == {answers["unknown"]}, answers


@pytest.mark.parametrize("world", ["sqlite", "postgres+redis"], indirect=True)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("number", "least", "distance"),
    [
        # Wide enough that chance alone does not leave it in ten thousand runs; a missing hash gives 0 or 1.
        pytest.param(50, 0.25, 1.0, id="50"),
        pytest.param(500, 0.45, 0.10, id="500", marks=(pytest.mark.faults, pytest.mark.timeout(900))),
    ],
)
async def test_times_tell_no_account_from_none(
    world: World, operation: str, number: int, least: float, distance: float
) -> None:
    kinds = await addresses(world)
    client = world.client(operation.split()[0])
    found = []
    for attempt in range(ATTEMPTS):  # an honest difference shows each time, a neighbour's noise does not
        known, unknown = await times(client, operation, kinds["known"], number, attempt)
        area, apart = area_under_curve(known, unknown), greatest_distance(known, unknown)
        found.append(f"AUC {area:.3f}, KS {apart:.3f}")
        if least <= area <= 1 - least and apart <= distance:
            print(f"{operation}, n={number}: {found[-1]}")
            return
    raise AssertionError(found)


async def times(
    client: httpx2.AsyncClient, operation: str, known: str, number: int, seed: int
) -> tuple[list[float], list[float]]:
    """Seconds of `number` requests for a known and as many for unknown addresses, in an order of chance."""
    for index in range(WARM_UP):
        await ask(client, operation, known if index % 2 else factories.email("nobody"))
    order = [True, False] * number
    random.Random(seed).shuffle(order)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for is_known in order:
        email = known if is_known else factories.email(known.partition("@")[0][:4])
        began = time.perf_counter()
        await ask(client, operation, email)
        taken[is_known].append(time.perf_counter() - began)
    return taken[True], taken[False]


def test_a_difference_would_be_noticed() -> None:
    dice = random.Random(1)
    fast, slow = ([dice.gauss(mean, 1) for _ in range(60)] for mean in (10, 14))
    assert area_under_curve(slow, fast) > 0.9
    assert greatest_distance(slow, fast) > 0.9
    alike = [dice.gauss(10, 1) for _ in range(60)]
    assert 0.25 < area_under_curve(fast, alike) < 0.75
    assert area_under_curve([1.0], [1.0]) == 0.5
