"""What the settings choose: the engine of a database, where a module keeps its own, Redis, the broker, files, mail,
payments, and who answers chat.

Implementations that need a large library are imported when they are chosen: a process on SQLite starts in half the
time without them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bedplate.kernel.blobs import Blobs, FolderBlobs
from bedplate.kernel.broker import Broker
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.documents import Documents
from bedplate.kernel.idempotency import Answers, SqlAnswers
from bedplate.kernel.settings import ChatProvider, OperatorError, Settings
from bedplate.kernel.sqlite import SqliteDatabase, path_of
from bedplate.modules.chat.offline import Offline
from bedplate.modules.chat.provider import Patience
from bedplate.modules.chat.registry import Registry
from bedplate.modules.mail.transport import MailboxOnly, Transport
from bedplate.modules.orders.store import OrderStore, SqlOrders
from bedplate.modules.payments.provider import Provider
from bedplate.modules.payments.sandbox import Sandbox
from bedplate.modules.payments.store import PaymentStore, SqlPayments
from bedplate.modules.payments.unconfigured import NoProvider

if TYPE_CHECKING:
    from bedplate.kernel.redis import Shared

OPENAI = "openai"
OLLAMA = "ollama"
S = TypeVar("S")

# What is no SQL database, and who can keep what is his there.
DOCUMENTS: Mapping[str, str] = {
    "mongodb://": "orders",
    "mongodb+srv://": "orders",
    "redis://": "payments",
    "rediss://": "payments",
}


@dataclass(frozen=True, slots=True)
class Kept(Generic[S]):
    """Where a module keeps what is its own. `documents`: if that is no SQL database."""

    store: S
    answers: Answers
    documents: Documents | None = None


def own_url(unit: str, settings: Settings) -> str | None:
    """The URL that a module has been given for itself."""
    own = {"orders": settings.orders_database_url, "payments": settings.payments_database_url}.get(unit)
    return None if own is None else own.get_secret_value()


def document_url(unit: str, settings: Settings) -> str | None:
    """The URL of the store of documents in which a module keeps what is its own, if it does.

    Raises:
        OperatorError: this module cannot.
    """
    url = own_url(unit, settings) or ""
    scheme = next((scheme for scheme in DOCUMENTS if url.startswith(scheme)), None)
    if scheme is not None and DOCUMENTS[scheme] != unit:
        engine = {"orders": "MongoDB", "payments": "Redis"}[unit]
        raise OperatorError(f"{unit.upper()}_DATABASE_URL: {unit} are kept in SQLite, PostgreSQL or {engine}")
    return None if scheme is None else url


def database_at(url: str) -> Database:
    """Raises OperatorError if it is not a URL of ours."""
    if url.startswith("sqlite"):
        return SqliteDatabase(path_of(url))
    from bedplate.kernel.postgres import PostgresDatabase  # noqa: PLC0415

    return PostgresDatabase(url)


def redis_of(settings: Settings) -> "Shared | None":
    """What processes share, if there is a REDIS_URL."""
    if settings.redis_url is None:
        return None
    from bedplate.kernel.redis import Shared  # noqa: PLC0415

    return Shared(settings.redis_url.get_secret_value())


def broker_at(url: str) -> Broker:
    """The broker at BROKER_URL; nothing is sent before the first use. Raises OperatorError if it is not a URL of one
    that is known."""
    if url.partition(":")[0] not in ("redis", "rediss", "unix"):
        raise OperatorError("BROKER_URL is not a URL like redis://host:6379/1")
    from bedplate.kernel.streams import Streams  # noqa: PLC0415

    return Streams(url)


def blobs_of(settings: Settings, clock: Clock) -> Blobs:
    """Where the bytes of files are kept. Raises OperatorError if STORAGE_URL is not a URL of ours."""
    if settings.storage_url is None:
        return FolderBlobs(settings.data / "files", clock)
    from bedplate.kernel.s3 import S3Blobs  # noqa: PLC0415

    keys = (settings.storage_access_key, settings.storage_secret_key, settings.storage_session_token)
    return S3Blobs(settings.storage_url, *(key.get_secret_value() if key is not None else None for key in keys))


def transport_of(settings: Settings) -> Transport:
    """How mail leaves."""
    if settings.smtp_url is None:
        return MailboxOnly()
    from bedplate.modules.mail.smtp import Smtp  # noqa: PLC0415

    return Smtp(settings.smtp_url.get_secret_value(), settings.mail_from)


def provider_of(settings: Settings, db: Database, clock: Clock) -> Provider:
    """Who charges cards. `db`: where the test provider keeps its ledger."""
    if settings.stripe_secret_key is None:
        if settings.is_production and settings.payment_provider is None:
            return NoProvider()
        return Sandbox(db, clock)
    from bedplate.modules.payments.stripe import Stripe  # noqa: PLC0415

    return Stripe(settings.stripe_secret_key.get_secret_value(), settings.stripe_api_base)


def orders_of(settings: Settings, db: Database, clock: Clock) -> Kept[OrderStore[Any]]:
    """Where orders are kept. `db`: where their events are delivered from, and they too, if nothing else is chosen."""
    url = document_url("orders", settings)
    if url is None:
        return Kept(SqlOrders(db), SqlAnswers(db))
    try:
        from bedplate.modules.orders import mongo  # noqa: PLC0415
    except ModuleNotFoundError:
        raise OperatorError("ORDERS_DATABASE_URL: MongoDB needs a driver: pip install 'bedplate[mongodb]'") from None
    documents = mongo.documents(url, db, clock)
    return Kept(mongo.MongoOrders(documents), documents, documents)


def payments_of(settings: Settings, db: Database, clock: Clock) -> Kept[PaymentStore[Any]]:
    """Where payments are kept. `db`: as for orders."""
    url = document_url("payments", settings)
    if url is None:
        return Kept(SqlPayments(db), SqlAnswers(db))
    from bedplate.modules.payments import redis  # noqa: PLC0415

    documents = redis.documents(url, db, clock)
    return Kept(redis.RedisPayments(documents), documents, documents)


KEPT: Mapping[str, Callable[[Settings, Database, Clock], Kept[Any]]] = {"orders": orders_of, "payments": payments_of}


def chat_providers_of(settings: Settings) -> list[ChatProvider]:
    """Servers with models; the first one that offers a model answers for it.

    Raises:
        OperatorError: two have one name.
    """
    providers = list(settings.chat_providers)
    own_server = settings.openai_base_url != type(settings).model_fields["openai_base_url"].default
    if settings.openai_api_key is not None or own_server:
        chosen = settings.openai_model
        # A server of one's own has none of OpenAI's models.
        models = {"gpt-4": chosen or "gpt-4", "gpt-3.5-turbo": (own_server and chosen) or "gpt-3.5-turbo"}
        models |= {chosen: chosen} if chosen else {}
        providers.append(
            ChatProvider(name=OPENAI, base_url=settings.openai_base_url, api_key=settings.openai_api_key, models=models)
        )
    if settings.ollama_base_url is not None:
        chosen = settings.ollama_model
        models = {"llama2": chosen or "llama2", "codellama": "codellama", "mistral": "mistral"}
        models |= {chosen: chosen} if chosen else {}
        base_url = settings.ollama_base_url.rstrip("/")
        base_url += "" if base_url.endswith("/v1") else "/v1"
        providers.append(ChatProvider(name=OLLAMA, base_url=base_url, models=models))
    names = [each.name for each in providers]
    if len({*names, Offline.name}) <= len(names):
        raise OperatorError("BEDPLATE_CHAT_PROVIDERS: each needs a name of its own, other than openai, ollama, offline")
    return providers


def registry_of(settings: Settings) -> Registry:
    """Who answers for which model."""
    chosen = chat_providers_of(settings)
    if not chosen:
        return Registry([], Offline())
    from bedplate.modules.chat.openai_compatible import OpenAiCompatible  # noqa: PLC0415

    offered = []
    for each in chosen:
        # Ollama loads a model when it is first asked for it.
        patience = Patience(first=60.0) if each.name == OLLAMA else Patience()
        key = each.api_key.get_secret_value() if each.api_key is not None else None
        offered.append((OpenAiCompatible(each.name, each.base_url, key, patience), each.models))
    return Registry(offered, Offline())
