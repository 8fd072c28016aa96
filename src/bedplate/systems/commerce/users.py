"""Commerce API documentation: User Service API."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from bedplate.kernel.http import Query, Text
from bedplate.kernel.paging import MAXIMUM_OFFSET, Slice
from bedplate.modules.identity.public import (
    Account,
    Details,
    InvalidVerificationToken,
    Profile,
    Registration,
    User,
    UserNotFound,
)
from bedplate.systems.commerce.deps import (
    SERVICE_KEY,
    ConfirmationsDep,
    OwnAccountOrAdmins,
    OwnAccountOrAdminsOrServices,
    UsersDep,
    documented,
)

router = APIRouter(tags=["users"])


class UserCreate(BaseModel):
    email: Text
    username: Text
    password: Text = Field(repr=False)
    first_name: Text | None = None
    last_name: Text | None = None
    phone: Text | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "email": "user@example.com",
                "username": "username",
                "password": "password123",
                "first_name": "John",
                "last_name": "Doe",
                "phone": "+1234567890",
            }
        }
    )


class PreferencesIn(BaseModel):
    """Both are on until they are switched off."""

    email_notifications: bool | None = None
    push_notifications: bool | None = None


class ProfileIn(BaseModel):
    """What is left out, or null, stays as it is; an empty text empties it."""

    avatar_url: Text | None = None
    bio: Text | None = None
    date_of_birth: Text | None = None
    gender: Text | None = None
    country: Text | None = None
    city: Text | None = None
    address: Text | None = None
    postal_code: Text | None = None
    preferences: PreferencesIn | None = None


class UserUpdate(BaseModel):
    """What is left out, or null, stays as it is."""

    first_name: Text | None = None
    last_name: Text | None = None
    phone: Text | None = None
    profile: ProfileIn | None = None

    model_config = ConfigDict(
        json_schema_extra={"example": {"first_name": "Jane", "last_name": "Smith", "phone": "+1234567891"}}
    )

    def details(self) -> Details:
        profile = Profile(**self.profile.model_dump(exclude_none=True)) if self.profile is not None else None
        return Details(self.first_name, self.last_name, self.phone, profile)


class VerifyIn(BaseModel):
    verification_token: Text = Field(repr=False)


class UserOut(BaseModel):
    id: str
    email: str
    username: str | None
    first_name: str | None
    last_name: str | None
    phone: str | None
    is_active: Annotated[bool, BeforeValidator(lambda disabled_at: disabled_at is None)] = Field(
        validation_alias="disabled_at"
    )
    is_verified: bool = Field(validation_alias="email_verified")
    created_at: datetime

    model_config = ConfigDict(from_attributes=True)


class PreferencesOut(BaseModel):
    email_notifications: bool
    push_notifications: bool


class ProfileOut(BaseModel):
    bio: str | None
    country: str | None
    city: str | None
    preferences: PreferencesOut

    model_config = ConfigDict(from_attributes=True)


class AccountOut(UserOut):
    profile: ProfileOut

    @model_validator(mode="before")
    @classmethod
    def _in_one(cls, account: Account) -> dict[str, object]:
        return {**account.user._asdict(), "profile": account.profile}


class UserEventOut(BaseModel):
    id: str
    event_type: str
    data: dict[str, JsonValue]
    created_at: datetime

    model_config = ConfigDict(from_attributes=True)


class UserEventsOut(BaseModel):
    events: list[UserEventOut]


class EventsQuery(BaseModel):
    limit: int = Field(100, ge=1, le=100)
    offset: int = Field(0, ge=0, le=MAXIMUM_OFFSET)


events_query = Query(EventsQuery)
ONE_USER = documented("user_id", anonymous=False, services=False)
ITS_EVENTS = {**ONE_USER, "parameters": [*ONE_USER["parameters"], *events_query.documented["parameters"]]}


@router.post("/api/users", status_code=201, response_model=UserOut)
async def create_user(body: UserCreate, users: UsersDep) -> User:
    return await users.register(Registration(**body.model_dump(), username_required=True))


@router.get(
    "/api/users/{user_id}",
    response_model=AccountOut,
    dependencies=[SERVICE_KEY],
    openapi_extra=ONE_USER,
)
async def get_user(user_id: OwnAccountOrAdminsOrServices, users: UsersDep) -> Account:
    return await users.get_account(user_id)


@router.put("/api/users/{user_id}", response_model=AccountOut, openapi_extra=ONE_USER)
async def update_user(user_id: OwnAccountOrAdmins, body: UserUpdate, users: UsersDep) -> Account:
    return await users.update_details(user_id, body.details())


@router.post("/api/users/{user_id}/verify", response_model=AccountOut)
async def verify_user(user_id: Text, body: VerifyIn, confirmations: ConfirmationsDep) -> Account:
    try:
        return await confirmations.verify_user(user_id, body.verification_token)
    except UserNotFound:  # anybody may ask: the answer tells no account from none
        raise InvalidVerificationToken() from None


@router.get("/api/users/{user_id}/events", response_model=UserEventsOut, openapi_extra=ITS_EVENTS)
async def list_user_events(
    user_id: OwnAccountOrAdmins, users: UsersDep, query: Annotated[EventsQuery, Depends(events_query)]
) -> dict[str, object]:
    found = await users.list_events(user_id, Slice(query.limit, query.offset))
    return {"events": found.items}
