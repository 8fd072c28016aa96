"""Production without a provider: nothing is charged, and the log says so."""

import logging
from pathlib import Path

import pytest

from bedplate import compose
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.settings import Settings
from bedplate.modules.payments.public import PaymentMethod
from tests.factories import TurnableClock

SECRET = "hUx2mZ0tqWc7VbN4yKd9sLfR1gPj6eAo"
LACKING = ["payments are refused until STRIPE_SECRET_KEY is set"]
UNANSWERED = ["chat is answered by no model until OPENAI_API_KEY, OLLAMA_BASE_URL or BEDPLATE_CHAT_PROVIDERS is set"]
UNSENT = ["mail is kept in the database and not sent until SMTP_URL is set"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, LACKING + UNSENT + UNANSWERED),
        ({"payment_provider": "sandbox"}, UNSENT + UNANSWERED),
        ({"stripe_secret_key": "sk_test_1", "smtp_url": "smtp://127.0.0.1:1", "openai_api_key": "k"}, []),
        ({"environment": "development"}, []),
    ],
)
async def test_a_start_in_production_says_what_is_missing_and_so_does_each_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, str], missing: list[str]
) -> None:
    settings = Settings(_env_file=None, **{"environment": "production", "secret": SECRET, "data": tmp_path} | given)
    compose.prepare(settings)
    with caplog.at_level(logging.WARNING, "bedplate"):
        async with compose.running(settings, TurnableClock()) as runtime:
            assert [record.message for record in caplog.records] == missing
            if missing[:1] == LACKING:
                assert runtime.provider is not None
                with pytest.raises(Unavailable):
                    await runtime.provider.tokenize(PaymentMethod("paypal"))
                assert caplog.records[-1].message == "a payment is refused: there is no STRIPE_SECRET_KEY"
    caplog.clear()
    async with compose.running(settings, TurnableClock(), deliver=False):
        assert caplog.records == [], "commands are not servers"
