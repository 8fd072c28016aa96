"""The tables of identity, mail, ops and of the kernel's outbox."""

import sqlalchemy as sa
from alembic import op

from bedplate.kernel.db import Id, UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "identity_service_keys",
        sa.Column("id", Id(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("revoked_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_identity_service_keys"),
        sa.UniqueConstraint("key_hash", name="uq_identity_service_keys_key_hash"),
    )
    op.create_table(
        "identity_users",
        sa.Column("id", Id(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("email_key", sa.String(length=512), nullable=False),
        sa.Column("username", sa.String(length=50), nullable=True),
        sa.Column("username_key", sa.String(length=200), nullable=True),
        sa.Column("password_hash", sa.String(length=200), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("first_name", sa.String(length=100), nullable=True),
        sa.Column("last_name", sa.String(length=100), nullable=True),
        sa.Column("phone", sa.String(length=32), nullable=True),
        sa.Column("profile", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("email_verified", sa.Boolean(), nullable=False),
        sa.Column("disabled_at", UtcTime(), nullable=True),
        sa.Column("last_login_at", UtcTime(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identity_users"),
        sa.UniqueConstraint("email_key", name="uq_identity_users_email_key"),
        sa.UniqueConstraint("username_key", name="uq_identity_users_username_key"),
    )
    op.create_index("ix_identity_users_created_at_id", "identity_users", ["created_at", "id"])

    op.create_table(
        "kernel_dead_letters",
        sa.Column("id", Id(), nullable=False),
        sa.Column("type", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=254), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("died_at", UtcTime(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kernel_dead_letters"),
    )
    op.create_table(
        "kernel_inbox",
        sa.Column("event_id", Id(), nullable=False),
        sa.Column("consumer", sa.String(length=100), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "consumer", name="pk_kernel_inbox"),
    )
    op.create_index("ix_kernel_inbox_at", "kernel_inbox", ["at"])

    op.create_table(
        "kernel_outbox",
        sa.Column("id", Id(), nullable=False),
        sa.Column("type", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=254), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("claimed_until", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_kernel_outbox"),
    )
    op.create_index("ix_kernel_outbox_key_id", "kernel_outbox", ["key", "id"])

    op.create_table(
        "mail_messages",
        sa.Column("id", Id(), nullable=False),
        sa.Column("to", sa.String(length=254), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("html", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mail_messages"),
    )
    op.create_index("ix_mail_messages_created_at_id", "mail_messages", ["created_at", "id"])
    op.create_index("ix_mail_messages_to", "mail_messages", ["to"])

    op.create_table(
        "ops_audit",
        sa.Column("id", Id(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("actor_id", sa.String(length=64), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ops_audit"),
    )
    op.create_index("ix_ops_audit_at_id", "ops_audit", ["at", "id"])

    op.create_table(
        "ops_maintenance",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("message", sa.String(length=500), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ops_maintenance"),
    )
    op.create_table(
        "identity_email_tokens",
        sa.Column("id", Id(), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("cause", sa.String(length=64), nullable=False),
        sa.Column("requested_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("used_at", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["identity_users.id"], name="fk_identity_email_tokens_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_identity_email_tokens"),
        sa.UniqueConstraint("token_hash", name="uq_identity_email_tokens_token_hash"),
    )
    op.create_index("ix_identity_email_tokens_expires_at", "identity_email_tokens", ["expires_at"])
    op.create_index("ix_identity_email_tokens_user_id", "identity_email_tokens", ["user_id"])

    op.create_table(
        "identity_sessions",
        sa.Column("id", Id(), nullable=False),
        sa.Column("user_id", Id(), nullable=False),
        sa.Column("audience", sa.String(length=32), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("revoked_at", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["identity_users.id"], name="fk_identity_sessions_user_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_identity_sessions"),
    )
    op.create_index("ix_identity_sessions_expires_at", "identity_sessions", ["expires_at"])
    op.create_index("ix_identity_sessions_user_id", "identity_sessions", ["user_id"])

    op.create_table(
        "identity_refresh_tokens",
        sa.Column("id", Id(), nullable=False),
        sa.Column("session_id", Id(), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("issued_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("rotated_at", UtcTime(), nullable=True),
        sa.Column("child_id", Id(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["identity_sessions.id"], name="fk_identity_refresh_tokens_session_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_identity_refresh_tokens"),
    )
    op.create_index("ix_identity_refresh_tokens_expires_at", "identity_refresh_tokens", ["expires_at"])
    op.create_index("ix_identity_refresh_tokens_session_id", "identity_refresh_tokens", ["session_id"])
