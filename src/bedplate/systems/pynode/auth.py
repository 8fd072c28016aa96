"""Dev-PyNode API reference: Authentication."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bedplate.kernel.http import Text
from bedplate.modules.identity.public import Grant, Registration
from bedplate.systems.pynode.callers import POLICY
from bedplate.systems.pynode.deps import Caller, SessionsDep

router = APIRouter(tags=["auth"])

Name = Annotated[str, BeforeValidator(lambda name: name or "")]
"""Accounts that were made through another system may have none."""


class RegisterIn(BaseModel):
    email: Text
    password: Text = Field(repr=False)
    name: Text

    model_config = ConfigDict(
        json_schema_extra={"example": {"email": "user@example.com", "password": "password123", "name": "John Doe"}}
    )


class LoginIn(BaseModel):
    email: Text
    password: Text = Field(repr=False)

    model_config = ConfigDict(json_schema_extra={"example": {"email": "user@example.com", "password": "password123"}})


class RefreshIn(BaseModel):
    refresh_token: Text = Field(repr=False)


class AccountOut(BaseModel):
    id: str
    email: str
    name: Name
    created_at: datetime

    model_config = ConfigDict(from_attributes=True)


class SignedInOut(BaseModel):
    """`expires_in`: seconds that the access token lives. The refresh token is good until the session ends."""

    user: AccountOut
    access_token: str
    refresh_token: str
    expires_in: int
    token_type: str = "Bearer"

    model_config = ConfigDict(from_attributes=True)


class RefreshedOut(BaseModel):
    """`refresh_token` is not here: the one that was sent stays good."""

    access_token: str
    expires_in: int
    token_type: str = "Bearer"

    model_config = ConfigDict(from_attributes=True)


class MessageOut(BaseModel):
    message: str


@router.post("/api/auth/register", status_code=201, response_model=SignedInOut)
async def register(body: RegisterIn, sessions: SessionsDep) -> Grant:
    return await sessions.sign_up(Registration(body.email, body.password, name=body.name), POLICY)


@router.post("/api/auth/login", response_model=SignedInOut)
async def login(body: LoginIn, sessions: SessionsDep) -> Grant:
    return await sessions.sign_in(body.email, body.password, POLICY)


@router.post("/api/auth/refresh", response_model=RefreshedOut)
async def refresh(body: RefreshIn, sessions: SessionsDep) -> Grant:
    return await sessions.refresh(body.refresh_token, POLICY)


@router.post("/api/auth/logout", response_model=MessageOut)
async def logout(caller: Caller, sessions: SessionsDep) -> MessageOut:
    await sessions.end_session(caller.session_id)
    return MessageOut(message="Successfully logged out")
