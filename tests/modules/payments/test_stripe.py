"""Stripe: its SDK against a real HTTP server with a ledger of its own, and against localstripe."""

import asyncio
import contextlib
import importlib.util
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest

from bedplate.kernel.db import Database
from bedplate.kernel.errors import Unavailable
from bedplate.modules.payments import stripe as adapter
from bedplate.modules.payments.provider import CALL_SECONDS, Declined
from bedplate.modules.payments.public import InvalidPaymentMethod, PaymentMethod, PaymentStatus
from bedplate.modules.payments.stripe import Stripe
from tests.factories import TurnableClock
from tests.fakes.stripe_server import Faults, StripeServer
from tests.modules.payments.shop import TOTAL, card, once, open_shop

GOOD = "4242424242424242"
KEY = "sk_test_of_nobody"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StripeServer]:
    async with StripeServer(str(tmp_path / "stripe.db")) as running:
        yield running


@pytest.fixture
async def stripe(server: StripeServer) -> AsyncIterator[Stripe]:
    provider = Stripe(KEY, f"{server.url}/")
    yield provider
    await provider.close()


async def charged(stripe: Stripe, number: str = GOOD, key: str = "pay-1", amount: Decimal = TOTAL) -> str:
    token = (await stripe.tokenize(card(number))).token
    return await stripe.charge(token, amount, "USD", key, "Order order-1")


def charges(server: StripeServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.ledger.contents()["charges"]
    return found


async def test_a_card_is_tokenized_charged_and_refunded(stripe: Stripe, server: StripeServer) -> None:
    token = await stripe.tokenize(card(GOOD))
    assert (token.token[:3], token.brand, token.last4) == ("pm_", "visa", "4242")
    reference = await stripe.charge(token.token, TOTAL, "USD", "pay-1", "Order order-1")
    refund = await stripe.refund(reference, Decimal("25.48"), "USD", "ref-1")
    assert server.ledger.contents() == {
        "charges": [{"id": reference, "payment": "pay-1", "amount": 7548, "currency": "usd"}],
        "refunds": [{"id": refund, "charge": reference, "refund": "ref-1", "amount": 2548}],
    }
    await stripe.ping()


async def test_every_call_carries_its_key_and_only_the_first_the_card(stripe: Stripe, server: StripeServer) -> None:
    reference = await charged(stripe)
    await stripe.refund(reference, TOTAL, "USD", "ref-1")
    (_, first, headers, method), (_, second, of_charge, charge), (_, third, of_refund, refund) = server.requests
    assert (first, second, third) == ("/v1/payment_methods", "/v1/payment_intents", "/v1/refunds")
    assert headers["idempotency-key"] not in ("pay-1", "")
    assert (of_charge["idempotency-key"], of_refund["idempotency-key"]) == ("pay-1", "ref-1")
    assert parse_qs(method)["card[number]"] == [GOOD]
    assert GOOD not in charge + refund + str(headers) + str(of_charge)
    assert parse_qs(charge)["description"] == ["Order order-1"]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "x-stripe-client-telemetry" not in of_charge


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("4000000000009995", "INSUFFICIENT_FUNDS"),
        ("4000000000000002", "CARD_DECLINED"),
        ("4000000000009987", "CARD_DECLINED"),
        ("4000000000000069", "EXPIRED_CARD"),
        ("4000000000000127", "INCORRECT_CVC"),
        ("4000000000000119", "PROCESSING_ERROR"),
        ("4000002760003184", "AUTHENTICATION_REQUIRED"),
    ],
)
async def test_each_card_that_declines_says_why(stripe: Stripe, server: StripeServer, number: str, code: str) -> None:
    token = (await stripe.tokenize(card(number))).token
    for _ in range(2):  # the second time it is the stored answer
        with pytest.raises(Declined) as declined:
            await stripe.charge(token, TOTAL, "USD", "pay-1", "Order")
        assert declined.value.code == code
    assert charges(server) == []


async def test_the_same_key_charges_once(stripe: Stripe, server: StripeServer) -> None:
    token = (await stripe.tokenize(card())).token
    references = await asyncio.gather(*(stripe.charge(token, TOTAL, "USD", "pay-1", "Order") for _ in range(5)))
    assert len(set(references)) == len(charges(server)) == 1


async def test_a_key_that_stands_for_something_else_is_no_decision(stripe: Stripe, server: StripeServer) -> None:
    token = (await stripe.tokenize(card())).token
    await stripe.charge(token, TOTAL, "USD", "pay-1", "Order")
    with pytest.raises(Unavailable):
        await stripe.charge(token, TOTAL + 1, "USD", "pay-1", "Order")
    assert len(charges(server)) == 1


@pytest.mark.parametrize("fault", ["drop", "fail", "busy", "hang"])
async def test_an_unknown_outcome_is_found_out_by_asking_again(
    stripe: Stripe, server: StripeServer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CALL_SECONDS", 1.0 if fault == "hang" else CALL_SECONDS)
    token = (await stripe.tokenize(card())).token
    server.faults.next[fault] = 1
    before = len(server.requests)
    with pytest.raises(Unavailable):
        await stripe.charge(token, TOTAL, "USD", "pay-1", "Order")
    assert len(server.requests) == before + 1, "the SDK does not try again by itself"
    assert len(charges(server)) == (fault == "drop"), "executed, or not"
    reference = await stripe.charge(token, TOTAL, "USD", "pay-1", "Order")
    assert [charge["id"] for charge in charges(server)] == [reference]
    server.faults.next[fault] = 1
    with pytest.raises(Unavailable):
        await stripe.refund(reference, TOTAL, "USD", "ref-1")
    await stripe.refund(reference, TOTAL, "USD", "ref-1")
    assert [refund["amount"] for refund in server.ledger.contents()["refunds"]] == [7548]


async def test_a_card_that_cannot_be_asked_about_is_unknown_too(stripe: Stripe, server: StripeServer) -> None:
    for fault in ("drop", "fail"):
        server.faults.next[fault] = 1
        with pytest.raises(Unavailable):
            await stripe.tokenize(card())
        server.faults.next[fault] = 1
        with pytest.raises(Unavailable):
            await stripe.ping()


async def test_a_wrong_secret_key_decides_nothing(server: StripeServer) -> None:
    stranger = Stripe("pk_not_a_secret_key", server.url)
    for call in (stranger.tokenize(card()), stranger.charge("pm_1", TOTAL, "USD", "pay-1", "Order"), stranger.ping()):
        with pytest.raises(Unavailable):
            await call
    await stranger.close()


async def test_nobody_there_is_an_unknown_outcome() -> None:
    stranger = Stripe(KEY, "http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        await stranger.charge("pm_1", TOTAL, "USD", "pay-1", "Order")
    with pytest.raises(Unavailable):
        await stranger.ping()
    await stranger.close()


async def test_a_charge_that_is_still_processing_is_asked_about(stripe: Stripe, server: StripeServer) -> None:
    assert (await charged(stripe, "4000000000000077")).startswith("pi_")
    assert [path.partition("/pi_")[0] for _, path, _, _ in server.requests][-1] == "/v1/payment_intents"
    assert await charged(stripe, GOOD, "pay-2") != ""


async def test_what_stripe_cannot_do_is_refused_for_good(stripe: Stripe, server: StripeServer) -> None:
    with pytest.raises(Declined) as declined:
        await charged(stripe, amount=Decimal("0.49"))
    assert declined.value.code == "PROVIDER_REFUSED"
    with pytest.raises(Declined):
        await stripe.charge("pm_of_nobody", TOTAL, "USD", "pay-2", "Order")
    reference = await charged(stripe, key="pay-3")
    with pytest.raises(Declined) as declined:
        await stripe.refund(reference, TOTAL + 1, "USD", "ref-1")
    assert declined.value.code == "REFUND_REFUSED"
    for method in (PaymentMethod("paypal"), PaymentMethod("bank_transfer"), card("4242424242424241")):
        with pytest.raises(InvalidPaymentMethod):
            await stripe.tokenize(method)


async def test_payments_through_a_bad_line_are_charged_once_each(
    db: Database, clock: TurnableClock, tmp_path: Path
) -> None:
    async with StripeServer(str(tmp_path / "stripe.db"), Faults(seed=7, drop=0.25, fail=0.1)) as server:
        provider = Stripe(KEY, server.url)
        shop = await open_shop(db, clock, provider)
        orders = [await shop.order(Decimal(number + 1)) for number in range(12)]

        async def until_accepted(place: int) -> None:
            for _ in range(20):
                with contextlib.suppress(Unavailable):
                    number = "4000000000009995" if place % 4 == 3 else GOOD
                    await shop.pay(orders[place], card(number), once(str(place)))
                    return
            raise AssertionError("never accepted")

        await asyncio.gather(*(until_accepted(place) for place in range(12)))
        await shop.settle()
        for place in (0, 1, 2):
            await shop.orders.cancel(orders[place].id, "changed my mind")
        await shop.settle()
        ledger = server.ledger.contents()
        await provider.close()
    taken = Decimal(sum(charge["amount"] for charge in ledger["charges"])) / 100
    given = Decimal(sum(refund["amount"] for refund in ledger["refunds"])) / 100
    assert len(ledger["charges"]) == len({charge["payment"] for charge in ledger["charges"]}) == 9
    assert given == 1 + 2 + 3
    assert await shop.booked() == taken - given == 5 + 6 + 7 + 9 + 10 + 11


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """One of the fakes as a process of its own, and its address."""
    running = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    try:
        yield running.stdout.readline().strip(), running
    finally:
        running.kill()
        running.wait(10)
        running.stdout.close()


async def test_the_server_killed_and_started_again_remembers_what_it_did(tmp_path: Path) -> None:
    arguments = ("tests.fakes.stripe_server", "--ledger", str(tmp_path / "stripe.db"), "--seed", "1")
    with process(*arguments) as (url, running):
        stripe = Stripe(KEY, url)
        token = (await stripe.tokenize(card())).token
        httpx2.post(f"{url}/_control", json={"drop": 1}, timeout=10).raise_for_status()
        with pytest.raises(Unavailable):
            await stripe.charge(token, TOTAL, "USD", "pay-1", "Order")
        await stripe.close()
        running.send_signal(signal.SIGKILL)
        running.wait(10)
    with process(*arguments, "--drop", "0.0") as (url, _):
        stripe = Stripe(KEY, url)
        reference = await stripe.charge(token, TOTAL, "USD", "pay-1", "Order")
        ledger = httpx2.get(f"{url}/_ledger", timeout=10).json()
        await stripe.close()
    assert [charge["id"] for charge in ledger["charges"]] == [reference]


@pytest.fixture(scope="module")
def localstripe() -> Iterator[str]:
    if importlib.util.find_spec("localstripe") is None:
        pytest.skip("needs localstripe, an independent implementation of Stripe's API (GPL, for development only)")
    with process("tests.fakes.localstripe_server") as (url, _):
        yield url


async def test_an_independent_implementation_charges_declines_and_refunds(
    db: Database, clock: TurnableClock, localstripe: str
) -> None:
    provider = Stripe("sk_test_12345", localstripe)
    await provider.ping()
    shop = await open_shop(db, clock, provider)
    good = await shop.pay(await shop.order(), card(GOOD))
    bad = await shop.pay(await shop.order(), card("4000000000000341"))  # it can be stored, but not charged
    factor = await shop.pay(await shop.order(), card("4000002500003155"))  # it wants a second factor
    await shop.relay.drain()
    states = [await shop.payments.get_payment(payment.id) for payment in (good, bad, factor)]
    assert [state.status for state in states] == [PaymentStatus.COMPLETED, PaymentStatus.FAILED, PaymentStatus.FAILED]
    assert [state.error_code for state in states] == [None, "CARD_DECLINED", "AUTHENTICATION_REQUIRED"]
    await shop.payments.refund(good.id, Decimal("25.48"), "a reason")
    await shop.payments.refund(good.id, None, "a reason")
    await shop.relay.drain()
    [attempt] = [await shop.processing._store.find(good.id)]
    assert attempt is not None
    refunds = httpx2.get(
        f"{localstripe}/v1/refunds",
        params={"payment_intent": attempt.reference or ""},
        headers={"Authorization": "Bearer sk_test_12345"},
        timeout=10,
    ).json()
    assert sorted(refund["amount"] for refund in refunds["data"]) == [2548, 5000]
    assert {refund["status"] for refund in refunds["data"]} == {"succeeded"}
    await provider.close()
