"""Commerce API documentation: Authentication. The document asks for a token and shows no way to get one: these are
additions."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bedplate.kernel.http import Text, bearer_token
from bedplate.modules.identity.public import Grant
from bedplate.systems.commerce.deps import POLICY, ConfirmationsDep, OwnUser, SessionsDep

router = APIRouter(tags=["auth"])


class LoginIn(BaseModel):
    """One of `email` and `username`."""

    email: Text | None = None
    username: Text | None = None
    password: Text = Field(repr=False)

    model_config = ConfigDict(json_schema_extra={"example": {"email": "user@example.com", "password": "password123"}})

    @model_validator(mode="after")
    def _one_name(self) -> "LoginIn":
        if (self.email is None) == (self.username is None):
            raise ValueError("Input should have either email or username")
        return self

    @property
    def login(self) -> str:
        return self.email or self.username or ""


class RefreshTokenIn(BaseModel):
    refresh_token: Text = Field(repr=False)


class ForgotPasswordIn(BaseModel):
    email: Text

    model_config = ConfigDict(json_schema_extra={"example": {"email": "user@example.com"}})


class ResetPasswordIn(BaseModel):
    """`token`: from the mail, good for an hour and once."""

    token: Text = Field(repr=False)
    password: Text = Field(repr=False)


class MessageOut(BaseModel):
    message: str


class TokenOut(BaseModel):
    """`expires_in`: seconds. `refresh_token` is spent by its first use."""

    access_token: str
    token_type: str = "bearer"
    expires_in: int
    refresh_token: str

    model_config = ConfigDict(from_attributes=True)


@router.post("/api/auth/login", response_model=TokenOut)
async def login(body: LoginIn, sessions: SessionsDep) -> Grant:
    return await sessions.sign_in(body.login, body.password, POLICY)


@router.post("/api/auth/refresh", response_model=TokenOut)
async def refresh(body: RefreshTokenIn, sessions: SessionsDep) -> Grant:
    return await sessions.refresh(body.refresh_token, POLICY)


@router.post("/api/auth/logout", status_code=204)
async def logout(body: RefreshTokenIn, request: Request, sessions: SessionsDep) -> None:
    await sessions.sign_out(body.refresh_token, POLICY.audience, access_token=bearer_token(request))


@router.post("/api/auth/resend-verification", response_model=MessageOut)
async def resend_verification(user: OwnUser, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.request_verification(user.id)
    return MessageOut(message="Verification email sent")


@router.post("/api/auth/forgot-password", response_model=MessageOut)
async def forgot_password(body: ForgotPasswordIn, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.request_password_reset(body.email)
    return MessageOut(message="If the account exists, a password reset email has been sent")


@router.post("/api/auth/reset-password", response_model=MessageOut)
async def reset_password(body: ResetPasswordIn, confirmations: ConfirmationsDep) -> MessageOut:
    await confirmations.reset_password(body.token, body.password)
    return MessageOut(message="Password reset successfully")
