"""Redis is killed in the middle of payments, and started again: what was acknowledged is there, and charged once."""

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.idempotency import IdempotencyKeyInWork
from bedplate.kernel.sqlite import SqliteDatabase
from bedplate.models import PaymentRow
from bedplate.modules.orders.public import Order, OrderStatus
from bedplate.modules.payments.public import Payment, PaymentStatus
from bedplate.modules.payments.sandbox import CHARGE
from tests.factories import TurnableClock
from tests.kernel.servers import RedisServer
from tests.modules.payments.shop import TOTAL, Shop, once, open_shop, payments_at

SHOPPERS = 8
PAYMENTS = 8
KILLS = 3


class Mall:
    """Shoppers who pay, each of them again until there is an answer."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.acknowledged: list[Payment] = []
        self.refused = 0

    async def shopper(self, orders: list[Order]) -> None:
        for order in orders:
            payment = await self.answered(order)
            self.acknowledged.append(payment)
            if len(self.acknowledged) % 3 == 0:
                await self.shop.relay.drain()

    async def answered(self, order: Order) -> Payment:
        key = once(order.id)
        while True:
            try:
                return await self.shop.pay(order, once=key)
            except Unavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
            except IdempotencyKeyInWork:  # of the attempt that Redis did not answer, until its time is over
                self.shop.clock.advance(5)


async def kill_now_and_then(server: RedisServer, mall: Mall) -> None:
    chance = random.Random(7)
    for number in range(1, KILLS + 1):
        enough = number * SHOPPERS * PAYMENTS // (KILLS + 2)
        while len(mall.acknowledged) < enough:  # noqa: ASYNC110  # shoppers know nothing of it
            await asyncio.sleep(0.001)
        await asyncio.sleep(chance.random() / 100)
        server.kill()
        await asyncio.to_thread(server.start)


@pytest.mark.timeout(120)
async def test_what_was_acknowledged_survives_a_killed_redis_and_is_charged_once(
    tmp_path: Path, sqlite_template: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "shop.db")
    db = SqliteDatabase(str(tmp_path / "shop.db"))
    db._bare.execute("PRAGMA synchronous=OFF")  # nothing here is about this disk
    with RedisServer(tmp_path / "redis") as server:
        async with payments_at(db, server.url):
            shop = await open_shop(db, TurnableClock())
            mall = Mall(shop)
            orders = [[await shop.order() for _ in range(PAYMENTS)] for _ in range(SHOPPERS)]
            await asyncio.gather(*(mall.shopper(each) for each in orders), kill_now_and_then(server, mall))
            assert len(mall.acknowledged) == len({each.id for each in mall.acknowledged}) == SHOPPERS * PAYMENTS
            assert mall.refused, "the kills were noticed"
            await shop.settle()
            for payment in mall.acknowledged:
                assert (await shop.payments.get_payment(payment.id)).status is PaymentStatus.COMPLETED
                order = await shop.orders.get_order(payment.order_id)
                assert (order.status, order.payment_id) == (OrderStatus.CONFIRMED, payment.id)
            charges = await shop.ledger(CHARGE)
            assert sorted(each.key for each in charges) == sorted(each.id for each in mall.acknowledged)
            assert await shop.moved() == await shop.booked() == TOTAL * SHOPPERS * PAYMENTS
            assert len(await shop.rows(PaymentRow)) == SHOPPERS * PAYMENTS
    await db.close()
