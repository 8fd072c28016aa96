"""Who may do what in Dev-PyNode: every operation, asked by everybody. What is somebody's is nobody else's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from bedplate.kernel.ids import new_id
from bedplate.modules.identity.public import Users
from tests.factories import Account
from tests.security.crowd import on_both_engines
from tests.world import World

CALLERS = ("owner", "other", "admin", "service", "nobody", "refresh", "elsewhere", "disabled", "expired", "left")
# What each caller is answered. `other` and `admin` have accounts of their own; `service` is a program with a key;
# the last five are the owner with a token that is none, or none any more.
TABLE = """
operation                                   owner other admin service nobody refresh elsewhere disabled expired left
POST /api/auth/logout                       200   200   200   401     401    401     401       401      401     401
GET /api/users/me                           200   200   200   401     401    401     401       401      401     401
PUT /api/users/me                           200   200   200   401     401    401     401       401      401     401
POST /api/chat                              200   404   404   401     401    401     401       401      401     401
GET /api/chat/history                       200   200   200   401     401    401     401       401      401     401
GET /api/chat/messages/{message_id}         200   404   404   401     401    401     401       401      401     401
GET /api/chat/messages/{message_id}/stream  200   404   404   401     401    401     401       401      401     401
GET /api/chat/usage                         200   200   200   401     401    401     401       401      401     401
GET /api/chat/models                        200   200   200   401     401    401     401       401      401     401
POST /api/files/upload                      201   201   201   401     401    401     401       401      401     401
GET /api/files                              200   200   200   401     401    401     401       401      401     401
GET /api/files/{file_id}                    200   404   404   401     401    401     401       401      401     401
GET /api/files/{file_id}/download           200   404   404   401     401    401     401       401      401     401
DELETE /api/files/{file_id}                 200   404   404   401     401    401     401       401      401     401
POST /v1/chat/completions                   200   200   200   200     401    401     401       401      401     401
GET /v1/models                              200   200   200   200     401    401     401       401      401     401
GET /v1/models/{model_id}                   200   200   200   200     401    401     401       401      401     401
"""
FOR_EVERYBODY = {
    "POST /api/auth/register",
    "POST /api/auth/login",
    "POST /api/auth/refresh",
    "GET /files/{file_id}",  # to whoever has a link: tests/pynode/test_files.py
    *(f"GET {path}" for path in ("/", "/health", "/ready", "/metrics", "/docs", "/redoc")),
    *(f"GET {path}" for path in ("/openapi.json", "/openapi.yaml", "/docs/assets/{path}")),
}


def rows() -> Iterator[tuple[str, dict[str, int]]]:
    for line in TABLE.strip().splitlines()[1:]:
        method, path, *cells = line.split()
        yield f"{method} {path}", dict(zip(CALLERS, map(int, cells), strict=True))


@dataclass(frozen=True)
class Scene:
    """What belongs to one account: a message in a conversation, and a file."""

    message_id: str
    conversation_id: str
    file_id: str

    def request(self, operation: str) -> tuple[str, dict[str, Any]]:
        """The operation on these things: path, body."""
        path = operation.partition(" ")[2]
        ids = {"message_id": self.message_id, "file_id": self.file_id, "model_id": "gpt-4"}
        chat = {"message": "And then?", "conversation_id": self.conversation_id, "file_ids": [self.file_id]}
        bodies: dict[str, dict[str, Any]] = {
            "PUT /api/users/me": {"json": {"name": "Mallory"}},
            "POST /api/chat": {"json": chat},
            "POST /api/files/upload": {"files": {"file": ("a.txt", b"text", "text/plain")}},
            "POST /v1/chat/completions": {"json": {"model": "gpt-4", "messages": [{"role": "user", "content": "Hi"}]}},
        }
        return path.format(**ids), bodies.get(operation, {})


def of_nobody() -> Scene:
    """Ids of the right form that do not exist."""
    return Scene(f"chat-{new_id()}", f"conv-{new_id()}", f"file-{new_id()}")


async def scene_of(owner: Account) -> Scene:
    message = await owner.client.post("/api/chat", json={"message": "A secret of mine"})
    file = await owner.client.post("/api/files/upload", files={"file": ("a.txt", b"A secret of mine", "text/plain")})
    assert (message.status_code, file.status_code) == (200, 201)
    return Scene(message.json()["id"], message.json()["conversation_id"], file.json()["id"])


async def token(world: World, caller: str, owner: Account) -> str:
    """What the caller shows. Ends the owner's session in one way or another, if it comes to that."""
    if caller == "service":
        return await world.service_key()
    if caller in ("other", "admin"):
        return (await world.user("pynode", role="admin" if caller == "admin" else "user")).access_token
    if caller == "elsewhere":
        users = world.runtime.get(Users)
        return (await world.sign_in("cobalt", await users.get_user(owner.id), owner.password)).access_token
    if caller == "disabled":
        await world.runtime.get(Users).disable_user(owner.id, actor_id=new_id())
    if caller == "expired":
        world.clock.advance(3601)
    if caller == "left":
        assert (await owner.client.post("/api/auth/logout")).status_code == 200
    return owner.refresh_token if caller == "refresh" else owner.access_token


async def ask(world: World, operation: str, scene: Scene, shown: str) -> httpx2.Response:
    path, body = scene.request(operation)
    headers = {"Authorization": f"Bearer {shown}"} if shown else {}
    async with world.client("pynode") as client:
        return await client.request(operation.split()[0], path, headers=headers, **body)


@on_both_engines
@pytest.mark.parametrize(("operation", "expected"), list(rows()), ids=lambda value: value if type(value) is str else "")
async def test_everybody_is_answered_as_the_table_says(world: World, operation: str, expected: dict[str, int]) -> None:
    found = {}
    for caller in CALLERS:
        owner = await world.user("pynode")
        scene = await scene_of(owner)
        answer = await ask(world, operation, scene, "" if caller == "nobody" else await token(world, caller, owner))
        found[caller] = answer.status_code
        if caller != "owner":
            assert "A secret of mine" not in answer.text, caller
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
    assert found == expected


@on_both_engines
@pytest.mark.parametrize("operation", [operation for operation, answers in rows() if answers["other"] == 404])
async def test_what_is_somebody_elses_is_as_good_as_not_there(world: World, operation: str) -> None:
    owner, other = await world.user("pynode"), await world.user("pynode")
    theirs = await ask(world, operation, await scene_of(owner), other.access_token)
    unknown = await ask(world, operation, of_nobody(), other.access_token)
    assert (theirs.status_code, theirs.text, sorted(theirs.headers)) == (404, unknown.text, sorted(unknown.headers))
    assert theirs.json() == {"error": "Not Found", "message": "Resource not found", "code": "RESOURCE_NOT_FOUND"}
    kept = await owner.client.get("/api/files")
    assert kept.json()["total"] == 1


@on_both_engines
async def test_lists_are_of_whoever_asks(world: World) -> None:
    owner, other = await world.user("pynode"), await world.user("pynode")
    await scene_of(owner)
    assert (await other.client.get("/api/chat/history")).json()["messages"] == []
    assert (await other.client.get("/api/files")).json()["files"] == []
    assert (await other.client.get("/api/chat/usage")).json()["usage"] == []


async def test_no_operation_is_missing(world: World) -> None:
    routed = set()
    for route in iter_route_contexts(world.app("pynode").routes):
        if isinstance(route.original_route, Mount):
            routed.add(f"GET {route.path}/{{path}}")
        else:
            routed |= {f"{method} {route.path}" for method in (route.methods or set()) - {"HEAD"}}
    assert routed == {operation for operation, _ in rows()} | FOR_EVERYBODY
