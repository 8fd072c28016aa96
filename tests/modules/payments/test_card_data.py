"""Card numbers and security codes are nowhere but in memory: not in the database or its log, in no event, no log line,
no error, no idempotency key, on every path that a payment can take."""

import asyncio
import base64
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from bedplate.kernel import failpoints
from bedplate.kernel.db import Base, Database
from bedplate.kernel.errors import Problem, Unavailable
from bedplate.kernel.paging import Slice
from bedplate.kernel.telemetry import JsonLines
from bedplate.models import DeadLetterRow, OutboxRow
from bedplate.modules.payments.provider import Provider, ProviderToken
from bedplate.modules.payments.public import InvalidPaymentMethod, PaymentMethod
from bedplate.modules.payments.sandbox import CARDS, Sandbox
from bedplate.modules.payments.stripe import Stripe
from tests.factories import TurnableClock
from tests.fakes.stripe_server import StripeServer
from tests.modules.payments.shop import Shop, card, once, open_shop
from tests.stores import everything_in_redis

CVV = "7391"
GOOD = ("4242424242424242", "5555555555554444", "378282246310005")
BROKEN = "4929123456789013"  # its check digit is wrong: somebody's number with a slip
NUMBERS = (*GOOD, *CARDS, BROKEN)
OTHER_DIGITS = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # ids
    r"|datetime\.datetime\([^)]*\)|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?"  # times
    r"|line \d+|\b\d{9,}\b|\.\d{3,}|[0-9a-f]{32,}|\$argon2\S+"  # places in the code, and digests
)


def forms(number: str) -> set[bytes]:
    """How a number may be written: plain, grouped, and in base64 and hexadecimal wherever it begins."""
    plain = number.encode()
    groups = [number[place : place + 4] for place in range(0, len(number), 4)]
    found = {
        plain,
        " ".join(groups).encode(),
        "-".join(groups).encode(),
        plain.hex().encode(),
        plain.hex().upper().encode(),
    }
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + plain)
        # Without the ends, which depend on what stands around it.
        found.add(encoded[4 if shift else 0 : len(encoded) - 4])
    return found


def test_a_number_is_found_in_every_form() -> None:
    for number in NUMBERS:
        places = [
            f"x{number}y".encode(),
            base64.b64encode(f"a{number}z".encode()),
            base64.b64encode(f"ab{number}".encode()),
            base64.b64encode(f"abc{number}0".encode()),
            number.encode().hex().encode(),
        ]
        assert all(any(form in place for form in forms(number)) for place in places), number


class Everything:
    """What a payment leaves behind, gathered to be searched."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def add(self, what: Any) -> None:
        self.seen.append(what if isinstance(what, bytes) else str(what).encode())

    def error(self, error: BaseException | None) -> None:
        while error is not None:
            self.add(f"{error} {error!r} {error.args}")
            if isinstance(error, Problem):
                self.add(orjson.dumps(error.details))
            error = error.__cause__ or error.__context__

    def assert_clean(self) -> None:
        content = b"\n".join(self.seen)
        assert [number for number in NUMBERS for form in forms(number) if form in content] == []
        words = re.findall(rb'"?cvv"?\s*[:=]|"?cvc"?\s*[:=]|card_?number"?\s*[:=]', content, re.IGNORECASE)
        assert words == []

    def assert_no_code(self) -> None:
        """The code is four digits, so it is looked for where no other digits stand."""
        for part in self.seen:
            readable = OTHER_DIGITS.sub(" ", part.decode(errors="replace"))
            place = readable.find(CVV)
            assert place < 0, readable[max(place - 40, 0) : place + 40]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What every logger says, whatever its level would be, as it would be written."""
    written: list[str] = []

    class Writing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Writing()
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(), logging.getLogger("bedplate"), logging.getLogger("httpx2")]
    levels = [each.level for each in loggers]
    logging.getLogger().addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    yield written
    logging.getLogger().removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def method(number: str) -> PaymentMethod:
    return card(number, CVV)


async def drive(shop: Shop, everything: Everything) -> None:
    """Payments of every card, down every path that ends in an error, and what follows from them."""
    await shop.pay(await shop.order(), method("5555555555554444"))
    for number in NUMBERS:
        order = await shop.order()
        asked = {"method": asdict(method(number)), "order": order.id}
        for point in ("before_tokenize", "after_tokenize", "after_commit"):
            failpoints.arm(f"payments.pay.{point}:raise")
            await attempt(everything, shop.pay(order, method(number), once(number, asked)))
        wrong = shop.request(order, method(number), amount=order.total + 1)
        await attempt(everything, shop.payments.pay(wrong, once(f"{number} wrong", asked)))
        await attempt(everything, shop.pay(order, PaymentMethod("cash", number, "12", "2025", CVV)))
        await attempt(everything, shop.pay(order, PaymentMethod("credit_card", number, "13", "2025", CVV)))
        await attempt(everything, shop.pay(order, PaymentMethod("credit_card", number, "12", "2025", f"{CVV}x")))
        await attempt(everything, shop.pay(order, method(number), once(f"{number} again", asked)))
    await gather(shop, everything)
    await shop.settle()
    for payment in (await shop.payments.list_payments(shop.user.id, Slice(100, 0))).items:
        everything.add(repr(payment))
        await attempt(everything, shop.payments.refund(payment.id, None, "a reason"))
    await gather(shop, everything)
    await shop.settle()


async def attempt(everything: Everything, work: Any) -> None:
    try:
        everything.add(repr(await work))
    except Exception as error:
        everything.error(error)


async def gather(shop: Shop, everything: Everything) -> None:
    """All rows, while something is on its way."""
    await gather_rows(shop, everything)
    assert await shop.db.first(select(OutboxRow.id)) is not None, "something is on its way"
    assert await shop.db.first(select(DeadLetterRow.id)) is None


async def test_no_card_is_left_anywhere(shop: Shop, lines: list[str], tmp_path: Path) -> None:
    everything = Everything()
    await drive(shop, everything)
    await gather_rows(shop, everything)
    for line in lines:
        everything.add(line)
    everything.assert_no_code()
    everything.assert_clean()
    add_files(everything, tmp_path)
    everything.assert_clean()
    assert any("an event could not be delivered" in line for line in lines), "there was something to be logged"


def add_files(everything: Everything, folder: Path) -> None:
    """Databases as they are on the disk: every page, also those that were given up, and the log."""
    for path in folder.glob("*.db*"):
        everything.add(path.read_bytes())


async def gather_rows(shop: Shop, everything: Everything) -> None:
    """All rows of all tables, as text: so what was said, and what was answered to a key, too."""
    for table in Base.metadata.sorted_tables:
        for row in await shop.db.all(select(table)):
            everything.add(repr(tuple(row)))
    if shop.documents is not None:
        for value in await everything_in_redis(shop.documents):
            everything.add(value)


async def test_the_search_would_find_what_is_kept(shop: Shop, tmp_path: Path) -> None:
    """The same search, with a provider whose tokens are the numbers."""
    careless = await open_shop_with(shop, Careless(shop.db, shop.clock))
    everything = Everything()
    await careless.pay(await careless.order(), method("4242424242424242"))
    await gather(careless, everything)
    with pytest.raises(AssertionError):
        everything.assert_clean()
    with pytest.raises(AssertionError):
        everything.assert_no_code()


class Careless(Sandbox):
    async def tokenize(self, method: PaymentMethod) -> ProviderToken:
        return ProviderToken(f"tok {method.card_number} {method.cvv}", "visa", "4242")


async def open_shop_with(shop: Shop, provider: Provider) -> Shop:
    shop.db.listeners.clear()
    return await open_shop(shop.db, shop.clock, provider)


class Broken(Sandbox):
    """A provider with a defect, and with an answer that quotes what was sent."""

    error: Exception = RuntimeError("a defect")

    async def tokenize(self, method: PaymentMethod) -> ProviderToken:
        raise self.error


async def test_a_defect_of_the_provider_shows_no_card(db: Database, clock: TurnableClock, lines: list[str]) -> None:
    provider = Broken(db, clock)
    shop = await open_shop(db, clock, provider)
    everything = Everything()
    for provider.error in (RuntimeError("a defect"), Unavailable(), InvalidPaymentMethod(reason="Refused")):
        order = await shop.order()
        for key in (None, once("key", asdict(method("4242424242424242")))):
            await attempt(everything, shop.pay(order, method("4242424242424242"), key))
    await gather_rows(shop, everything)
    for line in lines:
        everything.add(line)
    everything.assert_no_code()
    everything.assert_clean()


@asynccontextmanager
async def on_stripe(db: Database, clock: TurnableClock, folder: Path) -> AsyncIterator[tuple[Shop, StripeServer]]:
    async with StripeServer(str(folder / "stripe.db")) as server:
        provider = Stripe("sk_test_of_nobody", server.url)
        try:
            yield await open_shop(db, clock, provider), server
        finally:
            await provider.close()


async def test_stripe_alone_gets_the_card_and_nobody_quotes_it(
    db: Database,
    clock: TurnableClock,
    lines: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    everything = Everything()
    async with on_stripe(db, clock, tmp_path) as (shop, server):
        for fault in ("", "drop", "fail", "busy"):
            for number in ("4242424242424242", "4000000000009995", BROKEN):
                server.faults.next[fault] = 1
                order = await shop.order()
                await attempt(everything, shop.pay(order, method(number)))
                await attempt(everything, shop.pay(order, method(number)))
        await shop.settle()
        sent = "".join(body for _, path, _, body in server.requests if path == "/v1/payment_methods")
        others = "".join(body for _, path, _, body in server.requests if path != "/v1/payment_methods")
    assert "4242424242424242" in sent
    assert CVV in sent
    await gather_rows(shop, everything)
    printed = capfd.readouterr()
    for each in (*lines, others, printed.out, printed.err):
        everything.add(each)
    everything.assert_clean()
    add_files(everything, tmp_path)
    everything.assert_clean()
    assert any("Stripe refuses" in line for line in lines)


TALKATIVE = """
import asyncio, logging, sys
logging.basicConfig(level=logging.DEBUG)
from bedplate.modules.payments.public import PaymentMethod
from bedplate.modules.payments.stripe import Stripe
async def main():
    stripe = Stripe("sk_test_of_nobody", sys.argv[1])
    print(await stripe.tokenize(PaymentMethod("credit_card", sys.argv[2], "12", "2025", sys.argv[3])))
    await stripe.close()
asyncio.run(main())
"""


async def test_stripe_is_silent_even_where_it_is_told_to_log_everything(tmp_path: Path) -> None:
    async with StripeServer(str(tmp_path / "stripe.db")) as server:
        arguments = (sys.executable, "-c", TALKATIVE, server.url, "4242424242424242", CVV)
        process = await asyncio.create_subprocess_exec(
            *arguments,
            env={**os.environ, "STRIPE_LOG": "debug"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, len(server.requests)) == (0, 1), said
    assert b"pm_" in said
    everything = Everything()
    everything.add(said)
    everything.assert_clean()
    everything.assert_no_code()
