"""Cobalt API reference: Admin Endpoints, Pagination, Filtering."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bedplate.kernel.http import Query, Text
from bedplate.kernel.paging import Slice
from bedplate.modules.identity.public import Role, User, UserFilter
from bedplate.systems.cobalt.auth import MessageOut, RoleName
from bedplate.systems.cobalt.deps import UsersDep, VerifiedAdmin

router = APIRouter(tags=["admin"])


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class ListQuery(BaseModel):
    """Pages are brought into range; a filter that is left out lets everything through."""

    page: int = 1
    per_page: int = 20
    role: Annotated[Literal["admin", "user"] | None, BeforeValidator(_lower)] = None
    email_verified: bool | None = None
    search: Annotated[Text, Field(max_length=254, description="Part of a username or e-mail address")] | None = None

    def filter(self) -> UserFilter:
        return UserFilter(Role(self.role) if self.role else None, self.email_verified, self.search)


list_query = Query(ListQuery)


class StatsOut(BaseModel):
    total_users: int
    verified_users: int
    admin_users: int
    disabled_users: int


class AdminUserOut(BaseModel):
    id: str
    username: str | None
    email: str
    role: RoleName
    email_verified: bool
    disabled_at: datetime | None
    last_login_at: datetime | None
    created_at: datetime
    updated_at: datetime

    model_config = ConfigDict(from_attributes=True)


class UserPageOut(BaseModel):
    users: list[AdminUserOut]
    total: int
    page: int
    per_page: int
    total_pages: int


@router.get("/api/admin/stats", response_model=StatsOut)
async def stats(admin: VerifiedAdmin, users: UsersDep) -> StatsOut:
    counts = await users.count_users()
    return StatsOut(
        total_users=counts.total,
        verified_users=counts.verified,
        admin_users=counts.admins,
        disabled_users=counts.disabled,
    )


@router.get("/api/admin/users", response_model=UserPageOut, openapi_extra=list_query.documented)
async def list_users(
    admin: VerifiedAdmin, users: UsersDep, query: Annotated[ListQuery, Depends(list_query)]
) -> dict[str, object]:
    part = Slice.of_page(query.page, query.per_page)
    found = await users.list_users(query.filter(), part)
    return {
        "users": found.items,
        "total": found.total,
        "page": part.page,
        "per_page": part.limit,
        "total_pages": found.pages(part.limit),
    }


@router.get("/api/admin/users/{user_id}", response_model=AdminUserOut)
async def get_user(user_id: Text, admin: VerifiedAdmin, users: UsersDep) -> User:
    return await users.get_user(user_id)


@router.patch("/api/admin/users/{user_id}/disable", response_model=MessageOut)
async def disable_user(user_id: Text, admin: VerifiedAdmin, users: UsersDep) -> MessageOut:
    await users.disable_user(user_id, actor_id=admin.user.id)
    return MessageOut(message="User disabled successfully")


@router.patch("/api/admin/users/{user_id}/enable", response_model=MessageOut)
async def enable_user(user_id: Text, admin: VerifiedAdmin, users: UsersDep) -> MessageOut:
    await users.enable_user(user_id, actor_id=admin.user.id)
    return MessageOut(message="User enabled successfully")
