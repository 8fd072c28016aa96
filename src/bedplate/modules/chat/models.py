"""Chat's tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.db import Base, Id, UtcTime

_PENDING = text("status = 'pending'")


class ChatMessageRow(Base):
    """A question with its answer. `status`: pending, completed, failed. `claimed_until`: a pending one is answered by
    then, or its process has died. `model`: as it was asked for. `problem`: the class of what went wrong."""

    __tablename__ = "chat_messages"
    __table_args__ = (
        Index("ix_chat_messages_user_id_status_created_at_id", "user_id", "status", "created_at", "id"),
        Index("ix_chat_messages_conversation_id_created_at", "conversation_id", "created_at"),
        Index("ix_chat_messages_pending", "claimed_until", sqlite_where=_PENDING, postgresql_where=_PENDING),
    )

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    user_id: Mapped[str] = mapped_column(Id)
    conversation_id: Mapped[str] = mapped_column(String(48))
    message: Mapped[str] = mapped_column(Text)
    response: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str] = mapped_column(String(100))
    provider: Mapped[str] = mapped_column(String(40))
    temperature: Mapped[float] = mapped_column(Float)
    max_tokens: Mapped[int]
    status: Mapped[str] = mapped_column(String(12))
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    sources: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    finish_reason: Mapped[str | None] = mapped_column(String(20))
    problem: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    claimed_until: Mapped[datetime] = mapped_column(UtcTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcTime)


class UsageRow(Base):
    """What one user, or one program, has used of one model on one day (UTC, YYYY-MM-DD)."""

    __tablename__ = "chat_usage"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    model: Mapped[str] = mapped_column(String(100), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)


class BudgetRow(Base):
    """Tokens that one user, or one program, has used or reserved on one day."""

    __tablename__ = "chat_budgets"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
