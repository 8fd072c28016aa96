"""Pantstack API reference: Authentication."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from bedplate.kernel.http import Text
from bedplate.modules.identity.public import Grant
from bedplate.systems.pantstack.deps import POLICY, Caller, RefreshToken, SessionsDep

router = APIRouter(tags=["auth"])


class LoginIn(BaseModel):
    email: Text
    password: Text

    model_config = ConfigDict(
        json_schema_extra={"example": {"email": "user@example.com", "password": "secure_password"}}
    )


class TokenOut(BaseModel):
    """`expires_in`: seconds. `refresh_token` is spent by its first use."""

    access_token: str
    token_type: str = "bearer"
    expires_in: int
    refresh_token: str

    model_config = ConfigDict(from_attributes=True)


@router.post("/api/v1/auth/login", response_model=TokenOut)
async def login(body: LoginIn, sessions: SessionsDep) -> Grant:
    return await sessions.sign_in(body.email, body.password, POLICY)


@router.post("/api/v1/auth/refresh", response_model=TokenOut)
async def refresh(token: RefreshToken, sessions: SessionsDep) -> Grant:
    return await sessions.refresh(token, POLICY)


@router.post("/api/v1/auth/logout", status_code=204)
async def logout(caller: Caller, sessions: SessionsDep) -> None:
    await sessions.end_session(caller.session_id)
