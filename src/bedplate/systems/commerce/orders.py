"""Commerce API documentation: Order Service API."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

from bedplate.kernel.http import Query, Text
from bedplate.kernel.ids import is_id
from bedplate.kernel.paging import MAXIMUM_OFFSET, Slice
from bedplate.modules.orders.public import MAXIMUM_ITEMS, InvalidOrderUser, Order, OrderItem, OrderStatus
from bedplate.systems.commerce.deps import (
    SERVICE_KEY,
    AnyCaller,
    CheckoutDep,
    OrdersDep,
    OrderToMove,
    OwnList,
    OwnOrder,
    documented,
)
from bedplate.systems.commerce.money import Price

router = APIRouter(tags=["orders"])

CANCELLED = "Cancelled on request"


def _text(value: object) -> object:
    return value if isinstance(value, str) else ""


def _list(value: object) -> object:
    # Before each of them is looked at: half a million wrong ones fit into a body, and all would be told of.
    if isinstance(value, list) and len(value) > MAXIMUM_ITEMS:
        raise ValueError(f"Input should have {MAXIMUM_ITEMS} items at most")
    return [] if value is None else value


def _required(**rules: JsonValue) -> Callable[[JsonDict], None]:
    """The document's schema of a field that has a default only here."""

    def change(schema: JsonDict) -> None:
        del schema["default"]
        schema.update(rules)

    return change


class ItemIn(BaseModel):
    """`price`: of one piece."""

    product_id: Annotated[Text, Field(min_length=1, max_length=100)]
    quantity: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    price: Price

    model_config = ConfigDict(alias_generator=AliasGenerator(validation_alias=to_camel))


class OrderIn(BaseModel):
    """A missing user or list counts as an empty one, so that it is refused with the document's code."""

    user_id: Annotated[Text, BeforeValidator(_text)] = Field("", json_schema_extra=_required(format="uuid"))
    items: Annotated[list[ItemIn], BeforeValidator(_list)] = Field(
        [], json_schema_extra=_required(minItems=1, maxItems=MAXIMUM_ITEMS)
    )

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel),
        json_schema_extra={
            "required": ["userId", "items"],
            "example": {
                "userId": "550e8400-e29b-41d4-a716-446655440001",
                "items": [
                    {"productId": "prod-1", "quantity": 2, "price": 29.99},
                    {"productId": "prod-2", "quantity": 1, "price": 15.50},
                ],
            },
        },
    )

    @property
    def owner_id(self) -> str:
        """Raises InvalidOrderUser for what is no user's id."""
        if not is_id(self.user_id):
            raise InvalidOrderUser()
        return self.user_id.lower()

    def lines(self) -> list[OrderItem]:
        return [OrderItem(item.product_id, item.quantity, item.price) for item in self.items]


class StatusIn(BaseModel):
    """`paymentId`: what the order was paid with; needed for `confirmed`."""

    status: OrderStatus
    payment_id: Annotated[Text, Field(max_length=64)] | None = None

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel),
        json_schema_extra={"example": {"status": "confirmed", "paymentId": "pay-456"}},
    )


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True, alias_generator=AliasGenerator(serialization_alias=to_camel))


class ItemOut(_Out):
    product_id: str
    quantity: int
    price: float


class NewOrderOut(_Out):
    id: str
    user_id: str
    items: list[ItemOut]
    status: OrderStatus
    total: float = Field(serialization_alias="totalAmount")
    created_at: datetime


class OrderOut(NewOrderOut):
    """`paymentId`: null until it is paid. `cancelledAt` is there once it is cancelled."""

    payment_id: str | None
    updated_at: datetime
    cancelled_at: datetime | None = Field(None, exclude_if=lambda at: at is None)


class CancelledOut(_Out):
    id: str
    status: OrderStatus
    cancelled_at: datetime


class OrderPageOut(BaseModel):
    orders: list[OrderOut]
    total: int
    limit: int
    offset: int


class OrdersQuery(BaseModel):
    status: Literal["pending", "confirmed", "processing", "shipped", "delivered", "cancelled"] | None = None
    limit: int = Field(10, ge=1, le=100)
    offset: int = Field(0, ge=0, le=MAXIMUM_OFFSET)


orders_query = Query(OrdersQuery)
ONE_ORDER = documented("order_id")
ONES_ORDERS = documented("user_id", services=False)  # said by SERVICE_KEY
ONES_ORDERS["parameters"] += orders_query.documented["parameters"]


@router.post("/api/orders", status_code=201, response_model=NewOrderOut, openapi_extra=documented("Idempotency-Key"))
async def create_order(body: OrderIn, caller: AnyCaller, orders: OrdersDep) -> Order:
    caller.must_be(body.owner_id)
    return await orders.place(body.owner_id, body.lines(), caller.once(body, body.owner_id))


@router.get("/api/orders/{order_id}", response_model=OrderOut, openapi_extra=ONE_ORDER)
async def get_order(reached: OwnOrder) -> Order:
    return reached.order


@router.get(
    "/api/orders/user/{user_id}", response_model=OrderPageOut, dependencies=[SERVICE_KEY], openapi_extra=ONES_ORDERS
)
async def list_orders(
    user_id: OwnList, orders: OrdersDep, query: Annotated[OrdersQuery, Depends(orders_query)]
) -> dict[str, object]:
    status = OrderStatus(query.status) if query.status else None
    page = await orders.list_orders(user_id, status, Slice(query.limit, query.offset))
    return {"orders": page.items, "total": page.total, "limit": query.limit, "offset": query.offset}


@router.put("/api/orders/{order_id}/status", response_model=OrderOut, openapi_extra=ONE_ORDER)
async def update_order_status(reached: OrderToMove, body: StatusIn, checkout: CheckoutDep) -> Order:
    return await checkout.change_status(reached.order.id, body.status, body.payment_id)


@router.post(
    "/api/orders/{order_id}/cancel",
    response_model=CancelledOut,
    openapi_extra=documented("order_id", "Idempotency-Key"),
)
async def cancel_order(reached: OwnOrder, orders: OrdersDep) -> Order:
    return await orders.cancel(reached.order.id, CANCELLED, reached.caller.once())
