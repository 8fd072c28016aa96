"""Identity's tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.db import Base, Id, UtcTime


class UserRow(Base):
    __tablename__ = "identity_users"
    __table_args__ = (Index("ix_identity_users_created_at_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    # The keys are what is compared: lower case, so that an address or name exists once in any spelling.
    email_key: Mapped[str] = mapped_column(String(512), unique=True)
    username: Mapped[str | None] = mapped_column(String(50))
    username_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(200))
    name: Mapped[str | None] = mapped_column(String(200))
    first_name: Mapped[str | None] = mapped_column(String(100))
    last_name: Mapped[str | None] = mapped_column(String(100))
    phone: Mapped[str | None] = mapped_column(String(32))
    profile: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    role: Mapped[str] = mapped_column(String(16))
    email_verified: Mapped[bool]
    disabled_at: Mapped[datetime | None] = mapped_column(UtcTime)
    last_login_at: Mapped[datetime | None] = mapped_column(UtcTime)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class SessionRow(Base):
    """One sign-in on one device. Every token says which session it belongs to; ending it ends them all."""

    __tablename__ = "identity_sessions"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("identity_users.id", ondelete="CASCADE"), index=True)
    audience: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime] = mapped_column(UtcTime, index=True)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)


class RefreshTokenRow(Base):
    """One refresh token. `id` is its jti; spent when `rotated_at` is set, its successor is `child_id`."""

    __tablename__ = "identity_refresh_tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    session_id: Mapped[str] = mapped_column(Id, ForeignKey("identity_sessions.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64))
    issued_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime] = mapped_column(UtcTime, index=True)
    rotated_at: Mapped[datetime | None] = mapped_column(UtcTime)
    child_id: Mapped[str | None] = mapped_column(Id)


class EmailTokenRow(Base):
    __tablename__ = "identity_email_tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("identity_users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[str] = mapped_column(String(16))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    cause: Mapped[str] = mapped_column(String(64))
    requested_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime] = mapped_column(UtcTime, index=True)
    used_at: Mapped[datetime | None] = mapped_column(UtcTime)


class ServiceKeyRow(Base):
    __tablename__ = "identity_service_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)


class UserEventRow(Base):
    """What has happened to an account, for `GET /api/users/{user_id}/events`. `id` is the event's own."""

    __tablename__ = "identity_user_events"
    __table_args__ = (Index("ix_identity_user_events_user_id_id", "user_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("identity_users.id", ondelete="CASCADE"))
    event_type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
