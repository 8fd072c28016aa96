"""Ops' tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.db import Base, Id, UtcTime


class MaintenanceRow(Base):
    """One row, or none as long as nobody has touched the switch."""

    __tablename__ = "ops_maintenance"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    enabled: Mapped[bool]
    message: Mapped[str] = mapped_column(String(500))
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class AuditRow(Base):
    __tablename__ = "ops_audit"
    __table_args__ = (Index("ix_ops_audit_at_id", "at", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcTime)
    actor_id: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
