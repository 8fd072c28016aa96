"""Stripe: cards are charged by PaymentIntents. Only imported when it is chosen: the SDK takes half a second to load.

Numbers go to Stripe from here, for which the account must be allowed to send raw card data. The SDK's own retries are
off: whoever called knows when to try again, and does it with the same idempotency key. What Stripe answered under a
key it repeats for a day, failures of its own included; after that nothing is tried again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import httpx2
import stripe

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.ids import new_id
from bedplate.modules.payments import cards
from bedplate.modules.payments.provider import CALL_SECONDS, Declined, Provider, ProviderToken
from bedplate.modules.payments.public import InvalidPaymentMethod, PaymentMethod

log = logging.getLogger("bedplate.payments.stripe")

T = TypeVar("T")

# The SDK writes whole requests into its log: to its logger, and on the console where STRIPE_LOG says so.
logging.getLogger("stripe").setLevel(logging.WARNING)
stripe.log = None
stripe._util.STRIPE_LOG = None
stripe.enable_telemetry = False

CONNECTIONS = httpx2.Limits(max_connections=50, max_keepalive_connections=20)
IN_WORK = "idempotency_key_in_use"
# Stripe's codes of errors and declines; all others are CARD_DECLINED.
CODES: Mapping[str, str] = {
    "insufficient_funds": "INSUFFICIENT_FUNDS",
    "expired_card": "EXPIRED_CARD",
    "incorrect_cvc": "INCORRECT_CVC",
    "invalid_cvc": "INCORRECT_CVC",
    "incorrect_number": "INCORRECT_NUMBER",
    "invalid_number": "INCORRECT_NUMBER",
    "authentication_required": "AUTHENTICATION_REQUIRED",
    "processing_error": "PROCESSING_ERROR",
}


class Stripe(Provider):
    """`secret_key`: STRIPE_SECRET_KEY. `api_base`: another address than Stripe's own."""

    name: ClassVar[str] = "stripe"
    # A day, less what clocks and queues may be off.
    remembers: ClassVar[timedelta | None] = timedelta(hours=23)

    def __init__(self, secret_key: str, api_base: str | None = None) -> None:
        self._http = _Http()
        self._client = stripe.StripeClient(
            secret_key,
            base_addresses={"api": api_base.rstrip("/")} if api_base else None,
            max_network_retries=0,
            http_client=self._http,
        )

    async def tokenize(self, method: PaymentMethod) -> ProviderToken:
        return await _in_time(self._tokenize(method))

    async def charge(self, token: str, amount: Decimal, currency: str, key: str, description: str) -> str:
        return await _in_time(self._charge(token, amount, currency, key, description))

    async def refund(self, reference: str, amount: Decimal, currency: str, key: str) -> str:
        return await _in_time(self._refund(reference, amount, key))

    async def ping(self) -> None:
        try:
            await _in_time(_answer(self._client.v1.balance.retrieve_async()))
        except Declined:
            raise Unavailable() from None

    async def close(self) -> None:
        await self._http.close_async()

    async def _tokenize(self, method: PaymentMethod) -> ProviderToken:
        if method.type != cards.CREDIT_CARD or not method.card_number:
            raise InvalidPaymentMethod(reason="Only credit cards are accepted")
        card: Any = {
            "number": method.card_number,
            "exp_month": int(method.expiry_month or 0),
            "exp_year": int(method.expiry_year or 0),
            "cvc": method.cvv or "",
        }
        methods = self._client.v1.payment_methods
        try:
            made = await _answer(methods.create_async({"type": "card", "card": card}, {"idempotency_key": new_id()}))
        except Declined:
            raise InvalidPaymentMethod(reason="The card was refused by the payment provider") from None
        return ProviderToken(made.id, cards.brand(method.card_number), cards.last4(method.card_number))

    async def _charge(self, token: str, amount: Decimal, currency: str, key: str, description: str) -> str:
        intents = self._client.v1.payment_intents
        making = intents.create_async(
            {
                "amount": _hundredths(amount),
                "currency": currency.lower(),
                "payment_method": token,
                "allowed_payment_method_types": ["card"],
                "confirm": True,
                # Nobody is there to be asked for a second factor.
                "error_on_requires_action": True,
                "description": description,
                "metadata": {"payment_id": key},
            },
            {"idempotency_key": key},
        )
        intent = await _answer(making)
        if intent.status == "processing":  # the answer under this key stays that; how it ended stands there
            intent = await _answer(intents.retrieve_async(intent.id))
        if intent.status == "succeeded":
            return intent.id
        if intent.status == "requires_action":
            raise Declined("AUTHENTICATION_REQUIRED")
        if intent.status in ("requires_payment_method", "canceled"):
            raise Declined("CARD_DECLINED")
        raise Unavailable()

    async def _refund(self, reference: str, amount: Decimal, key: str) -> str:
        making = self._client.v1.refunds.create_async(
            {"payment_intent": reference, "amount": _hundredths(amount), "metadata": {"refund_id": key}},
            {"idempotency_key": key},
        )
        try:
            refund = await _answer(making)
        except Declined:
            raise Declined("REFUND_REFUSED") from None
        if refund.status in ("failed", "canceled"):
            raise Declined("REFUND_REFUSED")
        return refund.id


class _Http(stripe.HTTPClient):
    """How the SDK reaches the network: with the HTTP client that the rest of the product has."""

    name = "httpx2"

    def __init__(self) -> None:
        super().__init__()
        self._client = httpx2.AsyncClient(timeout=CALL_SECONDS, limits=CONNECTIONS)

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        try:
            response = await self._client.request(method, url, headers=dict(headers), content=post_data)
        except httpx2.HTTPError as error:
            raise stripe.APIConnectionError(type(error).__name__) from None  # type: ignore[no-untyped-call]
        return response.content, response.status_code, response.headers

    async def close_async(self) -> None:
        await self._client.aclose()


async def _in_time(work: Awaitable[T]) -> T:
    """All that one call of the port does at Stripe."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            return await work
    except TimeoutError:
        log.warning("Stripe does not answer")
        raise Unavailable() from None


async def _answer(call: Awaitable[T]) -> T:
    """What Stripe answers. None of its texts is repeated: they may quote what was sent.

    Raises:
        Declined: Stripe has decided, and nothing was moved.
        Unavailable: anything else.
    """
    try:
        return await call
    except stripe.StripeError as error:
        refused = _refused(error)
        what = {"reason": type(error).__name__, "status": error.http_status, "code": error.code}
        log.log(
            logging.INFO if isinstance(error, stripe.CardError) else logging.WARNING,
            "Stripe refuses",
            extra={**what, "stripe_request": error.request_id},
        )
    if refused is None:
        raise Unavailable()
    raise Declined(refused)


def _refused(error: stripe.StripeError) -> str | None:
    """The code of a refusal, or None if it is not known what happened."""
    if isinstance(error, stripe.CardError):
        declined = getattr(error.error, "decline_code", None)
        return CODES.get(declined or "") or CODES.get(error.code or "", "CARD_DECLINED")
    if isinstance(error, stripe.InvalidRequestError) and error.code != IN_WORK:
        return "PROVIDER_REFUSED"
    return None


def _hundredths(amount: Decimal) -> int:
    """As Stripe counts money. Only currencies that have hundredths are charged in."""
    return int(amount.scaleb(2))
