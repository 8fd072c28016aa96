"""Orders, through their facade."""

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate import compose
from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.db import UniqueViolation
from bedplate.kernel.errors import InvalidField, Problem, StorageFailed, Unavailable
from bedplate.kernel.facade import Credentials
from bedplate.kernel.idempotency import IdempotencyKeyInWork, IdempotencyKeyReused
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.paging import Slice
from bedplate.kernel.remote import RemoteCaller, remote
from bedplate.kernel.security import Tokens
from bedplate.modules.identity.public import Users
from bedplate.modules.orders import rules
from bedplate.modules.orders.public import (
    EmptyOrder,
    InvalidOrderUser,
    Order,
    OrderItem,
    OrderNotFound,
    OrderNotModifiable,
    Orders,
    OrderStatus,
    OrderTooLarge,
)
from tests.conftest import DEPLOYMENTS
from tests.modules.orders.shop import ITEMS, WITNESS, Shop, on_every_store, once, outcomes, witness

CROWD = 50
EVERYTHING = Slice(100, 0)


def item(product_id: str = "prod-1", quantity: int = 1, price: str = "1.00") -> OrderItem:
    return OrderItem(product_id, quantity, Decimal(price))


@pytest.fixture
async def cut_off(shop: Shop) -> AsyncIterator[Orders]:
    """The same orders, in a process that cannot reach the users: nobody listens on that port."""
    async with RemoteCaller("http://127.0.0.1:9", Credentials(Tokens("0" * 32), Clock())) as caller:
        yield shop.service(remote(Users, caller), shop.clock)


async def test_a_new_order_is_pending_and_the_server_computes_what_it_costs(shop: Shop) -> None:
    buyer = await shop.buyer()
    before = shop.clock.now()
    order = await shop.orders.place(buyer.id, ITEMS)
    assert order.id.startswith("order-")
    assert is_id(order.id.removeprefix("order-"))
    assert (order.user_id, order.items, order.status) == (buyer.id, ITEMS, OrderStatus.PENDING)
    assert (str(order.total), order.payment_id, order.cancelled_at) == ("75.48", None, None)
    assert before <= order.created_at == order.updated_at <= shop.clock.now()
    assert await shop.orders.get_order(order.id) == order


@pytest.mark.parametrize(
    ("items", "total"),
    [
        ([item(price="0"), item(price="0.01")], "0.01"),
        ([item(price="-0.0"), item(price="0.01")], "0.01"),
        ([item(price="29.99", quantity=2), item(price="15.5")], "75.48"),
        ([item(price="0.1"), item(price="0.2")], "0.30"),
        ([item(price="0.30000000000000004")], "0.30"),
        ([item(price="0.005")], "0.01"),
        ([item(price="0.0049999"), item(price="0.01")], "0.01"),
        ([item(price="2.675", quantity=3)], "8.04"),
        ([item(price="1e-400"), item(price="0.01")], "0.01"),
        ([item(price="1E+3", quantity=2)], "2000.00"),
        ([item(price="0.01", quantity=10_000)] * 100, "10000.00"),
        ([item(price="1000000.00", quantity=9), item(price="999999.99")], "9999999.99"),
    ],
)
def test_totals_are_exact_sums_of_prices_rounded_half_up(items: list[OrderItem], total: str) -> None:
    kept = rules.items(items)
    assert str(rules.total(kept)) == total
    assert {each.price.as_tuple().exponent for each in kept} == {-2}


async def test_what_was_computed_is_what_is_kept(shop: Shop) -> None:
    buyer = await shop.buyer()
    items = [item(price="0.005"), item(price="1E+3", quantity=2), item(price="-0"), item("ü 王 \U0001f381", 10_000)]
    order = await shop.orders.place(buyer.id, items)
    assert [str(each.price) for each in order.items] == ["0.01", "1000.00", "0.00", "1.00"]
    assert str(order.total) == "12000.01"
    kept = await shop.orders.get_order(order.id)
    assert kept == order
    assert [str(each.price) for each in kept.items] == [str(each.price) for each in order.items]
    assert str(kept.total) == str(order.total)


BROKEN_RULES: list[tuple[list[OrderItem], type[Problem], str]] = [
    ([], EmptyOrder, "Order must contain at least one item"),
    ([item()] * 101, OrderTooLarge, "An order may have at most 100 items"),
    ([item(price="0")] * 2, InvalidField, "The total of an order must be greater than 0"),
    ([item(price="0.0049", quantity=10_000)], InvalidField, "The total of an order must be greater than 0"),
    ([item(price="1000000", quantity=10)], OrderTooLarge, "The total of an order must not exceed 9999999.99"),
    ([item(""), item()], InvalidField, "Product ID must be between 1 and 100 printable characters"),
    ([item("p" * 101)], InvalidField, "Product ID must be between 1 and 100 printable characters"),
    ([item("nul\0")], InvalidField, "Product ID must be between 1 and 100 printable characters"),
    ([item("line\nend")], InvalidField, "Product ID must be between 1 and 100 printable characters"),
    ([item("half \ud800")], InvalidField, "Product ID must be between 1 and 100 printable characters"),
    ([item(quantity=0)], InvalidField, "Quantity must be between 1 and 10000"),
    ([item(quantity=-1)], InvalidField, "Quantity must be between 1 and 10000"),
    ([item(quantity=10_001)], InvalidField, "Quantity must be between 1 and 10000"),
    ([item(quantity=2**70)], InvalidField, "Quantity must be between 1 and 10000"),
    ([item(price="-0.001")], InvalidField, "Price must be between 0 and 1000000.00"),
    ([item(price="1000000.001")], InvalidField, "Price must be between 0 and 1000000.00"),
    ([item(price="1e400")], InvalidField, "Price must be between 0 and 1000000.00"),
    ([item(price="NaN")], InvalidField, "Price must be between 0 and 1000000.00"),
    ([item(price="sNaN")], InvalidField, "Price must be between 0 and 1000000.00"),
    ([item(price="Infinity")], InvalidField, "Price must be between 0 and 1000000.00"),
]


@pytest.mark.parametrize(("items", "problem", "reason"), BROKEN_RULES)
def test_an_order_that_breaks_a_rule_is_told_which(items: list[OrderItem], problem: type[Problem], reason: str) -> None:
    with pytest.raises(problem) as refused:
        rules.total(rules.items(items))
    assert str(refused.value) == reason


def test_a_broken_rule_names_the_item_and_its_field() -> None:
    for broken, field in ((item(""), "product_id"), (item(quantity=0), "quantity"), (item(price="-1"), "price")):
        with pytest.raises(InvalidField) as refused:
            rules.items([item(), item(), broken])
        assert refused.value.details["field"] == f"items.2.{field}"


@given(st.text(), st.integers(), st.decimals())
def test_the_rules_answer_any_item_with_a_value_or_a_reason(product_id: str, quantity: int, price: Decimal) -> None:
    try:
        (kept,) = rules.items([OrderItem(product_id, quantity, price)])
    except InvalidField as refused:
        assert refused.details["reason"]
    else:
        assert (kept.product_id, kept.quantity) == (product_id, quantity)
        assert 2 * abs(kept.price - price) <= Decimal("0.01")
        assert kept.price.as_tuple().sign == 0


async def test_an_order_that_breaks_a_rule_leaves_nothing(shop: Shop) -> None:
    buyer = await shop.buyer()
    for items in ([], [item()] * 101, [item(price="1000000", quantity=10)], [item(quantity=0)]):
        with pytest.raises(Problem):
            await shop.orders.place(buyer.id, items)
    assert (await shop.rows(), await shop.said()) == (0, [])


async def test_only_an_account_that_may_act_has_orders(shop: Shop) -> None:
    admin = await shop.buyer()
    disabled = await shop.buyer()
    await shop.users.disable_user(disabled.id, admin.id)
    deleted = await shop.buyer()
    await shop.users.delete_user(deleted.id, admin.id)
    for user_id in (disabled.id, deleted.id, new_id(), "", "1", "\0", "usr_x", "x" * 10_000, f"{admin.id} "):
        with pytest.raises(InvalidOrderUser):
            await shop.orders.place(user_id, ITEMS)
    assert (await shop.rows(), await shop.said()) == (0, [])
    await shop.users.enable_user(disabled.id, admin.id)
    assert await shop.orders.place(disabled.id, ITEMS)


async def test_a_user_is_the_same_in_capital_letters(shop: Shop) -> None:
    buyer = await shop.buyer()
    order = await shop.orders.place(buyer.id.upper(), ITEMS)
    assert order.user_id == buyer.id
    assert (await shop.orders.list_orders(buyer.id.upper(), None, EVERYTHING)).items == [order]


async def test_no_order_is_placed_while_the_users_cannot_be_asked(shop: Shop, cut_off: Orders) -> None:
    buyer = await shop.buyer()
    with pytest.raises(Unavailable):
        await cut_off.place(buyer.id, ITEMS)
    assert (await shop.rows(), await shop.said()) == (0, [])


async def test_an_unknown_id_is_not_found_whatever_it_looks_like(shop: Shop) -> None:
    order = await shop.order()
    unknown = ("", "order-", "order-123", "order-\0", "'; --", "x" * 10_000, new_id(), f"order-{new_id()}")
    for order_id in (*unknown, order.id.removeprefix("order-"), f"{order.id} ", order.id.replace("order", "pay")):
        with pytest.raises(OrderNotFound):
            await shop.orders.get_order(order_id)
        with pytest.raises(OrderNotFound):
            await shop.orders.confirm(order_id, "pay-1")
        for status in OrderStatus:
            with pytest.raises(OrderNotFound):
                await shop.orders.advance(order_id, status)
        with pytest.raises(OrderNotFound):
            await shop.orders.cancel(order_id, "no reason")
        await shop.orders.cancel_unpaid(order_id, "no reason")
    assert await shop.orders.get_order(order.id) == order
    assert await shop.types_said() == ["order_created"]


@given(st.text())
def test_any_text_can_be_asked_whether_it_is_an_id(text: str) -> None:
    assert not rules.is_order_id(text)
    assert not rules.is_order_id(f"order-{text}")
    assert rules.is_order_id(rules.new_order_id())


async def test_each_step_changes_what_it_is_about_and_nothing_else(shop: Shop) -> None:
    order = await shop.order()
    fixed = (order.id, order.user_id, order.items, order.total, order.created_at)

    async def check(after: Order, before: Order, status: OrderStatus) -> Order:
        assert (after.id, after.user_id, after.items, after.total, after.created_at) == fixed
        assert after.status is status
        assert before.updated_at < after.updated_at <= shop.clock.now()
        assert await shop.orders.get_order(order.id) == after
        shop.clock.advance(1)
        return after

    shop.clock.advance(1)
    last = await check(await shop.orders.confirm(order.id, "pay-1"), order, OrderStatus.CONFIRMED)
    assert (last.payment_id, last.cancelled_at) == ("pay-1", None)
    for status in (OrderStatus.PROCESSING, OrderStatus.SHIPPED, OrderStatus.DELIVERED):
        last = await check(await shop.orders.advance(order.id, status), last, status)
        assert (last.payment_id, last.cancelled_at) == ("pay-1", None)


async def test_a_cancelled_order_says_when_and_keeps_its_payment(shop: Shop) -> None:
    for status in (OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.PROCESSING):
        order = await shop.order(status)
        shop.clock.advance(1)
        cancelled = await shop.orders.cancel(order.id, "no longer needed")
        assert (cancelled.status, cancelled.payment_id) == (OrderStatus.CANCELLED, order.payment_id)
        assert order.updated_at < cancelled.updated_at == cancelled.cancelled_at
        assert await shop.orders.get_order(order.id) == cancelled


# Requirement: pending, confirmed, processing, shipped, delivered; cancelled from the first three; nothing else.
ALLOWED = {
    ("pending", "confirmed"),
    ("confirmed", "processing"),
    ("processing", "shipped"),
    ("shipped", "delivered"),
    ("pending", "cancelled"),
    ("confirmed", "cancelled"),
    ("processing", "cancelled"),
}


async def test_there_are_these_steps_and_no_others(shop: Shop) -> None:
    buyer = await shop.buyer()
    taken = set()
    for source in OrderStatus:
        for target in OrderStatus:
            order = await shop.order(source, buyer.id)
            try:
                if target is OrderStatus.CONFIRMED:
                    changed = await shop.orders.confirm(order.id, "pay-2")
                elif target is OrderStatus.CANCELLED:
                    changed = await shop.orders.cancel(order.id, "no reason")
                else:
                    changed = await shop.orders.advance(order.id, target)
            except OrderNotModifiable as refused:
                assert refused.details["status"] == source.value
                assert await shop.orders.get_order(order.id) == order
            else:
                assert changed.status is target
                taken.add((source.value, target.value))
    assert taken == ALLOWED


async def test_an_order_is_not_confirmed_or_cancelled_by_advancing_it(shop: Shop) -> None:
    order = await shop.order()
    for status in (OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.CANCELLED):
        with pytest.raises(OrderNotModifiable):
            await shop.orders.advance(order.id, status)
    assert await shop.orders.get_order(order.id) == order


async def test_confirming_again_by_the_same_payment_changes_nothing(shop: Shop) -> None:
    order = await shop.order()
    confirmed = await shop.orders.confirm(order.id, "pay-1")
    shop.clock.advance(1)
    assert await shop.orders.confirm(order.id, "pay-1") == confirmed
    with pytest.raises(OrderNotModifiable):
        await shop.orders.confirm(order.id, "pay-2")
    assert await shop.types_said(order.id) == ["order_created", "order_confirmed"]
    await shop.orders.advance(order.id, OrderStatus.PROCESSING)
    with pytest.raises(OrderNotModifiable):
        await shop.orders.confirm(order.id, "pay-1")


async def test_what_is_unpaid_is_cancelled_and_what_is_paid_is_not(shop: Shop) -> None:
    buyer = await shop.buyer()
    for status in OrderStatus:
        order = await shop.order(status, buyer.id)
        await shop.orders.cancel_unpaid(order.id, "payment_failed")
        now = await shop.orders.get_order(order.id)
        if status is OrderStatus.PENDING:
            assert (now.status, now.cancelled_at) == (OrderStatus.CANCELLED, now.updated_at)
            assert (await shop.said(order.id))[-1]["data"]["reason"] == "payment_failed"
        else:
            assert now == order


async def test_lists_show_one_users_orders_newest_first_with_the_exact_total(shop: Shop) -> None:
    buyer, other = await shop.buyer(), await shop.buyer()
    placed = []
    for _ in range(5):
        placed.append(await shop.orders.place(buyer.id, ITEMS))
        await shop.orders.place(other.id, ITEMS)
        shop.clock.advance(1)
    newest_first = placed[::-1]
    for limit in range(1, 7):
        for offset in range(7):
            page = await shop.orders.list_orders(buyer.id, None, Slice(limit, offset))
            assert (page.items, page.total) == (newest_first[offset : offset + limit], 5), (limit, offset)
    beyond = await shop.orders.list_orders(buyer.id, None, Slice(10, 2**31))
    assert (beyond.items, beyond.total) == ([], 5)
    for nobody in (new_id(), "", "\0", "usr_x"):
        none = await shop.orders.list_orders(nobody, None, EVERYTHING)
        assert (none.items, none.total) == ([], 0)


async def test_orders_of_the_same_moment_are_in_the_order_they_were_placed(shop: Shop) -> None:
    buyer = await shop.buyer()
    moment = shop.clock.now()

    class Stopped(Clock):
        def now(self):  # type: ignore[no-untyped-def]
            return moment

    orders = shop.service(shop.users, Stopped())
    placed = [await orders.place(buyer.id, ITEMS) for _ in range(20)]
    assert (await orders.list_orders(buyer.id, None, EVERYTHING)).items == placed[::-1]


async def test_lists_of_one_status_follow_every_step(shop: Shop) -> None:
    buyer = await shop.buyer()
    orders = shop.orders

    async def listed(status: OrderStatus) -> list[str]:
        page = await orders.list_orders(buyer.id, status, EVERYTHING)
        one = await orders.list_orders(buyer.id, status, Slice(1, 0))
        assert page.total == len(page.items) == one.total
        assert {order.status for order in page.items} <= {status}
        return [order.id for order in page.items]

    first, second = [(await orders.place(buyer.id, ITEMS)).id for _ in range(2)]
    assert await listed(OrderStatus.PENDING) == [second, first]
    await orders.confirm(first, "pay-1")
    assert (await listed(OrderStatus.PENDING), await listed(OrderStatus.CONFIRMED)) == ([second], [first])
    await orders.cancel(second, "no reason")
    assert (await listed(OrderStatus.PENDING), await listed(OrderStatus.CANCELLED)) == ([], [second])
    await orders.advance(first, OrderStatus.PROCESSING)
    assert (await listed(OrderStatus.CONFIRMED), await listed(OrderStatus.PROCESSING)) == ([], [first])


async def test_a_list_shows_a_hundred_at_most(shop: Shop) -> None:
    buyer = await shop.buyer()
    for _ in range(101):
        await shop.orders.place(buyer.id, ITEMS)
    page = await shop.orders.list_orders(buyer.id, None, Slice(1000, 0))
    assert (len(page.items), page.total) == (100, 101)
    for bad in (Slice(0, -1), Slice(-5, -5)):
        page = await shop.orders.list_orders(buyer.id, None, bad)
        assert (len(page.items), page.total) == (1, 101)


async def test_events_are_on_the_wire_as_the_document_prints_them(shop: Shop) -> None:
    placed = await shop.order()
    confirmed = await shop.orders.confirm(placed.id, "pay-456")
    processing = await shop.orders.advance(placed.id, OrderStatus.PROCESSING)
    cancelled = await shop.orders.cancel(placed.id, "Order cancelled")
    said = await shop.said()
    envelopes = [(event.pop("event_id"), event.pop("occurred_at")) for event in said]
    assert len({event_id for event_id, _ in envelopes}) == 4
    assert all(is_id(event_id) for event_id, _ in envelopes)
    assert [at for _, at in envelopes] == [
        iso(moment) for moment in (placed.created_at, confirmed.updated_at, processing.updated_at, cancelled.updated_at)
    ]
    assert cancelled.cancelled_at is not None
    assert said == [
        {
            "event_type": "order_created",
            "order_id": placed.id,
            "user_id": placed.user_id,
            "data": {
                "total_amount": 75.48,
                "items": [
                    {"product_id": "prod-1", "quantity": 2, "price": 29.99},
                    {"product_id": "prod-2", "quantity": 1, "price": 15.5},
                ],
                "created_at": iso(placed.created_at),
            },
        },
        {
            "event_type": "order_confirmed",
            "order_id": placed.id,
            "data": {"payment_id": "pay-456", "confirmed_at": iso(confirmed.updated_at)},
        },
        {
            "event_type": "order_status_changed",
            "order_id": placed.id,
            "user_id": placed.user_id,
            "data": {
                "previous_status": "confirmed",
                "status": "processing",
                "changed_at": iso(processing.updated_at),
            },
        },
        {
            "event_type": "order_cancelled",
            "order_id": placed.id,
            "user_id": placed.user_id,
            "data": {"reason": "Order cancelled", "cancelled_at": iso(cancelled.cancelled_at)},
        },
    ]


@pytest.mark.parametrize("world", DEPLOYMENTS, indirect=True)
async def test_what_cannot_be_said_does_not_happen(shop: Shop) -> None:
    order = await shop.order()
    # The second of two rows for one consumer breaks the outbox's primary key, in the transaction of the change.
    shop.db.routes = {name: [WITNESS, WITNESS] for name in shop.db.routes}
    for act in (
        lambda: shop.orders.place(order.user_id, ITEMS),
        lambda: shop.orders.confirm(order.id, "pay-1"),
        lambda: shop.orders.cancel(order.id, "no reason"),
        lambda: shop.orders.cancel_unpaid(order.id, "no reason"),
    ):
        with pytest.raises((UniqueViolation, StorageFailed, Unavailable)):
            await act()
    assert (await shop.rows(), await shop.types_said()) == (1, ["order_created"])
    assert await shop.orders.get_order(order.id) == order


async def test_the_same_request_under_the_same_key_is_the_same_order(shop: Shop) -> None:
    buyer = await shop.buyer()
    order = await shop.orders.place(buyer.id, ITEMS, once())
    shop.clock.advance(1)
    for _ in range(3):
        assert await shop.orders.place(buyer.id, ITEMS, once()) == order
    assert (await shop.rows(), await shop.types_said()) == (1, ["order_created"])
    await shop.orders.confirm(order.id, "pay-1")
    assert await shop.orders.place(buyer.id, ITEMS, once()) == order  # the answer of then, not the order of now


async def test_a_key_stands_for_one_request_of_one_caller(shop: Shop) -> None:
    buyer = await shop.buyer()
    order = await shop.orders.place(buyer.id, ITEMS, once(body="a"))
    with pytest.raises(IdempotencyKeyReused):
        await shop.orders.place(buyer.id, [item()], once(body="b"))
    others = [once("key-2", "a"), once(body="a", scope="another caller")]
    assert len({order.id, *[(await shop.orders.place(buyer.id, ITEMS, other)).id for other in others]}) == 3
    assert await shop.rows() == 3


async def test_many_at_once_under_one_key_place_one_order(shop: Shop) -> None:
    buyer = await shop.buyer()
    answers, refusals = await outcomes([lambda: shop.orders.place(buyer.id, ITEMS, once())] * CROWD)
    assert {type(refusal) for refusal in refusals} <= {IdempotencyKeyInWork}
    order = await shop.orders.place(buyer.id, ITEMS, once())
    assert answers
    assert all(answer == order for answer in answers)
    assert (await shop.rows(), await shop.types_said()) == (1, ["order_created"])


async def test_a_refusal_is_an_answer_too(shop: Shop) -> None:
    admin, buyer = await shop.buyer(), await shop.buyer()
    await shop.users.disable_user(buyer.id, admin.id)
    with pytest.raises(InvalidOrderUser):
        await shop.orders.place(buyer.id, ITEMS, once())
    await shop.users.enable_user(buyer.id, admin.id)
    with pytest.raises(InvalidOrderUser):
        await shop.orders.place(buyer.id, ITEMS, once())
    assert await shop.orders.place(buyer.id, ITEMS, once("another key"))
    assert await shop.rows() == 1


async def test_that_somebody_was_away_is_no_answer(shop: Shop, cut_off: Orders) -> None:
    buyer = await shop.buyer()
    with pytest.raises(Unavailable):
        await cut_off.place(buyer.id, ITEMS, once())
    order = await shop.orders.place(buyer.id, ITEMS, once())
    assert await cut_off.place(buyer.id, ITEMS, once()) == order  # what was answered needs no users
    assert await shop.rows() == 1


async def test_cancelling_under_a_key_is_answered_again(shop: Shop) -> None:
    order = await shop.order()
    cancelled = await shop.orders.cancel(order.id, "no reason", once())
    assert await shop.orders.cancel(order.id, "no reason", once()) == cancelled
    for _ in range(2):
        with pytest.raises(OrderNotModifiable) as refused:
            await shop.orders.cancel(order.id, "no reason", once("another key"))
        assert refused.value.details == {"status": "cancelled", "reason": "An order that is cancelled is so already"}
    assert await shop.types_said(order.id) == ["order_created", "order_cancelled"]


async def test_of_many_cancellations_one_succeeds(shop: Shop) -> None:
    for status in (OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.PROCESSING):
        order = await shop.order(status)
        (winner,), refusals = await outcomes([lambda order=order: shop.orders.cancel(order.id, "no reason")] * CROWD)
        assert {(type(each), each.details["status"]) for each in refusals if isinstance(each, Problem)} == {
            (OrderNotModifiable, "cancelled")
        }
        assert len(refusals) == CROWD - 1
        assert await shop.orders.get_order(order.id) == winner
        assert (await shop.types_said(order.id)).count("order_cancelled") == 1


async def test_of_many_advances_one_succeeds(shop: Shop) -> None:
    order = await shop.order(OrderStatus.CONFIRMED)
    for status in (OrderStatus.PROCESSING, OrderStatus.SHIPPED, OrderStatus.DELIVERED):
        (winner,), refusals = await outcomes([lambda status=status: shop.orders.advance(order.id, status)] * CROWD)
        assert [type(each) for each in refusals] == [OrderNotModifiable] * (CROWD - 1)
        assert await shop.orders.get_order(order.id) == winner
    assert await shop.types_said(order.id) == ["order_created", "order_confirmed", *["order_status_changed"] * 3]


async def test_of_many_payments_one_confirms(shop: Shop) -> None:
    order = await shop.order()
    attempts = [lambda index=index: shop.orders.confirm(order.id, f"pay-{index}") for index in range(CROWD)]
    (winner,), refusals = await outcomes(attempts)
    assert [type(each) for each in refusals] == [OrderNotModifiable] * (CROWD - 1)
    assert await shop.orders.get_order(order.id) == winner
    said = await shop.said(order.id)
    assert [event["data"].get("payment_id") for event in said] == [None, winner.payment_id]


async def test_one_payment_that_confirms_many_times_does_it_once(shop: Shop) -> None:
    order = await shop.order()
    answers, refusals = await outcomes([lambda: shop.orders.confirm(order.id, "pay-1")] * CROWD)
    assert refusals == []
    assert all(answer == answers[0] for answer in answers)
    assert await shop.types_said(order.id) == ["order_created", "order_confirmed"]


async def test_of_confirming_and_cancelling_at_once_one_wins_and_is_said(shop: Shop) -> None:
    buyer = await shop.buyer()
    for run in range(10):
        order = await shop.order(user_id=buyer.id)
        kinds = [
            lambda order=order: shop.orders.confirm(order.id, "pay-1"),
            lambda order=order: shop.orders.cancel_unpaid(order.id, "payment_failed"),
        ]
        attempts = [kinds[(index + run) % 2] for index in range(CROWD)]
        _, refusals = await outcomes(attempts)
        assert {type(each) for each in refusals} <= {OrderNotModifiable}
        end = await shop.orders.get_order(order.id)
        assert await shop.types_said(order.id) == ["order_created", f"order_{end.status.value}"]
        assert len(refusals) == (0 if end.status is OrderStatus.CONFIRMED else CROWD // 2)


@on_every_store
async def test_what_two_processes_want_at_once_happens_once(shop: Shop) -> None:
    async with compose.running(shop.world.settings, shop.clock, deliver=False) as neighbour:
        assert neighbour.database is not None
        witness(neighbour.database)
        both = [shop.orders, neighbour.get(Orders)]
        for _ in range(5):
            order = await shop.order()
            attempts = [
                lambda order=order, index=index: both[index % 2].confirm(order.id, f"pay-{index}")
                for index in range(CROWD)
            ]
            (winner,), refusals = await outcomes(attempts)
            assert [type(each) for each in refusals] == [OrderNotModifiable] * (CROWD - 1)
            assert [await each.get_order(order.id) for each in both] == [winner] * 2
            assert await shop.types_said(order.id) == ["order_created", "order_confirmed"]
        answers, refusals = await outcomes(
            [lambda index=index: both[index % 2].place(winner.user_id, ITEMS, once()) for index in range(CROWD)]
        )
        assert {type(refusal) for refusal in refusals} <= {IdempotencyKeyInWork}
        assert len({answer.id for answer in answers}) == 1
        assert await shop.rows() == 5 + 1
