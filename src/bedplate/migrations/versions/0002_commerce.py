"""Orders, payments, idempotency keys, push messages; the outbox has a row for each consumer."""

import sqlalchemy as sa
from alembic import op

from bedplate.kernel.db import Id, Money, UtcTime

revision = "0002"
down_revision = "0001"

# Who listened to what until now.
CONSUMER = (
    "CASE WHEN type IN ('UserRegistered', 'VerificationRequested', 'PasswordResetRequested') THEN 'mail' ELSE 'ops' END"
)
TYPE = "CASE WHEN type = 'UserRegistered' THEN 'UserCreated' ELSE type END"


def upgrade() -> None:
    _outbox()
    _dead_letters()
    op.create_table(
        "kernel_idempotency",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("claimed_until", UtcTime(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_kernel_idempotency"),
    )
    op.create_index("ix_kernel_idempotency_created_at", "kernel_idempotency", ["created_at"])
    op.create_table(
        "kernel_tails",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("until", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_kernel_tails"),
    )
    op.create_table(
        "identity_user_events",
        sa.Column("id", Id(), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("event_type", sa.String(length=40), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["identity_users.id"], name="fk_identity_user_events_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_identity_user_events"),
    )
    op.create_index("ix_identity_user_events_user_id_id", "identity_user_events", ["user_id", "id"])
    op.create_table(
        "mail_push",
        sa.Column("id", Id(), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("event_id", Id(), nullable=False),
        sa.Column("title", sa.String(length=100), nullable=False),
        sa.Column("body", sa.String(length=500), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mail_push"),
        sa.UniqueConstraint("event_id", name="uq_mail_push_event_id"),
    )
    op.create_index("ix_mail_push_user_id_id", "mail_push", ["user_id", "id"])
    _orders()
    _payments()


def _outbox() -> None:
    op.drop_index("ix_kernel_outbox_key_id", "kernel_outbox")
    op.rename_table("kernel_outbox", "kernel_outbox_before")
    op.create_table(
        "kernel_outbox",
        sa.Column("id", Id(), nullable=False),
        sa.Column("consumer", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=254), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("claimed_until", UtcTime(), nullable=True),
        sa.Column("position", sa.String(length=64), nullable=True),
        # Not the name by the convention: the old table, and with it the name, goes only at the end.
        sa.PrimaryKeyConstraint("id", "consumer", name="pk_kernel_outbox_consumer"),
    )
    op.execute(
        "INSERT INTO kernel_outbox (id, consumer, type, key, payload, created_at, due_at, attempts, claimed_until) "
        f"SELECT id, {CONSUMER}, {TYPE}, key, payload, created_at, due_at, attempts, claimed_until "
        "FROM kernel_outbox_before"
    )
    op.drop_table("kernel_outbox_before")
    op.create_index("ix_kernel_outbox_consumer_key_id", "kernel_outbox", ["consumer", "key", "id"])
    op.create_index("ix_kernel_outbox_consumer_id", "kernel_outbox", ["consumer", "id"])


def _dead_letters() -> None:
    op.rename_table("kernel_dead_letters", "kernel_dead_letters_before")
    op.create_table(
        "kernel_dead_letters",
        sa.Column("id", Id(), nullable=False),
        sa.Column("consumer", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=254), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("died_at", UtcTime(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", "consumer", name="pk_kernel_dead_letters_consumer"),
    )
    op.execute(
        "INSERT INTO kernel_dead_letters (id, consumer, type, key, payload, created_at, died_at, error) "
        f"SELECT id, {CONSUMER}, {TYPE}, key, payload, created_at, died_at, error FROM kernel_dead_letters_before"
    )
    op.drop_table("kernel_dead_letters_before")
    op.create_index("ix_kernel_dead_letters_consumer_key", "kernel_dead_letters", ["consumer", "key"])


def _orders() -> None:
    op.create_table(
        "orders_orders",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("items", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("total", Money(), nullable=False),
        sa.Column("payment_id", sa.String(length=48), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("cancelled_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_orders_orders"),
    )
    op.create_index("ix_orders_orders_user_id_created_at_id", "orders_orders", ["user_id", "created_at", "id"])


def _payments() -> None:
    op.create_table(
        "payments_payments",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("order_id", sa.String(length=48), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("amount", Money(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("method", sa.String(length=20), nullable=False),
        sa.Column("card_brand", sa.String(length=20), nullable=True),
        sa.Column("card_last4", sa.String(length=4), nullable=True),
        sa.Column("provider_token", sa.String(length=200), nullable=False),
        sa.Column("provider_reference", sa.String(length=200), nullable=True),
        sa.Column("transaction_id", sa.String(length=48), nullable=True),
        sa.Column("failure_reason", sa.String(length=200), nullable=True),
        sa.Column("error_code", sa.String(length=40), nullable=True),
        sa.Column("refunded_amount", Money(), nullable=False),
        sa.Column("refund_reason", sa.String(length=500), nullable=True),
        sa.Column("started_at", UtcTime(), nullable=True),
        sa.Column("void_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.Column("failed_at", UtcTime(), nullable=True),
        sa.Column("refunded_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_payments_payments"),
        sa.UniqueConstraint("order_id", name="uq_payments_payments_order_id"),
    )
    op.create_index("ix_payments_payments_user_id_created_at_id", "payments_payments", ["user_id", "created_at", "id"])
    op.create_index("ix_payments_payments_status_created_at", "payments_payments", ["status", "created_at"])
    op.create_table(
        "payments_slots",
        sa.Column("order_id", sa.String(length=48), nullable=False),
        sa.Column("payment_id", sa.String(length=48), nullable=True),
        sa.PrimaryKeyConstraint("order_id", name="pk_payments_slots"),
    )
    op.create_table(
        "payments_refunds",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("payment_id", sa.String(length=48), nullable=False),
        sa.Column("amount", Money(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("provider_reference", sa.String(length=200), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("finished_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_payments_refunds"),
    )
    op.create_index("ix_payments_refunds_payment_id", "payments_refunds", ["payment_id"])
    op.create_index("ix_payments_refunds_status_created_at", "payments_refunds", ["status", "created_at"])
    op.create_table(
        "payments_sandbox_entries",
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("reference", sa.String(length=80), nullable=False),
        sa.Column("amount", Money(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("outcome", sa.String(length=40), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_payments_sandbox_entries"),
    )
    op.create_index("ix_payments_sandbox_entries_reference", "payments_sandbox_entries", ["reference"])
