"""The modules that run in this process: built in the order in which they need each other."""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from bedplate.compose.chosen import orders_of, payments_of, provider_of, registry_of, transport_of
from bedplate.compose.databases import database_of
from bedplate.kernel.cache import Cache
from bedplate.kernel.db import Database
from bedplate.kernel.documents import Documents
from bedplate.kernel.idempotency import Idempotency
from bedplate.kernel.outbox import Listener
from bedplate.kernel.security import Passwords
from bedplate.modules.chat.answers import Answers
from bedplate.modules.chat.chat import ChatService
from bedplate.modules.chat.completions import CompletionsService
from bedplate.modules.chat.listening import ListeningService
from bedplate.modules.chat.offline import Offline
from bedplate.modules.chat.public import Answered, Chat, Completions, Listening
from bedplate.modules.chat.store import ChatStore
from bedplate.modules.checkout.checkout import CheckoutService, Settlement
from bedplate.modules.checkout.public import Checkout
from bedplate.modules.files.files import FilesService
from bedplate.modules.files.public import Files, Passages
from bedplate.modules.files.reading import Reading
from bedplate.modules.files.store import SqlFiles
from bedplate.modules.identity.confirmations import ConfirmationsService
from bedplate.modules.identity.keys import ServiceKeysService
from bedplate.modules.identity.principals import CachedPrincipals, PrincipalsService
from bedplate.modules.identity.public import Confirmations, Principals, ServiceKeys, Sessions, Users
from bedplate.modules.identity.sessions import SessionsService
from bedplate.modules.identity.users import UsersService
from bedplate.modules.mail.letters import Letters
from bedplate.modules.mail.mailbox import MailboxService
from bedplate.modules.mail.notifications import Notifications
from bedplate.modules.mail.public import Mailbox
from bedplate.modules.ops.operations import OperationsService
from bedplate.modules.ops.public import Operations
from bedplate.modules.orders.orders import OrdersService
from bedplate.modules.orders.public import Orders
from bedplate.modules.payments.payments import PaymentsService
from bedplate.modules.payments.processing import Processing
from bedplate.modules.payments.public import Payments

if TYPE_CHECKING:
    from bedplate.compose.runtime import Runtime
    from bedplate.kernel.redis import Shared

F = TypeVar("F")


class Local:
    """Builds the modules that run here, in the order in which they need each other."""

    def __init__(self, runtime: "Runtime", shared: "Shared | None", stack: AsyncExitStack) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._clock = runtime.clock
        self._shared = shared
        self._stack = stack

    def build(self) -> None:
        builders = {
            "identity": self._identity,
            "ops": self._ops,
            "orders": self._orders,
            "payments": self._payments,
            "mail": self._mail,
            "files": self._files,
            "chat": self._chat,
        }
        for unit, build in builders.items():
            if unit in self._runtime.shape.here:
                url = database_of(unit, self._settings)
                build(self._runtime.databases[url], self._runtime.caches[url])
        if "orders" in self._runtime.shape.here:
            # Last of all: it stands on both.
            self._offer(Checkout, CheckoutService(self._get(Orders), self._get(Payments)))

    def _identity(self, db: Database, cache: Cache) -> None:
        runtime, clock, strict = self._runtime, self._clock, self._settings.strict_passwords
        settings = self._settings
        passwords = Passwords(settings.hash_workers, settings.hash_memory_kib, settings.hash_passes)
        self._stack.callback(passwords.close)
        sessions = SessionsService(db, passwords, runtime.tokens, clock, strict_passwords=strict)
        self._offer(Users, UsersService(db, cache, passwords, clock, strict_passwords=strict))
        self._offer(Sessions, sessions)
        self._offer(Principals, CachedPrincipals(PrincipalsService(db, runtime.tokens, clock), cache, clock))
        self._offer(Confirmations, ConfirmationsService(db, passwords, clock, strict_passwords=strict))
        self._offer(ServiceKeys, ServiceKeysService(db, cache, clock))
        runtime.sweeps.append(sessions.forget_expired)

    def _ops(self, db: Database, cache: Cache) -> None:
        ping = self._shared.ping if self._shared is not None else _nothing
        operations = OperationsService(db, cache, self._clock, ping)
        self._offer(Operations, operations)
        self._listen(operations.listeners())

    def _orders(self, db: Database, cache: Cache) -> None:
        kept = orders_of(self._settings, db, self._clock)
        self._keep("orders", kept.documents)
        idempotency = Idempotency(kept.answers, self._clock)
        orders = OrdersService(kept.store, idempotency, self._get(Users), self._clock)
        self._offer(Orders, orders)
        self._listen(Settlement(orders).listeners())
        self._runtime.sweeps.append(idempotency.forget_old)

    def _payments(self, db: Database, cache: Cache) -> None:
        kept = payments_of(self._settings, db, self._clock)
        self._keep("payments", kept.documents)
        idempotency, store = Idempotency(kept.answers, self._clock), kept.store
        self._runtime.provider = provider = provider_of(self._settings, db, self._clock)
        self._stack.push_async_callback(provider.close)
        currency = self._settings.currency
        self._offer(Payments, PaymentsService(store, idempotency, self._get(Orders), provider, self._clock, currency))
        processing = Processing(store, provider, self._clock)
        self._listen(processing.listeners())
        self._runtime.sweeps.append(idempotency.forget_old)
        self._runtime.mends.append(processing.sweep)

    def _mail(self, db: Database, cache: Cache) -> None:
        runtime = self._runtime
        runtime.transport = transport_of(self._settings)
        frontend = self._settings.frontend_url
        letters = Letters(db, self._get(Confirmations), runtime.transport, self._clock, frontend, self._notified)
        notifications = Notifications(
            db,
            self._get(Users),
            self._get(Orders),
            runtime.transport,
            self._clock,
            self._settings.currency,
            self._settings.unconfirmed_mails,
            self._notified,
        )
        self._offer(Mailbox, MailboxService(db))
        self._listen([*letters.listeners(), *notifications.listeners()])

    def _files(self, db: Database, cache: Cache) -> None:
        blobs, settings = self._runtime.blobs, self._settings
        files = FilesService(SqlFiles(db), blobs, self._clock, settings.max_file_bytes, settings.storage_quota_bytes)
        reading = Reading(db, blobs, self._clock)
        self._stack.push_async_callback(reading.close)
        self._offer(Files, files)
        self._offer(Passages, reading)
        self._listen([*files.listeners(), *reading.listeners()])
        self._runtime.sweeps.append(files.sweep)
        self._runtime.mends.append(reading.catch_up)

    def _chat(self, db: Database, cache: Cache) -> None:
        runtime, clock = self._runtime, self._clock
        registry = registry_of(self._settings)
        self._stack.push_async_callback(registry.close)
        store = ChatStore(db)
        answers = Answers(store, registry, runtime.feeds, clock, self._settings.chat_daily_tokens, self._answered)
        # What is under way when the server stops may take as long as open connections may, and no longer.
        self._stack.push_async_callback(lambda: answers.stop(runtime.drain_seconds_left()))
        chat = ChatService(store, registry, answers, self._get(Passages), clock)
        self._offer(Chat, chat)
        self._listen(chat.listeners())
        self._offer(Completions, CompletionsService(registry, answers, clock))
        self._offer(Listening, ListeningService(runtime.feeds))
        runtime.mends.append(answers.sweep)
        runtime.models |= {each.name: each.ping for each in registry.providers if each.name != Offline.name}

    def _keep(self, unit: str, documents: Documents | None) -> None:
        if documents is not None:
            self._stack.push_async_callback(documents.close)
            self._runtime.documents[unit] = documents
            self._runtime.probes[f"{unit}_database"] = documents.ping

    def _get(self, facade: type[F]) -> F:
        return self._runtime.get(facade)

    def _offer(self, facade: type[Any], implementation: object) -> None:
        self._runtime.facades[facade] = implementation

    def _listen(self, listeners: Iterable[Listener]) -> None:
        self._runtime.listeners += listeners

    def _notified(self, kind: str, channel: str, seconds: float) -> None:
        for tell in self._runtime.notified:
            tell(kind, channel, seconds)

    def _answered(self, answer: Answered) -> None:
        for tell in self._runtime.answered:
            tell(answer)


async def _nothing() -> None:
    """The cache of one process is always there."""
