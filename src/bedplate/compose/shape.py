"""The shape of a deployment: which modules run in this process, which in others, and who hears whom."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.kernel.events import Event
from bedplate.kernel.settings import OperatorError, Settings
from bedplate.modules.chat.public import Chat, Completions, Listening
from bedplate.modules.checkout.public import Checkout
from bedplate.modules.files.events import FileDeleted, FileStored
from bedplate.modules.files.public import Files, Passages
from bedplate.modules.identity.events import (
    AdminAppointed,
    PasswordResetRequested,
    UserCreated,
    UserDeleted,
    UserDisabled,
    UserEnabled,
    UserVerified,
    VerificationRequested,
)
from bedplate.modules.identity.public import Confirmations, Principals, ServiceKeys, Sessions, Users
from bedplate.modules.mail.public import Mailbox
from bedplate.modules.ops.public import Operations
from bedplate.modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from bedplate.modules.orders.public import Orders
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed, PaymentRequested, RefundRequested
from bedplate.modules.payments.public import Payments

# What moves together, and the facades by which the others call it. Checkout is at home with the orders.
FACADES: Mapping[str, tuple[type[Any], ...]] = {
    "identity": (Users, Sessions, Principals, Confirmations, ServiceKeys),
    "mail": (Mailbox,),
    "ops": (Operations,),
    "orders": (Orders, Checkout),
    "payments": (Payments,),
    "files": (Files, Passages),
    "chat": (Chat, Completions, Listening),
}
TOPICS: Mapping[str, str] = {
    "identity": "user_events",
    "orders": "order_events",
    "payments": "payment_events",
    "files": "file_events",
}
# What each listens to. A process has to know it of those that run elsewhere too; a test holds it to the listeners.
LISTENS: Mapping[str, tuple[type[Event], ...]] = {
    "mail": (
        UserCreated,
        VerificationRequested,
        PasswordResetRequested,
        UserVerified,
        OrderCreated,
        OrderConfirmed,
        OrderCancelled,
        PaymentCompleted,
        PaymentFailed,
    ),
    "ops": (UserDisabled, UserEnabled, UserDeleted, AdminAppointed),
    "orders": (PaymentCompleted, PaymentFailed),
    "payments": (PaymentRequested, RefundRequested, OrderCancelled),
    "files": (FileStored, FileDeleted, UserDeleted),
    "chat": (UserDeleted,),
}
# The names that the Commerce document gives to consumer groups, and to who is called through a circuit breaker.
GROUPS: Mapping[str, str] = {
    "identity": "user-service",
    "orders": "order-service",
    "payments": "payment-service",
    "mail": "notification-service",
    "ops": "operations",
    "files": "files",
    "chat": "chat",
}
CIRCUITS: Mapping[str, str] = {unit: group.replace("-", "_") for unit, group in GROUPS.items()}

USER_SERVICE, ORDER_SERVICE, PAYMENT_SERVICE = "user-service", "order-service", "payment-service"
NOTIFICATION_WORKER = "notification-worker"
# One of Commerce's services alone, with a database of its own: what runs there, and what it calls.
HOSTS: Mapping[str, tuple[str, ...]] = {
    USER_SERVICE: ("identity", "ops", "files", "chat"),
    ORDER_SERVICE: ("orders",),
    PAYMENT_SERVICE: ("payments",),
    NOTIFICATION_WORKER: ("mail",),
}
CALLS: Mapping[str, tuple[str, ...]] = {
    USER_SERVICE: ("identity",),
    ORDER_SERVICE: ("identity", "orders", "payments"),
    PAYMENT_SERVICE: ("identity", "orders", "payments"),
    NOTIFICATION_WORKER: ("identity", "orders"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """`here`: what runs in this process. `elsewhere`: the addresses of what is called in others."""

    here: frozenset[str]
    elsewhere: Mapping[str, str]

    def groups(self, topic: str) -> list[str]:
        """Who else has to have heard what is said here, by topic."""
        return [GROUPS[unit] for unit in LISTENS if unit not in self.here and topic in topics_of(LISTENS[unit])]

    def from_afar(self, unit: str) -> dict[str, list[type[Event]]]:
        """What a unit that runs here wants to hear of those that run elsewhere, by topic."""
        owners = {topic: owner for owner, topic in TOPICS.items()}
        wanted: dict[str, list[type[Event]]] = {}
        for event in LISTENS.get(unit, ()):
            if owners[event.topic] not in self.here:
                wanted.setdefault(event.topic, []).append(event)
        return wanted


def shape_of(name: str | None, settings: Settings) -> Shape:
    """What a process that serves `name` (None: everything) is made of.

    Raises:
        OperatorError: a module is unknown, or the parts would not hear each other.
    """
    places = settings.elsewhere
    unknown = sorted(places.keys() - FACADES.keys())
    if unknown:
        raise OperatorError(f"BEDPLATE_ELSEWHERE__{unknown[0].upper()}: there is no such module")
    if settings.broker_url is not None:
        return _with_broker(name, places)
    if not places:
        return Shape(frozenset(FACADES), {})
    # Without a broker modules hear each other through their one database only.
    if places.keys() != FACADES.keys() or len(set(places.values())) != 1:
        raise OperatorError(f"set all of {_variables(FACADES)} to the same address, or none; or set BROKER_URL")
    return Shape(frozenset(), places)


def _with_broker(name: str | None, places: Mapping[str, str]) -> Shape:
    own = HOSTS.get(name or "")
    here = frozenset(own or FACADES) - places.keys()
    if own is not None:
        both = sorted(set(own) & places.keys())
        if both:
            raise OperatorError(f"{name} is where {both[0]} runs; unset {_variables(both)}")
        missing = [unit for unit in CALLS[name or ""] if unit not in here and unit not in places]
        if missing:
            raise OperatorError(f"with BROKER_URL, {name} needs {_variables(missing)}: where to call them")
    return Shape(here, places)


def topics_of(events: Iterable[type[Event]]) -> list[str]:
    """The streams that carry these, without those that a module says to itself."""
    return list(dict.fromkeys(event.topic for event in events if event.published))


def _variables(units: Iterable[str]) -> str:
    return ", ".join(f"BEDPLATE_ELSEWHERE__{unit.upper()}" for unit in units)
