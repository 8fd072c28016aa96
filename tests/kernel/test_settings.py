"""Settings: what the environment and `.env` say, and what is wrong with it."""

from pathlib import Path

import pytest

from bedplate.kernel.settings import Environment, OperatorError, Settings, environment_names, load

GOOD_SECRET = "0f6c2b1a9e8d7c6b5a4938271605f4e3"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for names in environment_names().values():
        for name in names.split(", "):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_nothing_needs_to_be_set() -> None:
    settings = load()
    assert settings.environment is Environment.DEVELOPMENT
    assert settings.database == "sqlite:///bedplate-data/bedplate.db"
    assert (settings.secret, settings.redis_url, settings.smtp_url) == (None, None, None)
    assert settings.rate_limit_enabled


def test_the_documented_limits_are_the_defaults() -> None:
    settings = load()
    assert settings.cobalt_login_limit == "5/15 minutes"
    assert settings.cobalt_register_limit == "3/hour"
    assert settings.cobalt_reset_limit == "3/hour"
    assert settings.pantstack_limit == "100/minute"
    assert settings.pantstack_list_limit == "10/minute"


def test_the_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAIL_FROM=file@example.com\nFRONTEND_URL=https://file.example.com\n")
    monkeypatch.setenv("MAIL_FROM", "environment@example.com")
    settings = load()
    assert settings.mail_from == "environment@example.com"
    assert settings.frontend_url == "https://file.example.com"


@pytest.mark.parametrize("name", ["API_SECRET_KEY", "JWT_SECRET_KEY"])
def test_each_documented_name_of_the_secret_works(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, GOOD_SECRET)
    secret = load().secret
    assert secret is not None
    assert secret.get_secret_value() == GOOD_SECRET


def test_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "SMTP_URL", "API_SECRET_KEY", "BEDPLATE_DATA"):
        monkeypatch.setenv(name, "")
    settings = load()
    assert settings.database.startswith("sqlite")
    assert settings.redis_url is None


@pytest.mark.parametrize("name", ["API_CORS_ORIGINS", "BEDPLATE_TRUSTED_PROXIES"])
def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "one , two,,three,")
    settings = load()
    found = settings.cors_origins if name == "API_CORS_ORIGINS" else settings.trusted_proxies
    assert found == ["one", "two", "three"]


def test_modules_elsewhere_are_named_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_ELSEWHERE__IDENTITY", "http://host:8100")
    with pytest.raises(OperatorError, match="needs the API_SECRET_KEY"):
        load()
    monkeypatch.setenv("API_SECRET_KEY", "0123456789abcdef")
    assert load().elsewhere == {"identity": "http://host:8100"}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("BEDPLATE_DTA", "BEDPLATE_DATA"), ("BEDPLATE_RATE_LIMITS_ENABLED", "BEDPLATE_RATE_LIMIT_ENABLED")],
)
def test_an_unknown_name_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch, wrong: str, right: str) -> None:
    monkeypatch.setenv(wrong, "x")
    with pytest.raises(OperatorError, match=rf"unknown setting {wrong}; did you mean {right}\?"):
        load()


def test_an_unknown_name_in_the_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BEDPLATE_DTA=x\nANOTHER_PROGRAM=y\n")
    with pytest.raises(OperatorError, match=r"unknown setting BEDPLATE_DTA; did you mean BEDPLATE_DATA\?"):
        load()


def test_names_of_other_programs_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    monkeypatch.setenv("DATABASE_URLS", "x")
    assert load()


@pytest.mark.parametrize("text", ["5/15 minutes", "100/minute", "3/1 hour", "1/day", "10/30seconds", "7/2 days"])
def test_a_limit_may_be_written_so(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("COBALT_LOGIN_LIMIT", text)
    assert load().cobalt_login_limit == text


@pytest.mark.parametrize("text", ["5", "minute", "5/", "0/minute", "-1/minute", "5/0 minutes", "5/week", "5/minute ;"])
def test_a_limit_may_not_be_written_so(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("COBALT_LOGIN_LIMIT", text)
    with pytest.raises(OperatorError, match='COBALT_LOGIN_LIMIT: write a limit as "5/15 minutes" or "100/minute"'):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", "prod"),
        ("LOG_LEVEL", "LOUD"),
        ("JWT_ALGORITHM", "none"),
        ("PASSWORD_POLICY", "lax"),
        ("BEDPLATE_MAX_BODY_BYTES", "12"),
        ("BEDPLATE_DRAIN_SECONDS", "soon"),
        ("BEDPLATE_RATE_LIMIT_ENABLED", "perhaps"),
        ("BEDPLATE_HASH_WORKERS", "-1"),
        ("BEDPLATE_ELSEWHERE", "{not json"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OperatorError) as mistake:
        load()
    assert name.lower() in str(mistake.value).lower()
    assert "\n" not in str(mistake.value)


def test_a_file_that_is_no_text_is_the_operators_mistake(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MAIL_FROM=\xff\xfe\n")
    with pytest.raises(OperatorError, match=r"\.env"):
        load()


@pytest.mark.parametrize(
    "secret",
    [
        None,
        "short",
        GOOD_SECRET[:31],
        "a" * 64,
        "abababababababababababababababababababab",
        "12345678" * 4,
        "0f6c2b1a9e8d7c6b" * 3,
        "passwordPasswordPASSWORDpassword1",
        "your_secret_key_here_please_change_it_now",
        "CHANGEME-0f6c2b1a9e8d7c6b5a4938271605f4e3",
    ],
)
def test_production_refuses_a_secret_that_could_be_guessed(monkeypatch: pytest.MonkeyPatch, secret: str | None) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    if secret is not None:
        monkeypatch.setenv("API_SECRET_KEY", secret)
    with pytest.raises(OperatorError, match="ENVIRONMENT=production needs API_SECRET_KEY") as mistake:
        load()
    assert secret is None or secret not in str(mistake.value)


@pytest.mark.parametrize("weak", ["BEDPLATE_HASH_MEMORY_KIB=19455", "BEDPLATE_HASH_PASSES=1"])
def test_production_refuses_hashes_that_are_cheaper_than_owasp_recommends(
    monkeypatch: pytest.MonkeyPatch, weak: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("API_SECRET_KEY", GOOD_SECRET)
    monkeypatch.setenv(*weak.split("="))
    with pytest.raises(OperatorError, match="BEDPLATE_HASH_MEMORY_KIB=19456 and BEDPLATE_HASH_PASSES=2 or more"):
        load()


def test_production_starts_with_a_good_secret_and_the_strict_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("API_SECRET_KEY", GOOD_SECRET)
    assert load().is_production
    assert load().strict_passwords
    monkeypatch.setenv("PASSWORD_POLICY", "documented")
    assert not load().strict_passwords


def test_development_has_the_documented_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load().strict_passwords
    monkeypatch.setenv("PASSWORD_POLICY", "strict")
    assert load().strict_passwords


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_SECRET_KEY", GOOD_SECRET)
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@host/name")
    monkeypatch.setenv("SMTP_URL", "smtp://user:hunter2@host")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@host")
    for shown in (repr(load()), str(load())):
        assert GOOD_SECRET not in shown
        assert "hunter2" not in shown


def test_every_setting_says_what_it_is_for() -> None:
    for name, info in Settings.model_fields.items():
        assert info.description, name
        assert info.description.endswith("."), name
