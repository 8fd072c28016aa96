"""Identifiers: UUIDv7 inside; a document that prints a prefix gets one at its edge."""

from typeid import TypeID
from uuid_utils import UUID, uuid7


def new_id() -> str:
    """A UUIDv7 as text: unique without coordination, ordered by creation."""
    return str(uuid7())


def is_id(text: str) -> bool:
    """Whether text is a UUID in its canonical form."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def prefixed(prefix: str, identifier: str) -> str:
    """`usr_01h455vb4pex5vsknk084sn02q` for a UUID: the TypeID encoding (typeid specification 0.3)."""
    return str(TypeID.from_uuid(UUID(identifier), prefix))


def unprefixed(prefix: str, public: str) -> str | None:
    """The UUID behind a prefixed identifier, or None if it is not one of that prefix."""
    try:
        typeid = TypeID.from_string(public)
    except Exception:  # the library raises several unrelated classes for malformed text
        return None
    return str(typeid.uuid) if typeid.prefix == prefix else None
