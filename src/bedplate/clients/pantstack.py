"""Pantstack API reference: Service Client Interface."""

import base64
import json
import os
import re
from datetime import datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, TypeAdapter
from typeid import TypeID
from uuid_utils import UUID

TIMEOUT_SECONDS = 10.0
KEY_VARIABLE = "PANTSTACK_API_KEY"
TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


class User(BaseModel):
    id: str
    email: str
    name: str
    created_at: datetime
    updated_at: datetime


_users = TypeAdapter(list[User])


class APIClient:
    """Reads users of a Pantstack service. `api_key` is a service key; without it PANTSTACK_API_KEY is used.

    Answers other than those named at the methods raise httpx2.HTTPStatusError. Connections are kept; close them with
    `aclose()` or use the client as a context manager.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = base_url
        self.api_key = api_key or os.environ.get(KEY_VARIABLE)
        headers = {"X-API-Key": self.api_key} if self.api_key else {}
        self._http = httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT_SECONDS)

    async def get_user(self, user_id: str) -> User | None:
        """The user, or None if there is none with this id."""
        response = await self._http.get(_path(user_id))
        if response.status_code == 404:
            return None
        response.raise_for_status()
        return User.model_validate_json(response.content)

    async def list_users(self, limit: int = 100, offset: int = 0) -> list[User]:
        """Newest first, at most 1,000 at once."""
        response = await self._http.get("/api/v1/users", params={"limit": limit, "offset": offset})
        response.raise_for_status()
        return _users.validate_json(response.content)

    async def verify_user(self, user_id: str, token: str) -> bool:
        """Whether `token` is a valid access token of exactly this user."""
        if _subject(token) != user_id:
            return False
        # The service decides whether the token is genuine and still good; a bearer token comes before the key.
        response = await self._http.get(_path(user_id), headers={"Authorization": f"Bearer {token}"})
        if response.status_code in (401, 403, 404):
            return False
        response.raise_for_status()
        return True

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _path(user_id: str) -> str:
    return f"/api/v1/users/{quote(user_id, safe='')}"


def _subject(token: str) -> str | None:
    """Whom the token says it is of, not yet verified."""
    if not TOKEN.fullmatch(token):  # also what no header can carry
        return None
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(TypeID.from_uuid(UUID(claims["sub"]), "usr"))
    except (ValueError, KeyError, IndexError, TypeError):
        return None
