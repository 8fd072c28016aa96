"""Settings: every environment name the product reads, typed, documented and checked."""

import difflib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from bedplate.kernel.limits import Limit
from bedplate.kernel.secret import HASH_MEMORY_KIB, HASH_PASSES, LEAST_SECRET, MINIMUM_SECRET, guessable


class Environment(StrEnum):
    DEVELOPMENT = "development"
    TEST = "test"
    PRODUCTION = "production"


class OperatorError(Exception):
    """A mistake of the operator, told in one line; the process ends with code 2."""


def _limit(text: str) -> str:
    Limit.parse(text)
    return text


def _commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


LimitText = Annotated[str, AfterValidator(_limit)]
CommaList = Annotated[list[str], NoDecode, BeforeValidator(_commas)]


class ChatProvider(BaseModel):
    """One of BEDPLATE_CHAT_PROVIDERS. `models`: by the names that they are asked for with, what they are called over
    there."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern="^[a-z0-9_-]{1,40}$")
    base_url: str = Field(pattern="^https?://[^/]")
    api_key: SecretStr | None = None
    models: dict[Annotated[str, Field(pattern=r"^[\w.:/-]{1,100}$")], str] = Field(min_length=1, max_length=100)


class Settings(BaseSettings):
    """Read from the environment, then from `.env`. The description of each field is its documentation."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_nested_delimiter="__",
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    environment: Environment = Field(
        Environment.DEVELOPMENT,
        description="`production` refuses generated or short secrets, marks cookies Secure and applies the strict "
        "password policy.",
    )
    data: Path = Field(
        Path("bedplate-data"),
        validation_alias="BEDPLATE_DATA",
        description="Folder for the embedded database and the generated secret.",
    )
    secret: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("API_SECRET_KEY", "JWT_SECRET_KEY"),
        description="Signs tokens; 32 characters or more. Outside production one is generated in the data folder.",
    )
    jwt_algorithm: Literal["HS256"] = Field("HS256", description="The only algorithm that tokens are accepted with.")
    database_url: SecretStr | None = Field(
        None,
        description="`postgresql://user:password@host:5432/name`, or `sqlite:///path/to/file.db`. Without it, SQLite "
        "in the data folder.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="`redis://host:6379/0`. Shares rate limits and cache invalidation between processes; without it "
        "they are kept in the process.",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="`redis://host:6379/1`: Redis Streams that carry events between processes with databases of their "
        "own. Without it events are delivered through the common database.",
    )
    orders_database_url: SecretStr | None = Field(
        None,
        description="A database of its own for the module orders: written as DATABASE_URL is, or "
        "`mongodb://host:27017/name` (needs the `mongodb` extra; events are still delivered through DATABASE_URL).",
    )
    payments_database_url: SecretStr | None = Field(
        None,
        description="A database of its own for the module payments: written as DATABASE_URL is, or "
        "`redis://host:6379/2`, a Redis with an append-only file (events are still delivered through DATABASE_URL).",
    )
    storage_url: str | None = Field(
        None,
        description="Where files are kept: `s3://bucket?endpoint=https://host:9000&region=us-east-1` (without an "
        "endpoint, Amazon's own). Without it, the folder `files` in the data folder, which all processes have to "
        "share.",
    )
    storage_access_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY"),
        description="Credentials for STORAGE_URL. Without them, what the machine itself is allowed to.",
    )
    storage_secret_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY"),
        description="Goes with the access key.",
    )
    storage_session_token: SecretStr | None = Field(
        None, validation_alias="AWS_SESSION_TOKEN", description="Goes with credentials that are lent for a while."
    )
    storage_public_url: str | None = Field(
        None,
        pattern="^https?://",
        description="Base of the links to files. Without it, the address that the request came to.",
    )
    file_link_seconds: int = Field(
        3600,
        validation_alias="BEDPLATE_FILE_LINK_SECONDS",
        ge=60,
        le=604_800,
        description="How long the link of a file holds, in seconds; up to five minutes more.",
    )
    max_file_bytes: int = Field(
        52_428_800, validation_alias="BEDPLATE_MAX_FILE_BYTES", ge=1, description="Largest file, in bytes."
    )
    storage_quota_bytes: int = Field(
        1_073_741_824,
        validation_alias="BEDPLATE_STORAGE_QUOTA_BYTES",
        ge=1,
        description="What all files of one user may take, in bytes.",
    )
    smtp_url: SecretStr | None = Field(
        None,
        description="`smtp://user:password@host:587` (STARTTLS when offered) or `smtps://…:465`. Without it, mail "
        "goes to a mailbox in the database that `bedplate mail` shows.",
    )
    mail_from: str = Field("noreply@localhost", description="Sender of all mail.")
    unconfirmed_mails: int = Field(
        20,
        validation_alias="BEDPLATE_UNCONFIRMED_MAILS",
        ge=0,
        description="Notifications a day to an address that nobody has confirmed: it may be somebody else's.",
    )
    frontend_url: str = Field("http://localhost:3000", description="Base of the links in mail.")
    cors_origins: CommaList = Field(
        default_factory=list,
        validation_alias="API_CORS_ORIGINS",
        description="Browser origins that may call the APIs with credentials, separated by commas.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    password_policy: Literal["documented", "strict"] | None = Field(
        None,
        description="`documented`: 8 to 128 characters. `strict`: 12 or more and not a common password. Default: "
        "strict in production, else documented.",
    )
    otlp_endpoint: str | None = Field(
        None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where OpenTelemetry traces go; needs the `otel` extra. Without it nothing is traced.",
    )
    trusted_proxies: CommaList = Field(
        default_factory=list,
        validation_alias="BEDPLATE_TRUSTED_PROXIES",
        description="Addresses of proxies whose X-Forwarded-For is believed, separated by commas.",
    )
    max_body_bytes: int = Field(
        1_048_576,
        validation_alias="BEDPLATE_MAX_BODY_BYTES",
        ge=1024,
        description="Largest request body, in bytes, for operations that take JSON.",
    )
    drain_seconds: float = Field(
        10.0,
        validation_alias="BEDPLATE_DRAIN_SECONDS",
        gt=0,
        description="How long a stopping process waits for open connections, in seconds.",
    )
    hash_workers: int = Field(
        0,
        validation_alias="BEDPLATE_HASH_WORKERS",
        ge=0,
        description="Passwords hashed at once. 0: as many as there are cores.",
    )
    hash_memory_kib: int = Field(
        HASH_MEMORY_KIB,
        validation_alias="BEDPLATE_HASH_MEMORY_KIB",
        ge=8,
        description="Memory that Argon2id takes for each password, in KiB; in production no less than the default.",
    )
    hash_passes: int = Field(
        HASH_PASSES,
        validation_alias="BEDPLATE_HASH_PASSES",
        ge=1,
        description="How often Argon2id goes over that memory; in production no less than the default.",
    )
    require_auth: bool | None = Field(
        None,
        description="Commerce: refuse requests to orders and payments that carry no token. Default: true in "
        "production, else false, as its document has it.",
    )
    metrics_port: int = Field(
        8000, ge=0, le=65535, description="Commerce: where the notification worker serves health and metrics."
    )
    currency: str = Field(
        "USD",
        validation_alias="COMMERCE_CURRENCY",
        pattern="^[A-Z]{3}$",
        description="Commerce: the currency of all prices, one with two decimals.",
    )
    payment_provider: Literal["sandbox"] | None = Field(
        None,
        description="`sandbox`: take the built-in test provider in production too, where payments are refused "
        "otherwise as long as there is no STRIPE_SECRET_KEY.",
    )
    stripe_secret_key: SecretStr | None = Field(
        None,
        description="Charge cards through Stripe. Without it the built-in test provider answers by card number and "
        "moves no money.",
    )
    ws_port: int = Field(3001, ge=0, le=65535, description="Dev-PyNode: where `/ws` is served too.")
    ws_cors_origin: CommaList = Field(
        default_factory=list,
        description="Dev-PyNode: origins of pages that may open a WebSocket, separated by commas. API_CORS_ORIGINS, "
        "FRONTEND_URL and pages of the server itself always may.",
    )
    ws_require_auth: bool | None = Field(
        None,
        description="Dev-PyNode: close WebSockets that show no token within five seconds. Default: true in "
        "production, else false: whoever shows none may chat within the limit of unknown callers, and nothing is kept.",
    )
    stripe_api_base: str | None = Field(None, description="Another address for Stripe's API, such as a test server.")
    openai_api_key: SecretStr | None = Field(
        None, description="Have `gpt-4` and `gpt-3.5-turbo` answered by OpenAI, or by whoever OPENAI_BASE_URL names."
    )
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        pattern="^https?://[^/]",
        description="The address of OpenAI's API, or of a server that speaks it (LM Studio, vLLM), which may "
        "need no key.",
    )
    openai_model: str | None = Field(
        None, max_length=100, description="The model over there that answers for `gpt-4`. It has its own name too."
    )
    ollama_base_url: str | None = Field(
        None,
        pattern="^https?://[^/]",
        description="An Ollama, such as `http://ollama:11434`, that answers for `llama2`, `codellama` and `mistral`.",
    )
    ollama_model: str | None = Field(
        None, max_length=100, description="The model of Ollama that answers for `llama2`. It has its own name too."
    )
    chat_providers: list[ChatProvider] = Field(
        default_factory=list,
        validation_alias="BEDPLATE_CHAT_PROVIDERS",
        max_length=20,
        description='More servers that speak OpenAI\'s API, as JSON: `[{"name": "mine", "base_url": '
        '"http://gpu:8000/v1", "api_key": "…", "models": {"gpt-4": "their-name"}}]`. They come before the others.',
    )
    chat_daily_tokens: int = Field(
        0,
        validation_alias="BEDPLATE_CHAT_DAILY_TOKENS",
        ge=0,
        description="Tokens, of questions and answers, that one user has for a day (UTC). 0: no limit. A question is "
        "refused where its `max_tokens`, 1,000 if left out, are more than what is left.",
    )
    elsewhere: dict[str, str] = Field(
        default_factory=dict,
        validation_alias="BEDPLATE_ELSEWHERE",
        description="Modules that run in another process: `BEDPLATE_ELSEWHERE__IDENTITY=http://host:8100`.",
    )
    rate_limit_enabled: bool = Field(
        True,
        validation_alias="BEDPLATE_RATE_LIMIT_ENABLED",
        description="`false` switches all limits off (load tests).",
    )
    cobalt_login_limit: LimitText = Field("5/15 minutes", description="Cobalt: logins per address.")
    cobalt_register_limit: LimitText = Field("3/hour", description="Cobalt: registrations per address.")
    cobalt_reset_limit: LimitText = Field("3/hour", description="Cobalt: password reset requests per address.")
    commerce_login_limit: LimitText = Field(
        "20/15 minutes",
        description="Commerce: logins per address. Its document has no limits; this one is an addition.",
    )
    commerce_register_limit: LimitText = Field(
        "20/hour", description="Commerce: new users per address. An addition as well."
    )
    commerce_mail_limit: LimitText = Field(
        "20/hour",
        description="Commerce: requests for mail (verification, password reset) per address. An addition as well.",
    )
    commerce_payment_limit: LimitText = Field(
        "60/minute", description="Commerce: payments per address, against card testing. An addition as well."
    )
    pynode_limit: LimitText = Field("100/15 minutes", description="Dev-PyNode: requests of one user or service key.")
    pynode_anonymous_limit: LimitText = Field(
        "10/15 minutes", description="Dev-PyNode: requests per address of whoever shows no valid token."
    )
    pantstack_limit: LimitText = Field("100/minute", description="Pantstack: all API requests per address.")
    pantstack_list_limit: LimitText = Field("10/minute", description="Pantstack: user lists per address.")

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if "*" in self.cors_origins:
            raise ValueError("API_CORS_ORIGINS must name each origin: they may all send credentials")
        if "*" in self.ws_cors_origin:
            raise ValueError("WS_CORS_ORIGIN must name each origin: `*` is none")
        if self.elsewhere and self.secret is None:
            raise ValueError("BEDPLATE_ELSEWHERE__… needs the API_SECRET_KEY of the process with the modules")
        if self.is_production:
            secret = self.secret.get_secret_value() if self.secret else ""
            if guessable(secret):
                raise ValueError(
                    f"ENVIRONMENT=production needs API_SECRET_KEY with {MINIMUM_SECRET} random characters or more"
                )
            if self.hash_memory_kib < HASH_MEMORY_KIB or self.hash_passes < HASH_PASSES:
                least = f"BEDPLATE_HASH_MEMORY_KIB={HASH_MEMORY_KIB} and BEDPLATE_HASH_PASSES={HASH_PASSES}"
                raise ValueError(f"ENVIRONMENT=production needs {least} or more")
        if self.secret is not None and len(self.secret.get_secret_value()) < LEAST_SECRET:
            raise ValueError(
                f"API_SECRET_KEY must have {LEAST_SECRET} characters or more, in production {MINIMUM_SECRET}"
            )
        return self

    @property
    def is_production(self) -> bool:
        return self.environment is Environment.PRODUCTION

    @property
    def strict_passwords(self) -> bool:
        return (self.password_policy or ("strict" if self.is_production else "documented")) == "strict"

    @property
    def auth_required(self) -> bool:
        """Whether Commerce's orders and payments are closed to requests without a token."""
        return self.is_production if self.require_auth is None else self.require_auth

    @property
    def ws_auth_required(self) -> bool:
        """Whether Dev-PyNode's WebSocket is closed to whoever shows no token."""
        return self.is_production if self.ws_require_auth is None else self.ws_require_auth

    @property
    def ws_origins(self) -> list[str]:
        """Pages that may open a WebSocket, beside those of the server itself."""
        frontend = urlsplit(self.frontend_url)
        return [*self.ws_cors_origin, *self.cors_origins, f"{frontend.scheme}://{frontend.netloc}"]

    @property
    def database(self) -> str:
        """The database's URL: DATABASE_URL, or the embedded file."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data / 'bedplate.db'}"


def environment_names() -> dict[str, str]:
    """Environment name(s) of each field, first the one to print."""
    names = {}
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name.upper()]
        names[name] = ", ".join(str(choice) for choice in choices)
    return names


def load(**overrides: Any) -> Settings:
    """Settings from the environment; what is wrong with them is one OperatorError.

    Raises:
        OperatorError: a value does not fit, a BEDPLATE_* name is unknown, or `.env` cannot be read.
    """
    known = {name for names in environment_names().values() for name in names.split(", ")}
    try:
        in_file = DotEnvSettingsSource(Settings, case_sensitive=True).env_vars
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"cannot read .env: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
    for name in (*os.environ, *in_file):
        others = ("BEDPLATE_ELSEWHERE__", "BEDPLATE_TEST_", "BEDPLATE_BENCH_")
        if name.startswith("BEDPLATE_") and name not in known and not name.startswith(others):
            close = difflib.get_close_matches(name, known, n=1)
            raise OperatorError(f"unknown setting {name}" + (f"; did you mean {close[0]}?" if close else ""))
    try:
        return Settings(**overrides)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        where = environment_names().get(str(first["loc"][0]), str(first["loc"][0])) if first["loc"] else ""
        inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:3])
        reason = _words(first["msg"].removeprefix("Value error, "), first.get("ctx", {}).get("pattern", ""))
        raise OperatorError(f"{where}{inside}: {reason}" if where else reason) from None
    except SettingsError as wrong:  # a value that is JSON
        if "chat_providers" in str(wrong):
            raise OperatorError("BEDPLATE_CHAT_PROVIDERS: it is not JSON") from None
        raise OperatorError("BEDPLATE_ELSEWHERE: write BEDPLATE_ELSEWHERE__IDENTITY=http://host:8100") from None


def _words(message: str, pattern: str) -> str:
    """Why a setting does not fit, for whoever does not read patterns."""
    return "it must begin with http:// or https://" if pattern.startswith("^https?://") else message
