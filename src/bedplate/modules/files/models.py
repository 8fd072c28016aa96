"""Files' tables. Beside them both engines have `files_words`, the full-text index, which `words.py` speaks to."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from bedplate.kernel.db import Base, Id, UtcTime


class FileRow(Base):
    """`status`: uploading, abandoned (as good as deleted, but somebody may still be writing) or stored. `size`: until
    it is stored, what is reserved for it. `text_status`: unread, read, or none (nothing to read, or not readable)."""

    __tablename__ = "files_files"
    __table_args__ = (
        Index("ix_files_files_owner_id_status_created_at_id", "owner_id", "status", "created_at", "id"),
        Index("ix_files_files_status_created_at", "status", "created_at"),
        Index("ix_files_files_text_status_created_at", "text_status", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id)
    filename: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(12))
    size: Mapped[int] = mapped_column(BigInteger)
    mime_type: Mapped[str] = mapped_column(String(100))
    sha256: Mapped[str] = mapped_column(String(64))
    blob: Mapped[str] = mapped_column(String(200))
    text_status: Mapped[str] = mapped_column(String(12))
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class StorageRow(Base):
    """What one user takes: `used` bytes, those included that are reserved for `uploads` under way."""

    __tablename__ = "files_storage"

    owner_id: Mapped[str] = mapped_column(Id, primary_key=True)
    used: Mapped[int] = mapped_column(BigInteger)
    uploads: Mapped[int] = mapped_column(Integer)


class PassageRow(Base):
    """Goes soon after its file, a few at a time: a long text at once would hold up all others."""

    __tablename__ = "files_passages"
    __table_args__ = (UniqueConstraint("file_id", "position", name="uq_files_passages_file_id_position"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    file_id: Mapped[str] = mapped_column(String(48))
    position: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
