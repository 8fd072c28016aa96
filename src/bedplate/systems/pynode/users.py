"""Dev-PyNode API reference: User Management."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from bedplate.kernel.http import Text
from bedplate.modules.identity.public import Changes, User
from bedplate.systems.pynode.auth import Name
from bedplate.systems.pynode.deps import Caller, UsersDep

router = APIRouter(tags=["users"])


class ProfileOut(BaseModel):
    id: str
    email: str
    name: Name
    created_at: datetime
    updated_at: datetime

    model_config = ConfigDict(from_attributes=True)


class ProfileIn(BaseModel):
    """What is left out, or null, stays as it is."""

    name: Text | None = None
    email: Text | None = None

    model_config = ConfigDict(json_schema_extra={"example": {"name": "John Smith", "email": "john.smith@example.com"}})


@router.get("/api/users/me", response_model=ProfileOut)
async def get_me(caller: Caller) -> User:
    return caller.user


@router.put("/api/users/me", response_model=ProfileOut)
async def update_me(body: ProfileIn, caller: Caller, users: UsersDep) -> User:
    return await users.update_user(caller.user.id, Changes(body.email, body.name), keep_session=caller.session_id)
