"""What files say to themselves."""

from dataclasses import dataclass

from bedplate.kernel.events import Event


@dataclass(frozen=True, slots=True)
class FileStored(Event):
    """All of it is on the disk."""

    topic = "file_events"
    key_field = "file_id"
    published = False

    file_id: str


@dataclass(frozen=True, slots=True)
class FileDeleted(Event):
    """Nobody can see it any more. `blob`: where its bytes may still be."""

    topic = "file_events"
    key_field = "file_id"
    published = False

    file_id: str
    blob: str
