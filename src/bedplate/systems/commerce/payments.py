"""Commerce API documentation: Payment Service API."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from bedplate.kernel.breaker import BreakerState
from bedplate.kernel.http import Query, Text
from bedplate.kernel.ids import is_id
from bedplate.kernel.paging import MAXIMUM_OFFSET, Slice
from bedplate.modules.orders.public import OrderNotFound
from bedplate.modules.payments.public import (
    Payment,
    PaymentMethod,
    PaymentMismatch,
    PaymentRequest,
    PaymentStatus,
)
from bedplate.systems.commerce.deps import (
    SERVICE_KEY,
    AnyCaller,
    BreakersDep,
    OwnList,
    OwnPayment,
    PaymentsDep,
    PaymentToRefund,
    documented,
)
from bedplate.systems.commerce.money import Amount

router = APIRouter(tags=["payments"])


def _uuid(text: str) -> str:
    if not is_id(text):
        raise ValueError("Input should be a UUID")
    return text.lower()


def _unless_nothing(amount: Decimal) -> Decimal | None:
    return amount or None


class _In(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(validation_alias=to_camel))


class MethodIn(_In):
    """`type`: `credit_card`, `paypal` or `bank_transfer`; the rest is for cards. Number and cvv are not kept."""

    type: Text
    card_number: Text | None = Field(None, repr=False)
    expiry_month: Text | None = None
    expiry_year: Text | None = None
    cvv: Text | None = Field(None, repr=False)


class PaymentIn(_In):
    order_id: Annotated[Text, Field(max_length=64)]
    user_id: Annotated[Text, AfterValidator(_uuid), Field(json_schema_extra={"format": "uuid"})]
    amount: Amount
    currency: Annotated[Text, Field(min_length=3, max_length=3)]
    payment_method: MethodIn = Field(repr=False)

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "orderId": "order-123",
                "userId": "550e8400-e29b-41d4-a716-446655440001",
                "amount": 75.48,
                "currency": "USD",
                "paymentMethod": {
                    "type": "credit_card",
                    "cardNumber": "4111111111111111",
                    "expiryMonth": "12",
                    "expiryYear": "2025",
                    "cvv": "123",
                },
            }
        }
    )

    def request(self) -> PaymentRequest:
        method = PaymentMethod(**self.payment_method.model_dump())
        return PaymentRequest(self.order_id, self.user_id, self.amount, self.currency, method)


class RefundIn(_In):
    amount: Amount
    reason: Annotated[Text, Field(min_length=1, max_length=500)]

    model_config = ConfigDict(json_schema_extra={"example": {"amount": 75.48, "reason": "Order cancelled"}})


class PaymentOut(BaseModel):
    """It grows with what happens: the last eight are there once they have a value."""

    id: str
    order_id: str
    user_id: str
    amount: float
    currency: str
    status: PaymentStatus
    created_at: datetime
    transaction_id: str | None = None
    completed_at: datetime | None = None
    failure_reason: str | None = None
    error_code: str | None = None
    failed_at: datetime | None = None
    refunded_amount: Annotated[float | None, BeforeValidator(_unless_nothing)] = None
    refund_reason: str | None = None
    refunded_at: datetime | None = None

    model_config = ConfigDict(from_attributes=True, alias_generator=AliasGenerator(serialization_alias=to_camel))


class PaymentPageOut(BaseModel):
    payments: list[PaymentOut]
    total: int
    limit: int
    offset: int


class BreakerOut(BaseModel):
    """`failure_count`: failures since the last success."""

    state: Literal["closed", "open", "half_open"]
    failure_count: int
    last_failure: datetime | None

    model_config = ConfigDict(from_attributes=True)


class BreakersOut(BaseModel):
    user_service: BreakerOut
    order_service: BreakerOut


BREAKERS = tuple(BreakersOut.model_fields)


class PaymentsQuery(BaseModel):
    limit: int = Field(10, ge=1, le=100)
    offset: int = Field(0, ge=0, le=MAXIMUM_OFFSET)


payments_query = Query(PaymentsQuery)
ONES_PAYMENTS = documented("user_id", services=False)  # said by SERVICE_KEY
ONES_PAYMENTS["parameters"] += payments_query.documented["parameters"]


@router.post(
    "/api/payments",
    status_code=201,
    response_model=PaymentOut,
    response_model_exclude_none=True,
    openapi_extra=documented("Idempotency-Key"),
)
async def create_payment(body: PaymentIn, caller: AnyCaller, payments: PaymentsDep) -> Payment:
    caller.must_be(body.user_id)
    try:
        return await payments.pay(body.request(), caller.once(body, body.user_id))
    except (OrderNotFound, PaymentMismatch) as refused:  # an order of somebody else is as good as none
        known = refused.details.get("field", "user_id") != "user_id"
        raise refused if known else caller.hiding(refused) from None


@router.get(
    "/api/payments/{payment_id}",
    response_model=PaymentOut,
    response_model_exclude_none=True,
    openapi_extra=documented("payment_id"),
)
async def get_payment(reached: OwnPayment) -> Payment:
    return reached.payment


@router.post(
    "/api/payments/{payment_id}/refund",
    response_model=PaymentOut,
    response_model_exclude_none=True,
    openapi_extra=documented("payment_id", "Idempotency-Key"),
)
async def refund_payment(reached: PaymentToRefund, body: RefundIn, payments: PaymentsDep) -> Payment:
    return await payments.refund(reached.payment.id, body.amount, body.reason, reached.caller.once(body))


@router.get(
    "/api/payments/user/{user_id}",
    response_model=PaymentPageOut,
    response_model_exclude_none=True,
    dependencies=[SERVICE_KEY],
    openapi_extra=ONES_PAYMENTS,
)
async def list_payments(
    user_id: OwnList, payments: PaymentsDep, query: Annotated[PaymentsQuery, Depends(payments_query)]
) -> dict[str, object]:
    page = await payments.list_payments(user_id, Slice(query.limit, query.offset))
    return {"payments": page.items, "total": page.total, "limit": query.limit, "offset": query.offset}


@router.get("/api/circuit-breaker/status", response_model=BreakersOut)
async def circuit_breaker_status(breakers: BreakersDep) -> dict[str, BreakerState]:
    return {name: await breakers[name].snapshot() for name in BREAKERS}
