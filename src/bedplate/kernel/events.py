"""Events: what has happened, said by one module and heard by others; their form on the wire."""

import dataclasses
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from bedplate.kernel.clock import iso

_WORD = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass(frozen=True)
class Event:
    """Base of what modules say in events.py: frozen dataclasses of JSON values, named in the past tense.

    `topic`: the stream that carries it between processes. `key_field`: events of one key are delivered in the order
    they were said. `ids`: the fields that stand at the top of the wire form, by default the key alone. `published`:
    whether it leaves the process; what a module says to itself alone does not.
    """

    known: ClassVar[dict[str, type["Event"]]] = {}
    topic: ClassVar[str]
    key_field: ClassVar[str]
    ids: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        # A dataclass with slots is made twice, in the same module.
        namesake = Event.known.get(cls.__name__, cls)
        assert namesake.__module__ == cls.__module__, f"two events are called {cls.__name__}"
        Event.known[cls.__name__] = cls

    @property
    def key(self) -> str:
        return str(getattr(self, self.key_field))

    @classmethod
    def event_type(cls) -> str:
        """`order_created` for OrderCreated."""
        return _WORD.sub("_", cls.__name__).lower()

    @classmethod
    def top_fields(cls) -> tuple[str, ...]:
        """The fields that stand at the top of the wire form."""
        return cls.ids or (cls.key_field,)

    def payload(self) -> dict[str, Any]:
        # Not asdict(), which copies deeply: nobody changes what is about to be written.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def to_wire(event_id: str, event: Event, at: datetime) -> dict[str, Any]:
    """The envelope that the Commerce document prints, with an id and a time added."""
    fields = event.payload()
    top = {name: fields.pop(name) for name in event.top_fields()}
    return {"event_id": event_id, "event_type": event.event_type(), "occurred_at": iso(at), **top, "data": fields}


def from_wire(message: dict[str, Any]) -> tuple[str, Event, datetime]:
    """Id, event and time of a message, from this version or a neighbouring one: unknown fields are left out.

    Raises:
        LookupError, TypeError, ValueError: it is not one that this version knows.
    """
    kind = _by_type()[message["event_type"]]
    names = {field.name for field in dataclasses.fields(kind)}
    given = {**message.get("data", {}), **{name: message[name] for name in kind.top_fields()}}
    event = kind(**{name: value for name, value in given.items() if name in names})
    return message["event_id"], event, datetime.fromisoformat(message["occurred_at"])


def _by_type() -> dict[str, type[Event]]:
    return {kind.event_type(): kind for kind in Event.known.values()}
