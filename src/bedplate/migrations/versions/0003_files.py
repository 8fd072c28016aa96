"""Files, what each user takes of the storage, and the full-text index of what can be read in files."""

import sqlalchemy as sa
from alembic import op

from bedplate.kernel.db import Id, UtcTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "files_files",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("owner_id", Id(), nullable=False),
        sa.Column("filename", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mime_type", sa.String(length=100), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("blob", sa.String(length=200), nullable=False),
        sa.Column("text_status", sa.String(length=12), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_files_files"),
    )
    for columns in (
        ("owner_id", "status", "created_at", "id"),
        ("status", "created_at"),
        ("text_status", "created_at"),
    ):
        op.create_index(f"ix_files_files_{'_'.join(columns)}", "files_files", list(columns))
    op.create_table(
        "files_storage",
        sa.Column("owner_id", Id(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("uploads", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id", name="pk_files_storage"),
    )
    op.create_table(
        "files_passages",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("file_id", sa.String(length=48), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_files_passages"),
        sa.UniqueConstraint("file_id", "position", name="uq_files_passages_file_id_position"),
    )
    _words()


def _words() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE files_words USING fts5(file, text, tokenize = 'porter unicode61 remove_diacritics 2')"
        )
        op.execute(
            "CREATE TRIGGER files_passages_deleted AFTER DELETE ON files_passages "
            "BEGIN DELETE FROM files_words WHERE rowid = old.id; END"
        )
        return
    op.execute(
        """
        CREATE TABLE files_words (
            passage_id BIGINT CONSTRAINT pk_files_words PRIMARY KEY
                CONSTRAINT fk_files_words_passage_id REFERENCES files_passages (id) ON DELETE CASCADE,
            words TSVECTOR NOT NULL
        )
        """
    )
