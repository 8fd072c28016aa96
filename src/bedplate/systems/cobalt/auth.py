"""Cobalt API reference: Authentication Endpoints."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from bedplate.kernel.http import Text, bearer_token
from bedplate.modules.identity.public import Grant, Registration, User
from bedplate.systems.cobalt.deps import (
    POLICY,
    Caller,
    ConfirmationsDep,
    OwnAccount,
    RefreshCookie,
    SessionsDep,
    forget_refresh_token,
    keep_refresh_token,
)

router = APIRouter(tags=["auth"])


class RegisterIn(BaseModel):
    """A missing field counts as empty, so that it gets the same message."""

    username: Text = ""
    email: Text = ""
    password: Text = ""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["username", "email", "password"],
            "example": {"username": "alice", "email": "alice@example.com", "password": "SecurePass123!"},
        }
    )


class LoginIn(BaseModel):
    """`username` may also hold the e-mail address."""

    username: Annotated[Text, Field(validation_alias=AliasChoices("username", "username_or_email"))] = ""
    password: Text = ""

    model_config = ConfigDict(
        validate_default=True,
        json_schema_extra={
            "required": ["username", "password"],
            "example": {"username": "alice", "password": "SecurePass123!"},
        },
    )

    @field_validator("username", "password")
    @classmethod
    def _not_empty(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            raise ValueError(f"{str(info.field_name).capitalize()} cannot be empty")
        return value


class TokenIn(BaseModel):
    token: Text = ""


class ForgotPasswordIn(BaseModel):
    email: Text = ""


class ResetPasswordIn(BaseModel):
    token: Text = ""
    password: Text = ""


RoleName = Annotated[str, AfterValidator(str.capitalize)]
"""Printed as `User` or `Admin`."""


class AuthOut(BaseModel):
    """`expires_in`: seconds. The refresh token travels in the cookie only."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int

    model_config = ConfigDict(from_attributes=True)


class MeOut(BaseModel):
    id: str
    username: str | None
    email: str
    email_verified: bool
    role: RoleName

    model_config = ConfigDict(from_attributes=True)


class MessageOut(BaseModel):
    message: str


@router.post("/api/auth/register", status_code=201, response_model=AuthOut)
async def register(body: RegisterIn, request: Request, response: Response, sessions: SessionsDep) -> Grant:
    registration = Registration(body.email, body.password, username=body.username, username_required=True)
    grant = await sessions.sign_up(registration, POLICY)
    keep_refresh_token(request, response, grant)
    return grant


@router.post("/api/auth/login", response_model=AuthOut)
async def login(body: LoginIn, request: Request, response: Response, sessions: SessionsDep) -> Grant:
    grant = await sessions.sign_in(body.username, body.password, POLICY)
    keep_refresh_token(request, response, grant)
    return grant


@router.post("/api/auth/refresh", response_model=AuthOut)
async def refresh(
    request: Request, response: Response, sessions: SessionsDep, refresh_token: RefreshCookie = ""
) -> Grant:
    grant = await sessions.refresh(refresh_token, POLICY)
    keep_refresh_token(request, response, grant)
    return grant


@router.post("/api/auth/logout", response_model=MessageOut)
async def logout(
    request: Request, response: Response, sessions: SessionsDep, refresh_token: RefreshCookie = ""
) -> MessageOut:
    await sessions.sign_out(refresh_token, POLICY.audience, access_token=bearer_token(request))
    forget_refresh_token(request, response)
    return MessageOut(message="Logged out successfully")


@router.get("/api/auth/me", response_model=MeOut)
async def me(caller: OwnAccount) -> User:
    return caller.user


@router.post("/api/auth/verify-email", response_model=MessageOut)
async def verify_email(body: TokenIn, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.verify_email(body.token)
    return MessageOut(message="Email verified successfully")


@router.post("/api/auth/send-verification", response_model=MessageOut)
async def send_verification(caller: Caller, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.request_verification(caller.user.id)
    return MessageOut(message="Verification email sent")


@router.post("/api/auth/forgot-password", response_model=MessageOut)
async def forgot_password(body: ForgotPasswordIn, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.request_password_reset(body.email)
    return MessageOut(message="If the account exists, a password reset email has been sent")


@router.post("/api/auth/reset-password", response_model=MessageOut)
async def reset_password(body: ResetPasswordIn, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.reset_password(body.token, body.password)
    return MessageOut(message="Password reset successfully")
