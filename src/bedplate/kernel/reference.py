"""docs/configuration.md, made from Settings. `make docs` writes it."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic.fields import FieldInfo

from bedplate.kernel.settings import Settings, environment_names

HEADER = """# Configuration

Every setting is an environment variable, or a line `NAME=value` of the file `.env` in the folder where Bedplate is
started; the environment comes first, and an empty value counts as none. None has to be set. An unknown `BEDPLATE_…`
name is an error, so that a misspelt one is noticed; `bedplate doctor` checks them all. `API_HOST` and `API_PORT` stand
for `--host` and `--port` where these are not given.

This page is made from the code by `make docs`.
"""
# A setting that no group names comes under the first heading.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Process": (),
    "Servers": (
        "database_url",
        "orders_database_url",
        "payments_database_url",
        "redis_url",
        "broker_url",
        "smtp_url",
        "elsewhere",
        "otlp_endpoint",
    ),
    "Security": (
        "secret",
        "jwt_algorithm",
        "password_policy",
        "hash_workers",
        "cors_origins",
        "trusted_proxies",
        "max_body_bytes",
    ),
    "Mail": ("mail_from", "frontend_url", "unconfirmed_mails"),
    "Commerce": (
        "require_auth",
        "metrics_port",
        "currency",
        "payment_provider",
        "stripe_secret_key",
        "stripe_api_base",
    ),
    "Chat": (
        "openai_api_key",
        "openai_base_url",
        "openai_model",
        "ollama_base_url",
        "ollama_model",
        "chat_providers",
        "chat_daily_tokens",
    ),
    "Rate limits": ("rate_limit_enabled",),
}
LIMITS = "Written as `5/15 minutes` or `100/minute`; the defaults are the documented numbers, where a document has any."


def reference() -> str:
    """The page, as Markdown."""
    places = {name: group for group, names in GROUPS.items() for name in names}
    parts = [HEADER]
    for group in GROUPS:
        members = {name: info for name, info in Settings.model_fields.items() if _group(name, places) == group}
        parts.append(f"## {group}\n" + (f"\n{LIMITS}\n" if group == "Rate limits" else "") + "\n" + _table(members))
    return "\n".join(parts)


def _group(name: str, places: Mapping[str, str]) -> str:
    return "Rate limits" if name.endswith("_limit") else places.get(name, next(iter(GROUPS)))


def _table(members: Mapping[str, FieldInfo]) -> str:
    lines = ["| name | default | meaning |", "|---|---|---|"]
    names = environment_names()
    for name, info in members.items():
        shown = " or ".join(f"`{each}`" for each in names[name].split(", "))
        meaning = (info.description or "").replace("|", "\\|")
        lines.append(f"| {shown} | {_default(info)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True)
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"
