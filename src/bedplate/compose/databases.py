"""The databases of a process: which they are, and what is done to them before it serves."""

import asyncio
import logging
from contextlib import AsyncExitStack

from bedplate import migrations
from bedplate.compose.chosen import (
    KEPT,
    blobs_of,
    broker_at,
    chat_providers_of,
    database_at,
    document_url,
    own_url,
    redis_of,
    transport_of,
)
from bedplate.compose.shape import Shape, shape_of
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.security import signing_secret
from bedplate.kernel.settings import OperatorError, Settings
from bedplate.kernel.sqlite import safe_for_several_processes
from bedplate.modules.payments import rules as payment_rules

log = logging.getLogger("bedplate")


def prepare(settings: Settings, *, name: str | None = None, migrate: bool = True) -> bool:
    """What a process that serves `name` does before it serves, so that mistakes of the operator come out as one line.
    Whether a database was created or changed.

    Raises:
        OperatorError: the data folder, a database, a URL or the currency cannot be used.
    """
    signing_secret(settings)
    redis_of(settings)
    transport_of(settings)
    chat_providers_of(settings)
    blobs_of(settings, Clock())
    if settings.broker_url is not None:
        broker_at(settings.broker_url.get_secret_value())
    payment_rules.currency(settings.currency)
    shape = shape_of(name, settings)
    return migrate and upgrade(settings, shape)


def upgrade(settings: Settings, shape: Shape) -> bool:
    """Bring the databases of the modules that run here to this code's schema. Whether there was anything to do."""
    changed = [migrations.upgrade(url) for url in database_urls(settings, shape)]
    for unit in sorted(shape.here):
        if document_url(unit, settings) is not None:
            asyncio.run(_prepare_documents(unit, settings))
    return any(changed)


async def _prepare_documents(unit: str, settings: Settings) -> None:
    variable = f"{unit.upper()}_DATABASE_URL"
    async with AsyncExitStack() as stack:
        queue = database_at(settings.database)
        stack.push_async_callback(queue.close)
        documents = KEPT[unit](settings, queue, Clock()).documents
        assert documents is not None
        stack.push_async_callback(documents.close)
        try:
            await documents.prepare()
            weakness = await documents.weakness()
        except Unavailable:
            raise OperatorError(f"{variable}: {documents.engine} does not answer there, or refuses us") from None
    if weakness and settings.is_production:
        raise OperatorError(f"{variable}: {documents.engine} could lose what it has confirmed; {weakness}")
    if weakness:
        log.warning("what this server has confirmed could be lost", extra={"setting": variable, "reason": weakness})


def database_urls(settings: Settings, shape: Shape) -> dict[str, str]:
    """The databases of the modules that run here: by URL, what checks call them."""
    found: dict[str, str] = {}
    for unit in sorted(shape.here):
        url = database_of(unit, settings)
        found.setdefault(url, "database" if url == settings.database else f"{unit}_database")
    return found


def database_of(unit: str, settings: Settings) -> str:
    """The URL of the database in which a module keeps its tables, or from which what it says is delivered."""
    return settings.database if document_url(unit, settings) else own_url(unit, settings) or settings.database


def may_have_several_workers(settings: Settings, name: str | None) -> None:
    """Raises OperatorError if several processes would not be safe or would not agree."""
    urls = database_urls(settings, shape_of(name, settings))
    if any(url.startswith("sqlite") for url in urls) and not safe_for_several_processes():
        raise OperatorError("this SQLite is not safe for several writing processes; set DATABASE_URL to a PostgreSQL")
    if settings.rate_limit_enabled and settings.redis_url is None:
        raise OperatorError(
            "several workers need REDIS_URL, to count rate limits together (or set BEDPLATE_RATE_LIMIT_ENABLED=false)"
        )
