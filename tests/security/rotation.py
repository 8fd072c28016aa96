"""Refreshing as each system's document words it: by cookie, or as a bearer token."""

import httpx2

from tests.world import World


async def present(world: World, system: str, token: str) -> httpx2.Response:
    """Refresh with this token."""
    async with world.client(system) as client:
        if system == "cobalt":
            return await client.post("/api/auth/refresh", headers={"Cookie": f"refresh_token={token}"})
        if system == "pynode":
            return await client.post("/api/auth/refresh", json={"refresh_token": token})
        return await client.post("/api/v1/auth/refresh", headers={"Authorization": f"Bearer {token}"})


def child_of(system: str, answer: httpx2.Response) -> str:
    """The refresh token that was handed out."""
    return str(answer.cookies["refresh_token"] if system == "cobalt" else answer.json()["refresh_token"])


async def read(world: World, system: str, access_token: str, user_id: str) -> int:
    """The status of an authenticated read with this access token."""
    own = {"cobalt": "/api/auth/me", "pynode": "/api/users/me"}
    path = own.get(system) or f"/api/v1/users/{user_id}"
    async with world.client(system) as client:
        return (await client.get(path, headers={"Authorization": f"Bearer {access_token}"})).status_code


async def leave(world: World, system: str, token: str, access_token: str) -> httpx2.Response:
    """Log out with these tokens."""
    headers = {"Authorization": f"Bearer {access_token}"}
    async with world.client(system) as client:
        if system == "cobalt":
            return await client.post("/api/auth/logout", headers={"Cookie": f"refresh_token={token}", **headers})
        path = "/api/auth/logout" if system == "pynode" else "/api/v1/auth/logout"
        return await client.post(path, headers=headers)
