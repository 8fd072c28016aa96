"""Dev-PyNode's two limits: by user, and by address of whoever shows no valid token."""

import asyncio
from collections import Counter

import httpx2
import pytest

from bedplate.modules.identity.public import Users
from tests.world import World

pytestmark = pytest.mark.limits
WINDOW = 900


async def statuses(client: httpx2.AsyncClient, path: str, number: int) -> Counter[int]:
    answers = await asyncio.gather(*(client.get(path) for _ in range(number)))
    return Counter(answer.status_code for answer in answers)


async def test_a_user_has_a_hundred_whatever_the_address(world: World) -> None:
    user = await world.user("pynode")
    elsewhere = world.client("pynode", "192.0.2.9")
    elsewhere.headers["Authorization"] = user.client.headers["Authorization"]
    assert await statuses(user.client, "/api/users/me", 60) == {200: 60}
    assert await statuses(elsewhere, "/api/users/me", 50) == {200: 40, 429: 10}
    another_session = await world.sign_in("pynode", await world.runtime.get(Users).get_user(user.id))
    assert (await another_session.client.get("/api/users/me")).status_code == 429
    neighbour = await world.user("pynode")
    assert (await neighbour.client.get("/api/users/me")).status_code == 200
    world.clock.advance(WINDOW)
    assert (await user.client.get("/api/users/me")).status_code == 200


async def test_every_answer_says_where_its_caller_stands(world: World) -> None:
    user = await world.user("pynode")
    for number, (method, path, status) in enumerate(
        [
            ("GET", "/api/users/me", 200),
            ("GET", "/api/nothing", 404),
            ("DELETE", "/api/users/me", 405),
            ("POST", "/api/chat", 400),
            ("GET", "/api/chat/messages/x", 404),
            ("GET", "/v1/models", 200),
            ("GET", "/v1/models/none", 404),
            ("POST", "/v1/chat/completions", 400),
            ("POST", "/api/chat/stream", 404),
        ],
        start=1,
    ):
        answer = await user.client.request(method, path)
        assert answer.status_code == status, answer.text
        assert answer.headers["x-ratelimit-limit"] == "100"
        assert answer.headers["x-ratelimit-remaining"] == str(100 - number)
        ends = int(answer.headers["x-ratelimit-reset"]) - world.clock.timestamp()
        assert WINDOW - 30 < ends <= WINDOW + 1


async def test_a_refusal_says_how_long_to_wait(world: World) -> None:
    client = world.client("pynode", "192.0.2.7")
    await statuses(client, "/api/users/me", 10)
    answer = await client.get("/api/users/me")
    wait = answer.json()["retry_after"]
    assert answer.json() == {
        "error": "Too Many Requests",
        "message": "Rate limit exceeded",
        "code": "RATE_LIMIT_EXCEEDED",
        "retry_after": wait,
    }
    assert answer.headers["retry-after"] == str(wait)
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert abs(int(answer.headers["x-ratelimit-reset"]) - world.clock.timestamp() - wait) <= 1.5
    world.clock.advance(wait)
    assert (await client.get("/api/users/me")).status_code == 401


@pytest.mark.parametrize("token", ["", "nonsense", "bp_nonsense", "refresh", "revoked", "of another system"])
async def test_whoever_shows_no_valid_token_counts_by_address(world: World, token: str) -> None:
    user = await world.user("pynode")
    if token == "refresh":
        token = user.refresh_token
    elif token == "revoked":
        assert (await user.client.post("/api/auth/logout")).status_code == 200
        token = user.access_token
    elif token == "of another system":
        token = (await world.user("cobalt")).access_token
    client = world.client("pynode", "192.0.2.8")
    client.headers["Authorization"] = f"Bearer {token}"
    client.headers["X-Forwarded-For"] = "198.51.100.1"
    assert await statuses(client, "/api/users/me", 20) == {401: 10, 429: 10}
    assert await statuses(client, "/v1/models", 1) == {429: 1}


@pytest.mark.parametrize("path", ["/api/auth/login", "/api/auth/register"])
async def test_a_token_of_ones_own_allows_no_more_guesses_and_no_more_accounts(world: World, path: str) -> None:
    client = world.client("pynode", "192.0.2.5")
    client.headers["Authorization"] = (await world.user("pynode")).client.headers["Authorization"]
    guess = {"email": "victim@example.com", "password": "a guess", "name": ""}
    answers = [(await client.post(path, json=guess)).status_code for _ in range(15)]
    assert answers[10:] == [429] * 5 and 429 not in answers[:10]
    assert (await client.get("/api/users/me")).headers["x-ratelimit-remaining"] == "99"


async def test_probes_documents_and_linked_files_are_not_counted(world: World) -> None:
    client = world.client("pynode", "192.0.2.6")
    for path in ("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/openapi.yaml"):
        for _ in range(12):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert "x-ratelimit-limit" not in answer.headers


async def test_a_token_is_looked_at_once_in_a_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    user = await world.user("pynode")
    asked: list[str] = []
    tokens = world.runtime.tokens
    read = tokens.read

    def counting(token: str, **options: str) -> object:
        asked.append(options["type"])
        return read(token, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "read", counting)
    refused = await user.client.get("/api/users/me", headers={"Authorization": f"Bearer {user.access_token[:-4]}AAAA"})
    assert refused.status_code == 401
    assert asked.count("access") == 1
