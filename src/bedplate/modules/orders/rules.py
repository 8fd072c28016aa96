"""What an order may consist of, and which steps it may take."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from bedplate.kernel.db import rounded
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.ids import is_id, new_id
from bedplate.modules.orders.public import (
    MAXIMUM_ITEMS,
    EmptyOrder,
    Order,
    OrderItem,
    OrderNotModifiable,
    OrderStatus,
    OrderTooLarge,
)

PREFIX = "order-"
MAXIMUM_PRICE = Decimal("1000000.00")
MAXIMUM_TOTAL = Decimal("9999999.99")
QUANTITY = range(1, 10_001)
PRODUCT_ID = range(1, 101)

# The state machine: into each status, and from where. Nothing else moves an order.
SOURCES: Mapping[OrderStatus, tuple[OrderStatus, ...]] = {
    OrderStatus.PENDING: (),
    OrderStatus.CONFIRMED: (OrderStatus.PENDING,),
    OrderStatus.PROCESSING: (OrderStatus.CONFIRMED,),
    OrderStatus.SHIPPED: (OrderStatus.PROCESSING,),
    OrderStatus.DELIVERED: (OrderStatus.SHIPPED,),
    OrderStatus.CANCELLED: (OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.PROCESSING),
}
# What a shop does with an order that is paid, one step after the other.
ADVANCES = frozenset({OrderStatus.PROCESSING, OrderStatus.SHIPPED, OrderStatus.DELIVERED})


def new_order_id() -> str:
    """`order-` and a UUIDv7."""
    return PREFIX + new_id()


def is_order_id(text: str) -> bool:
    """Whether text can be an order's id: any other is not worth a query."""
    return text.startswith(PREFIX) and is_id(text.removeprefix(PREFIX))


def items(given: Sequence[OrderItem]) -> list[OrderItem]:
    """The items of an order, their prices in whole minor units: a price is rounded, half up, before it is multiplied,
    so that an order's total is the sum of what it shows.

    Raises:
        EmptyOrder, OrderTooLarge, InvalidField.
    """
    if not given:
        raise EmptyOrder()
    if len(given) > MAXIMUM_ITEMS:
        raise OrderTooLarge(reason=f"An order may have at most {MAXIMUM_ITEMS} items")
    return [_item(f"items.{index}", item) for index, item in enumerate(given)]


def total(of: Sequence[OrderItem]) -> Decimal:
    """What all of them cost together: something, as nothing but a payment confirms an order.
    Raises OrderTooLarge, InvalidField."""
    amount = sum((item.quantity * item.price for item in of), Decimal("0.00"))
    if not amount:
        raise InvalidField(field="items", reason="The total of an order must be greater than 0")
    if amount > MAXIMUM_TOTAL:
        raise OrderTooLarge(reason=f"The total of an order must not exceed {MAXIMUM_TOTAL}")
    return amount


def refusal(order: Order, wanted: OrderStatus) -> OrderNotModifiable:
    """That an order cannot go from where it is to the wanted status."""
    present = order.status.value
    how = "is so already" if wanted is order.status else f"cannot become {wanted.value}"
    return OrderNotModifiable(status=present, reason=f"An order that is {present} {how}")


def _item(place: str, item: OrderItem) -> OrderItem:
    if len(item.product_id) not in PRODUCT_ID or not item.product_id.isprintable():
        raise InvalidField(
            field=f"{place}.product_id", reason="Product ID must be between 1 and 100 printable characters"
        )
    if item.quantity not in QUANTITY:
        raise InvalidField(field=f"{place}.quantity", reason="Quantity must be between 1 and 10000")
    # Before it is rounded: only numbers in this range are sure to be roundable.
    if not item.price.is_finite() or not 0 <= item.price <= MAXIMUM_PRICE:
        raise InvalidField(field=f"{place}.price", reason=f"Price must be between 0 and {MAXIMUM_PRICE}")
    return OrderItem(item.product_id, item.quantity, abs(rounded(item.price)))
