"""Mail's tables."""

from datetime import datetime

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.db import Base, Id, UtcTime


class MailRow(Base):
    """A message. Where it leaves by SMTP, `text` and `html` are empty: they hold a token that is nobody else's."""

    __tablename__ = "mail_messages"
    __table_args__ = (Index("ix_mail_messages_created_at_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    to: Mapped[str] = mapped_column(String(254), index=True)
    subject: Mapped[str] = mapped_column(String(300))
    text: Mapped[str] = mapped_column(Text)
    html: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class PushRow(Base):
    """A push message, kept for whoever shows it: the newest of each user. `event_id`: what it tells of."""

    __tablename__ = "mail_push"
    __table_args__ = (Index("ix_mail_push_user_id_id", "user_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    user_id: Mapped[str] = mapped_column(Id)
    event_id: Mapped[str] = mapped_column(Id, unique=True)
    title: Mapped[str] = mapped_column(String(100))
    body: Mapped[str] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
