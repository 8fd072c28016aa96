"""Pantstack API reference: User Management, API Versioning."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, field_validator

from bedplate.kernel.http import Text
from bedplate.kernel.ids import prefixed
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.identity.public import Changes, Registration, User, UserFilter
from bedplate.systems.pantstack.deps import (
    ONE_USER,
    ONE_USER_OR_SERVICE,
    PREFIX,
    AdminOrService,
    OwnOrAdmins,
    OwnOrAdminsOrServices,
    UsersDep,
)
from bedplate.systems.pantstack.errors import UnknownApiVersion

router = APIRouter(tags=["users"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=2**31)]


class UserCreate(BaseModel):
    email: Text
    name: Text
    password: Text

    model_config = ConfigDict(
        json_schema_extra={"example": {"email": "user@example.com", "name": "John Doe", "password": "secure_password"}}
    )


class UserUpdate(BaseModel):
    """What is left out, or null, stays as it is."""

    email: Text | None = None
    name: Text | None = None
    password: Text | None = None

    model_config = ConfigDict(json_schema_extra={"example": {"name": "Jane Doe", "email": "jane@example.com"}})


class UserOut(BaseModel):
    id: str
    email: str
    name: str
    created_at: datetime
    updated_at: datetime

    model_config = ConfigDict(from_attributes=True)

    @field_validator("id")
    @classmethod
    def _prefixed(cls, identifier: str) -> str:
        return prefixed(PREFIX, identifier)

    @field_validator("name", mode="before")
    @classmethod
    def _never_null(cls, name: str | None) -> str:
        return name or ""  # accounts made through another system may have none


class UserPageOut(BaseModel):
    items: list[UserOut]
    total: int
    limit: int
    offset: int


@router.post("/api/v1/users", status_code=201, response_model=UserOut)
async def create_user(body: UserCreate, users: UsersDep) -> User:
    return await users.register(Registration(body.email, body.password, name=body.name))


@router.get("/api/v1/users", response_model=list[UserOut])
async def list_users_v1(reader: AdminOrService, users: UsersDep, limit: Limit = 100, offset: Offset = 0) -> list[User]:
    return (await users.list_users(UserFilter(), Slice(limit, offset))).items


@router.get("/api/v2/users", response_model=UserPageOut)
async def list_users_v2(
    reader: AdminOrService, users: UsersDep, limit: Limit = 100, offset: Offset = 0
) -> dict[str, object]:
    return _page(await users.list_users(UserFilter(), Slice(limit, offset)), limit, offset)


@router.get("/api/users", response_model=list[UserOut] | UserPageOut)
async def list_users_by_header(
    reader: AdminOrService,
    users: UsersDep,
    limit: Limit = 100,
    offset: Offset = 0,
    api_version: Annotated[str, Header(description="v1 or v2")] = "v1",
) -> list[User] | dict[str, object]:
    if api_version not in ("v1", "v2"):
        raise UnknownApiVersion()
    page = await users.list_users(UserFilter(), Slice(limit, offset))
    return page.items if api_version == "v1" else _page(page, limit, offset)


@router.get("/api/v1/users/{user_id}", response_model=UserOut, openapi_extra=ONE_USER_OR_SERVICE)
async def get_user(target: OwnOrAdminsOrServices, users: UsersDep) -> User:
    return await users.get_user(target.user_id)


@router.put("/api/v1/users/{user_id}", response_model=UserOut, openapi_extra=ONE_USER)
async def update_user(target: OwnOrAdmins, body: UserUpdate, users: UsersDep) -> User:
    changes = Changes(email=body.email, name=body.name, password=body.password)
    return await users.update_user(target.user_id, changes, keep_session=target.session_id)


@router.delete("/api/v1/users/{user_id}", status_code=204, openapi_extra=ONE_USER)
async def delete_user(target: OwnOrAdmins, users: UsersDep) -> None:
    await users.delete_user(target.user_id, actor_id=target.caller_id)


def _page(page: Page[User], limit: int, offset: int) -> dict[str, object]:
    return {"items": page.items, "total": page.total, "limit": limit, "offset": offset}
