"""The built-in provider: deterministic by card number, exact about keys, and a judge that can be relied on."""

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import select

from bedplate.kernel.db import Database
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.ids import new_id
from bedplate.models import SandboxEntryRow
from bedplate.modules.payments.provider import Declined
from bedplate.modules.payments.public import PaymentMethod
from bedplate.modules.payments.sandbox import CARDS, DECLINES, Sandbox
from tests.factories import TurnableClock
from tests.modules.payments.shop import GOOD, TOTAL, card


@pytest.fixture
def sandbox(db: Database, clock: TurnableClock) -> Sandbox:
    return Sandbox(db, clock)


async def charged(sandbox: Sandbox, number: str = GOOD, key: str = "") -> str:
    token = (await sandbox.tokenize(card(number))).token
    return await sandbox.charge(token, TOTAL, "USD", key or f"pay-{new_id()}", "Order")


async def entries(sandbox: Sandbox) -> int:
    return len(await sandbox._db.all(select(SandboxEntryRow.key)))


async def test_a_token_says_brand_and_last_digits_and_holds_no_number(sandbox: Sandbox) -> None:
    for number in [GOOD, "378282246310005", *CARDS]:
        token = await sandbox.tokenize(card(number))
        assert token.last4 == number[-4:]
        assert token.brand == ("amex" if number[0] == "3" else "visa")
        assert number not in token.token
    nothing = await sandbox.tokenize(PaymentMethod("paypal"))
    assert (nothing.brand, nothing.last4) == (None, None)


async def test_the_same_key_gets_the_same_result_and_one_entry(sandbox: Sandbox) -> None:
    for number in [GOOD, *CARDS]:
        before = await entries(sandbox)
        token = (await sandbox.tokenize(card(number))).token
        outcomes = set()
        for _ in range(4):
            try:
                outcomes.add(await sandbox.charge(token, TOTAL, "USD", f"pay-{number}", "Order"))
            except Declined as declined:
                outcomes.add(declined.code)
            except Unavailable:
                continue
        assert len(outcomes) == 1, number
        assert await entries(sandbox) == before + 1
        assert (outcomes <= set(DECLINES.values())) == (CARDS.get(number) in DECLINES)


async def test_the_same_key_at_once_charges_once(sandbox: Sandbox) -> None:
    references = await asyncio.gather(*(charged(sandbox, key="pay-1") for _ in range(10)))
    assert len(set(references)) == 1
    assert await entries(sandbox) == 1


async def test_a_key_that_stands_for_something_else_moves_nothing(sandbox: Sandbox) -> None:
    await charged(sandbox, key="pay-1")
    for amount, currency in ((TOTAL + 1, "USD"), (TOTAL, "EUR")):
        with pytest.raises(RuntimeError):
            await sandbox.charge("tok_success_1", amount, currency, "pay-1", "Order")
    with pytest.raises(RuntimeError):
        await sandbox.refund("ch_pay-1", TOTAL, "USD", "pay-1")


async def test_a_lost_answer_was_charged_and_a_needed_retry_was_not(sandbox: Sandbox) -> None:
    for number, outcome in (("4000000000000077", "succeeded"), ("4000000000000119", "try_again")):
        with pytest.raises(Unavailable):
            await charged(sandbox, number, f"pay-{number}")
        row = await sandbox._db.first(select(SandboxEntryRow.__table__).where(SandboxEntryRow.key == f"pay-{number}"))
        assert row is not None
        assert (row.outcome, row.attempts) == (outcome, 1)


async def test_no_more_than_a_charge_is_given_back(sandbox: Sandbox) -> None:
    charge = await charged(sandbox)
    await sandbox.refund(charge, Decimal(70), "USD", "ref-1")
    for _ in range(2):
        with pytest.raises(Declined):
            await sandbox.refund(charge, Decimal(6), "USD", "ref-2")
    with pytest.raises(Declined):
        await sandbox.refund("ch_of_nobody", Decimal(1), "USD", "ref-3")
    assert await sandbox.refund(charge, Decimal(70), "USD", "ref-1") == "re_ref-1"
    await sandbox.refund(charge, Decimal("5.48"), "USD", "ref-4")
    await sandbox.ping()
    await sandbox.close()


async def test_of_many_refunds_at_once_only_what_was_charged_is_given_back(sandbox: Sandbox) -> None:
    charge = await charged(sandbox)
    outcomes = await asyncio.gather(
        *(sandbox.refund(charge, Decimal(10), "USD", f"ref-{number}") for number in range(12)), return_exceptions=True
    )
    assert sum(isinstance(each, str) for each in outcomes) == 7
    assert sum(isinstance(each, Declined) for each in outcomes) == 5
