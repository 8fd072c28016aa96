"""Orders in MongoDB: each is a document, with what is said of it and what was answered for it."""

from contextlib import AbstractAsyncContextManager

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, amount_of, microseconds, minor_units, moment
from bedplate.kernel.documents import Body, DocumentTransaction
from bedplate.kernel.mongo import MongoDocuments
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.orders.public import Order, OrderItem, OrderStatus
from bedplate.modules.orders.store import STATUSES, OrderStore, Step

NEWEST = ("created_at", "id")
INDEXES = (("user_id", *NEWEST), ("user_id", "status", *NEWEST))


def documents(url: str, queue: Database, clock: Clock) -> MongoDocuments:
    """Where they lie. Raises OperatorError."""
    return MongoDocuments(url, "orders", INDEXES, queue, clock)


class MongoOrders(OrderStore[DocumentTransaction]):
    """One transaction is about one order."""

    def __init__(self, documents: MongoDocuments) -> None:
        self._documents = documents

    def transaction(self) -> AbstractAsyncContextManager[DocumentTransaction]:
        return self._documents.transaction()

    async def insert(self, tx: DocumentTransaction, order: Order) -> None:
        tx.put(order.id, _body(order))

    async def take(self, tx: DocumentTransaction, order_id: str, step: Step) -> Order | None:
        body = await tx.take(order_id)
        if body is None or STATUSES[body["status"]] not in step.sources:
            return None
        at = microseconds(step.at)
        changed = {
            "status": step.status.value,
            "updated_at": at,
            "payment_id": step.payment_id or body["payment_id"],
            "cancelled_at": at if step.status is OrderStatus.CANCELLED else None,
        }
        tx.put(order_id, {**body, **changed})
        return _order({**body, **changed})

    async def find(self, order_id: str) -> Order | None:
        body = await self._documents.find(order_id)
        return None if body is None else _order(body)

    async def page(self, user_id: str, status: OrderStatus | None, part: Slice) -> Page[Order]:
        part = part.bounded()
        wanted = {"user_id": user_id} if status is None else {"user_id": user_id, "status": status.value}
        found = await self._documents.page(wanted, NEWEST, part.limit, part.offset)
        total = part.total_if_last(len(found))
        if total is None:
            total = await self._documents.count(wanted)
        return Page([_order(body) for body in found], total)


def _body(order: Order) -> Body:
    return {
        "id": order.id,
        "user_id": order.user_id,
        "items": [
            {"product_id": item.product_id, "quantity": item.quantity, "price": minor_units(item.price)}
            for item in order.items
        ],
        "status": order.status.value,
        "total": minor_units(order.total),
        "payment_id": order.payment_id,
        "created_at": microseconds(order.created_at),
        "updated_at": microseconds(order.updated_at),
        "cancelled_at": microseconds(order.cancelled_at),
    }


def _order(body: Body) -> Order:
    return Order(
        id=body["id"],
        user_id=body["user_id"],
        items=[
            OrderItem(item["product_id"], item["quantity"], amount_of(int(item["price"]))) for item in body["items"]
        ],
        status=STATUSES[body["status"]],
        total=amount_of(int(body["total"])),
        payment_id=body["payment_id"],
        created_at=moment(int(body["created_at"])),
        updated_at=moment(int(body["updated_at"])),
        cancelled_at=moment(body["cancelled_at"]),
    )
