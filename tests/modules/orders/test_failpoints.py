"""A process that fails anywhere in the work of orders: whoever asked asks again, and then it is as if nothing had
happened."""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from bedplate.kernel.failpoints import FailpointReached, arm
from bedplate.modules.orders.public import Order, OrderStatus
from tests.failpoints import of_module
from tests.modules.orders.shop import ITEMS, Shop, on_every_store, once

PLACING = [point for point in of_module("orders") if ".place." in point]
STEPPING = [point for point in of_module("orders") if ".step." in point]


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


async def failing_once(point: str, act: Callable[[], Awaitable[Order]]) -> Order:
    """As a client does that got no answer: the same again."""
    arm(f"{point}:raise")
    with pytest.raises(FailpointReached):
        await act()
    return await act()


def test_every_failpoint_is_tried_here() -> None:
    assert sorted([*PLACING, *STEPPING]) == sorted(of_module("orders"))
    assert PLACING
    assert STEPPING


@on_every_store
@pytest.mark.parametrize("point", PLACING)
async def test_an_order_that_failed_anywhere_is_placed_once(shop: Shop, point: str) -> None:
    buyer = await shop.buyer()
    order = await failing_once(point, lambda: shop.orders.place(buyer.id, ITEMS, once()))
    assert await shop.orders.get_order(order.id) == order
    assert (await shop.rows(), await shop.types_said()) == (1, ["order_created"])


@on_every_store
@pytest.mark.parametrize("point", STEPPING)
async def test_a_step_that_failed_anywhere_is_taken_once(shop: Shop, point: str) -> None:
    confirmed, cancelled = await shop.order(), await shop.order()
    end = await failing_once(point, lambda: shop.orders.confirm(confirmed.id, "pay-1"))
    assert end.status is OrderStatus.CONFIRMED
    assert await shop.types_said(confirmed.id) == ["order_created", "order_confirmed"]
    end = await failing_once(point, lambda: shop.orders.cancel(cancelled.id, "no reason", once()))
    assert end.status is OrderStatus.CANCELLED
    assert await shop.types_said(cancelled.id) == ["order_created", "order_cancelled"]
