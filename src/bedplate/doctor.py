"""`bedplate doctor`: looks at everything the product needs and says how to mend what is wrong."""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from bedplate import compose, migrations
from bedplate.kernel.clock import Clock
from bedplate.kernel.documents import Documents
from bedplate.kernel.errors import Problem
from bedplate.kernel.health import probe
from bedplate.kernel.settings import OperatorError, Settings
from bedplate.kernel.sqlite import safe_for_several_processes
from bedplate.kernel.telemetry import configure_logging

# By a word of the mistake: which check it belongs to, and what to do.
REMEDIES = {
    "ORDERS_DATABASE_URL": ("orders_database", "correct ORDERS_DATABASE_URL"),
    "PAYMENTS_DATABASE_URL": ("payments_database", "correct PAYMENTS_DATABASE_URL"),
    "REDIS_URL": ("cache", "correct REDIS_URL"),
    "BEDPLATE_CHAT_PROVIDERS": ("chat", "correct BEDPLATE_CHAT_PROVIDERS"),
    "SMTP_URL": ("mail", "correct SMTP_URL"),
    "BROKER_URL": ("broker", "correct BROKER_URL"),
    "currency": ("payments", "correct COMMERCE_CURRENCY"),
    "STORAGE_URL": ("files", "correct STORAGE_URL"),
    "secret": ("storage", "restore the file, or choose another folder with --data or BEDPLATE_DATA"),
    "data folder": ("storage", "choose another with --data or BEDPLATE_DATA"),
    "": (
        "database",
        "correct DATABASE_URL or the URL of a module's own, or choose another folder with --data or BEDPLATE_DATA",
    ),
}
LEAST_FREE_BYTES = 100 * 2**20


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    ok: bool
    finding: str
    remedy: str = ""


ELSEWHERE = Finding("database", True, "with the modules, in another process")


@dataclass(frozen=True, slots=True)
class _Database:
    """`check`: what it is called here. `version`: of its schema, None if it has none."""

    url: str = field(repr=False)
    check: str
    version: str | None


def examine(settings: Callable[[], Settings], name: str | None = None) -> list[Finding]:
    """Every check for a process that serves `name` (None: everything), in the order in which things depend on each
    other."""
    try:
        found = settings()
    except OperatorError as mistake:
        return [Finding("settings", False, str(mistake), "docs/configuration.md lists every setting")]
    findings = [Finding("settings", True, f"ENVIRONMENT={found.environment}"), _storage(found)]
    configure_logging("ERROR")  # the table says it in its own words
    try:
        compose.served_by(name, found)
        shape = compose.shape_of(name, found)
    except OperatorError as mistake:
        return [Finding("settings", False, str(mistake), "docs/configuration.md lists every setting")]
    with tempfile.TemporaryDirectory() as scratch:
        looked_at = _leaving_nothing(found, scratch)
        try:
            compose.prepare(looked_at, name=name, migrate=False)
            databases = [
                _Database(url, check, migrations.version(url))
                for url, check in compose.database_urls(looked_at, shape).items()
            ]
            return [*findings, *asyncio.run(_running(looked_at, name, databases))]
        except OperatorError as mistake:
            check, remedy = next((value for word, value in REMEDIES.items() if word in str(mistake)), REMEDIES[""])
            return [*findings, Finding(check, False, str(mistake), remedy)]


def _leaving_nothing(settings: Settings, scratch: str) -> Settings:
    """The settings, but what only the first start may make is made where it is thrown away."""
    made: dict[str, Any] = {}
    for setting in ("database_url", "orders_database_url", "payments_database_url"):
        given = getattr(settings, setting)
        url = settings.database if setting == "database_url" else given and given.get_secret_value()
        if url and migrations.is_new(url):
            made[setting] = SecretStr(f"sqlite:///{scratch}/{setting}.db")
    if settings.secret is None and not os.path.exists(settings.data / "secret"):
        made["secret"] = SecretStr(secrets.token_urlsafe(48))
    return settings.model_copy(update=made)


def _storage(settings: Settings) -> Finding:
    wanted = settings.data.absolute()
    # The nearest that exists. By os.path, which finds nothing where it may not look; pathlib raises.
    folder = next(each for each in (wanted, *wanted.parents) if os.path.exists(each))
    if not os.access(folder, os.W_OK):
        return Finding("storage", False, f"{folder} is not writable", "choose another with --data or BEDPLATE_DATA")
    free = shutil.disk_usage(folder).free
    finding = f"{folder}, {free // 2**20:,} MB free"
    return Finding("storage", free > LEAST_FREE_BYTES, finding, "" if free > LEAST_FREE_BYTES else "make room")


async def _running(settings: Settings, name: str | None, databases: Sequence[_Database]) -> list[Finding]:
    async with compose.running(settings, Clock(), name=name, deliver=False) as runtime:
        answers = await probe(runtime.probes)
        kept = [_of(each, answers) for each in databases]
        return [
            *(kept or [ELSEWHERE]),
            *[await _documents(f"{unit}_database", each, answers) for unit, each in runtime.documents.items()],
            _cache(settings, answers),
            _broker(settings, answers),
            *(await _events(runtime) if kept and all(each.ok for each in kept) else []),
            _files(settings, (await probe({"files": runtime.blobs.ping}))["files"]),
            *_others(await probe(runtime.others)),
            await _mail(settings, runtime),
            await _payments(settings, runtime),
            _chat(runtime, await probe(runtime.models)),
        ]


def _of(database: _Database, answers: Mapping[str, bool]) -> Finding:
    check, version = database.check, database.version
    engine = "SQLite" if database.url.startswith("sqlite") else "PostgreSQL"
    if engine == "SQLite" and not safe_for_several_processes():
        finding = "SQLite answers; its version is safe for one writing process only"
        return Finding(check, answers[check], finding, "for several processes set DATABASE_URL")
    if not answers[check]:
        return Finding(check, False, f"{engine} does not answer", f"check {check.upper()}_URL")
    if version != migrations.HEAD:
        known = f"schema {version or 'missing'}, this version needs {migrations.HEAD}"
        return Finding(check, False, f"{engine} answers; {known}", "bedplate migrate, or start a server")
    return Finding(check, True, f"{engine} answers, schema {version}")


async def _documents(check: str, documents: Documents, answers: Mapping[str, bool]) -> Finding:
    if not answers[check]:
        return Finding(check, False, f"{documents.engine} does not answer", f"check {check.upper()}_URL")
    weakness = await documents.weakness()
    if weakness:
        problem, _, remedy = weakness.partition(": ")
        return Finding(check, False, f"{documents.engine} could lose what it has confirmed: {problem}", remedy)
    return Finding(check, True, f"kept in {documents.engine}, which answers")


def _cache(settings: Settings, answers: Mapping[str, bool]) -> Finding:
    if settings.redis_url is None:
        return Finding("cache", True, "in the process; several processes on PostgreSQL share one through REDIS_URL")
    ok = answers["redis"]
    return Finding("cache", ok, "Redis answers" if ok else "Redis does not answer", "" if ok else "check REDIS_URL")


def _broker(settings: Settings, answers: Mapping[str, bool]) -> Finding:
    if settings.broker_url is None:
        return Finding("broker", True, "none needed: events are delivered through the common database")
    ok = answers.get("broker", False)
    remedy = "" if ok else "check BROKER_URL; events wait in the database meanwhile"
    return Finding("broker", ok, "the broker answers" if ok else "the broker does not answer", remedy)


async def _events(runtime: compose.Runtime) -> list[Finding]:
    """What is on its way. Dead letters are no mistake of the installation: somebody has to look at them."""
    try:
        waiting, dead = await runtime.backlog()
    except Problem:  # no schema yet
        return []
    remedy = "bedplate events dead list says why; they are tried again for a week" if dead else ""
    letters = f"{dead} dead letter{'' if dead == 1 else 's'}"
    return [Finding("events", True, f"{letters}, {waiting} waiting", remedy)]


def _files(settings: Settings, ok: bool) -> Finding:
    """Where the bytes of files are kept."""
    if settings.storage_url is None:
        remedy = "" if ok else "make the folder `files` in the data folder writable"
        return Finding("files", ok, "kept in the data folder" if ok else "the folder takes no files", remedy)
    remedy = "" if ok else "check STORAGE_URL, its bucket, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return Finding("files", ok, "the storage answers" if ok else "the storage does not answer", remedy)


def _others(answers: Mapping[str, bool]) -> list[Finding]:
    """The processes that this one calls."""
    away = sorted(name for name, ok in answers.items() if not ok)
    if not answers:
        return []
    if not away:
        return [Finding("services", True, f"{', '.join(sorted(answers))} answer")]
    remedy = "start it there (`bedplate serve internal`, or the service), or correct BEDPLATE_ELSEWHERE__…"
    return [Finding("services", False, f"{', '.join(away)} does not answer, or has another API_SECRET_KEY", remedy)]


async def _payments(settings: Settings, runtime: compose.Runtime) -> Finding:
    if runtime.provider is None:
        return Finding("payments", True, "with the modules, in another process")
    if settings.stripe_secret_key is not None:
        try:
            await runtime.provider.ping()
        except Problem:
            remedy = "check STRIPE_SECRET_KEY (a restricted key has to be allowed to read the balance) and the network"
            return Finding("payments", False, "Stripe does not answer, or does not take the key", remedy)
        return Finding("payments", True, "charged through Stripe, which answers")
    finding = "the built-in test provider: no money is moved"
    if settings.is_production and settings.payment_provider is None:
        return Finding("payments", False, "refused: there is no provider", "set STRIPE_SECRET_KEY")
    return Finding("payments", True, finding)


def _chat(runtime: compose.Runtime, answers: Mapping[str, bool]) -> Finding:
    """Who answers chat: `answers` are those of the servers with models."""
    if "chat" not in runtime.shape.here:
        return Finding("chat", True, "with the modules, in another process")
    if not answers:
        return Finding("chat", True, "the built-in offline provider: no model is configured")
    away = sorted(name for name, ok in answers.items() if not ok)
    if not away:
        return Finding("chat", True, f"{', '.join(sorted(answers))} answers")
    remedy = "check its address and key: OPENAI_…, OLLAMA_BASE_URL, BEDPLATE_CHAT_PROVIDERS"
    return Finding("chat", False, f"{', '.join(away)} does not answer, or does not take the key", remedy)


async def _mail(settings: Settings, runtime: compose.Runtime) -> Finding:
    if runtime.transport is None:
        where = "kept" if settings.broker_url is None else "kept by the notification worker"
        return Finding("mail", True, f"{where}, in another process")
    if settings.smtp_url is None:
        remedy = "set SMTP_URL to send it" if settings.is_production else ""
        return Finding("mail", not settings.is_production, "kept in the mailbox: bedplate mail list", remedy)
    try:
        await runtime.transport.ping()
    except Problem:
        return Finding("mail", False, "the SMTP server does not take mail", "check SMTP_URL, its user and password")
    return Finding("mail", True, "the SMTP server answers")
