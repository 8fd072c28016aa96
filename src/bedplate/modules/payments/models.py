"""Payments' tables. Nothing here can hold a card number or a cvv."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.db import Base, Id, Money, UtcTime


class PaymentRow(Base):
    """`provider_token` stands for the card at the provider; `provider_reference` for the charge. `started_at`: the
    provider may have been asked; `void_at`: the order was cancelled meanwhile."""

    __tablename__ = "payments_payments"
    __table_args__ = (
        Index("ix_payments_payments_user_id_created_at_id", "user_id", "created_at", "id"),
        Index("ix_payments_payments_status_created_at", "status", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    order_id: Mapped[str] = mapped_column(String(48), unique=True)
    user_id: Mapped[str] = mapped_column(Id)
    amount: Mapped[Decimal] = mapped_column(Money)
    currency: Mapped[str] = mapped_column(String(3))
    status: Mapped[str] = mapped_column(String(20))
    method: Mapped[str] = mapped_column(String(20))
    card_brand: Mapped[str | None] = mapped_column(String(20))
    card_last4: Mapped[str | None] = mapped_column(String(4))
    provider_token: Mapped[str] = mapped_column(String(200))
    provider_reference: Mapped[str | None] = mapped_column(String(200))
    transaction_id: Mapped[str | None] = mapped_column(String(48))
    failure_reason: Mapped[str | None] = mapped_column(String(200))
    error_code: Mapped[str | None] = mapped_column(String(40))
    refunded_amount: Mapped[Decimal] = mapped_column(Money)
    refund_reason: Mapped[str | None] = mapped_column(String(500))
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    void_at: Mapped[datetime | None] = mapped_column(UtcTime)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcTime)
    failed_at: Mapped[datetime | None] = mapped_column(UtcTime)
    refunded_at: Mapped[datetime | None] = mapped_column(UtcTime)


class SlotRow(Base):
    """Who came first for an order: its one payment, or its cancellation (no payment). Both insert this row."""

    __tablename__ = "payments_slots"

    order_id: Mapped[str] = mapped_column(String(48), primary_key=True)
    payment_id: Mapped[str | None] = mapped_column(String(48))


class RefundRow(Base):
    """`status`: pending, succeeded, failed."""

    __tablename__ = "payments_refunds"
    __table_args__ = (Index("ix_payments_refunds_status_created_at", "status", "created_at"),)

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    payment_id: Mapped[str] = mapped_column(String(48), index=True)
    amount: Mapped[Decimal] = mapped_column(Money)
    reason: Mapped[str] = mapped_column(String(500))
    status: Mapped[str] = mapped_column(String(12))
    provider_reference: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)


class SandboxEntryRow(Base):
    """The ledger of the built-in test provider, which stands for somebody else's system: nobody else reads it.

    `key`: the idempotency key that it was called with. `kind`: charge or refund. `outcome`: succeeded, or why not.
    """

    __tablename__ = "payments_sandbox_entries"

    key: Mapped[str] = mapped_column(String(80), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    reference: Mapped[str] = mapped_column(String(80), index=True)
    amount: Mapped[Decimal] = mapped_column(Money)
    currency: Mapped[str] = mapped_column(String(3))
    outcome: Mapped[str] = mapped_column(String(40))
    attempts: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcTime)
