"""Commerce API documentation: Authentication. Who is calling, what they may reach, and the facades behind it.

The document asks for a token in the User Service and says nothing of the others. There the owner, an administrator or
a program with a service key is let through; so is a request without credentials, as the document shows it, unless
REQUIRE_AUTH is on. Each guard is one coroutine that reads the request itself: nested dependencies and declared
parameters would cost as much as a statement.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel
from starlette._utils import get_route_path

from bedplate.kernel.breaker import Breaker
from bedplate.kernel.errors import InvalidField, NotAllowed, Problem
from bedplate.kernel.http import BearerScheme, bearer_token
from bedplate.kernel.idempotency import MAXIMUM_KEY, Once
from bedplate.kernel.ids import is_id
from bedplate.modules.checkout.public import Checkout
from bedplate.modules.identity.public import (
    Confirmations,
    InvalidToken,
    Principals,
    ServiceKeys,
    SessionPolicy,
    Sessions,
    User,
    Users,
)
from bedplate.modules.orders.public import Order, OrderNotFound, Orders
from bedplate.modules.payments.public import Payment, PaymentNotFound, Payments
from bedplate.systems.commerce.errors import AuthenticationRequired, InvalidIdempotencyKey

POLICY = SessionPolicy("commerce", access_seconds=3600, refresh_seconds=604_800)
PREFIXES = {"order": "order", "payment": "pay"}
_KEY = re.compile(rf"[ -~]{{1,{MAXIMUM_KEY}}}")


@dataclass(frozen=True, slots=True)
class Access:
    """How callers are recognised. `required`: orders and payments are closed to requests without credentials.
    `secret`: what idempotency keys are hashed with, so that no digest can be guessed from outside."""

    principals: Principals
    keys: ServiceKeys
    required: bool
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class UserFacades:
    """What the User Service stands on."""

    users: Users
    sessions: Sessions
    confirmations: Confirmations


@dataclass(frozen=True, slots=True)
class OrderFacades:
    """What the Order Service stands on."""

    orders: Orders
    checkout: Checkout


@dataclass(frozen=True, slots=True)
class PaymentFacades:
    """What the Payment Service stands on. `breakers`: by the names that the document gives the services behind."""

    payments: Payments
    breakers: Mapping[str, Breaker]


async def _users(request: Request) -> Users:
    facades: UserFacades = request.app.state.facades
    return facades.users


async def _sessions(request: Request) -> Sessions:
    facades: UserFacades = request.app.state.facades
    return facades.sessions


async def _confirmations(request: Request) -> Confirmations:
    facades: UserFacades = request.app.state.facades
    return facades.confirmations


async def _orders(request: Request) -> Orders:
    facades: OrderFacades = request.app.state.facades
    return facades.orders


async def _checkout(request: Request) -> Checkout:
    facades: OrderFacades = request.app.state.facades
    return facades.checkout


async def _payments(request: Request) -> Payments:
    facades: PaymentFacades = request.app.state.facades
    return facades.payments


async def _breakers(request: Request) -> Mapping[str, Breaker]:
    facades: PaymentFacades = request.app.state.facades
    return facades.breakers


UsersDep = Annotated[Users, Depends(_users)]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
ConfirmationsDep = Annotated[Confirmations, Depends(_confirmations)]
OrdersDep = Annotated[Orders, Depends(_orders)]
CheckoutDep = Annotated[Checkout, Depends(_checkout)]
PaymentsDep = Annotated[Payments, Depends(_payments)]
BreakersDep = Annotated[Mapping[str, Breaker], Depends(_breakers)]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: an account, a program with a service key, or anybody, where nobody has to say (neither of them)."""

    request: Request
    user: User | None = None
    key_id: str = ""

    @property
    def is_plain(self) -> bool:
        """An account that reaches only what is its own."""
        return self.user is not None and not self.user.is_admin

    def must_be(self, user_id: str) -> None:
        """Raises NotAllowed unless what belongs to this user is within the caller's reach."""
        if self.is_plain and self.user is not None and self.user.id != user_id:
            raise NotAllowed()

    def hiding(self, missing: Problem) -> Problem:
        """What to raise instead: who reaches only his own learns of nothing else whether it is there."""
        return NotAllowed() if self.is_plain else missing

    def once(self, body: BaseModel | None = None, owner_id: str = "") -> Once | None:
        """The request's Idempotency-Key, if it has one: the caller's own, for this operation and path. One without
        credentials shares its keys with those who act for the same user. Raises InvalidIdempotencyKey."""
        key = self.request.headers.get("idempotency-key")
        if key is None:
            return None
        if _KEY.fullmatch(key) is None:
            raise InvalidIdempotencyKey()
        who = f"user:{self.user.id}" if self.user else f"key:{self.key_id}" if self.key_id else f"anonymous:{owner_id}"
        scope = f"{who} {self.request.method} {get_route_path(self.request.scope)}"
        sent = body.model_dump(mode="json") if body is not None else None
        return Once.of(_access(self.request).secret, scope, key, sent)


async def _identified(request: Request, *, required: bool) -> Caller:
    """Whoever sends credentials must have good ones. A token counts before a service key."""
    token = bearer_token(request)
    access = _access(request)
    if token:
        principal = await access.principals.authenticate(token, POLICY.audience)
        return Caller(request, principal.user)
    if request.headers.get("authorization", "").strip():
        raise InvalidToken()
    if key := request.headers.get("x-api-key"):
        return Caller(request, key_id=(await access.keys.authenticate_key(key)).id)
    if required:
        raise AuthenticationRequired()
    return Caller(request)


class _AnyCaller(BearerScheme):
    async def __call__(self, request: Request) -> Caller:
        return await _identified(request, required=_access(request).required)


class _OwnUser(BearerScheme):
    """The account that is signed in."""

    async def __call__(self, request: Request) -> User:
        caller = await _identified(request, required=True)
        if caller.user is None:
            raise NotAllowed()
        return caller.user


class _OwnAccountOrAdmins(BearerScheme):
    """The id of the account in the path. `services`: programs with a service key may reach it as well."""

    def __init__(self, *, services: bool) -> None:
        super().__init__()
        self._services = services

    async def __call__(self, request: Request) -> str:
        caller = await _identified(request, required=True)
        if caller.user is None and not self._services:
            raise NotAllowed()
        user_id = _user_id(request)
        caller.must_be(user_id)
        return user_id


class _OwnList(BearerScheme):
    """The id of the user in the path, whose orders or payments are listed."""

    async def __call__(self, request: Request) -> str:
        caller = await _identified(request, required=_access(request).required)
        user_id = _user_id(request)
        caller.must_be(user_id)
        if not is_id(user_id):
            raise InvalidField(field="user_id", reason="Invalid user ID")
        return user_id


@dataclass(frozen=True, slots=True)
class OrderInReach:
    """The order in the path, and who asks for it."""

    order: Order
    caller: Caller


class _OwnOrder(BearerScheme):
    """`staff_only`: where callers must say who they are, owners may look but not touch."""

    def __init__(self, *, staff_only: bool) -> None:
        super().__init__()
        self._staff_only = staff_only

    async def __call__(self, request: Request) -> OrderInReach:
        caller = await _visitor(request, staff_only=self._staff_only)
        facades: OrderFacades = request.app.state.facades
        try:
            order = await facades.orders.get_order(_printed("order", request, OrderNotFound))
        except OrderNotFound as missing:
            raise caller.hiding(missing) from None
        caller.must_be(order.user_id)
        return OrderInReach(order, caller)


@dataclass(frozen=True, slots=True)
class PaymentInReach:
    """The payment in the path, and who asks for it."""

    payment: Payment
    caller: Caller


class _OwnPayment(BearerScheme):
    """As _OwnOrder."""

    def __init__(self, *, staff_only: bool) -> None:
        super().__init__()
        self._staff_only = staff_only

    async def __call__(self, request: Request) -> PaymentInReach:
        caller = await _visitor(request, staff_only=self._staff_only)
        facades: PaymentFacades = request.app.state.facades
        try:
            payment = await facades.payments.get_payment(_printed("payment", request, PaymentNotFound))
        except PaymentNotFound as missing:
            raise caller.hiding(missing) from None
        caller.must_be(payment.user_id)
        return PaymentInReach(payment, caller)


async def _visitor(request: Request, *, staff_only: bool) -> Caller:
    required = _access(request).required
    caller = await _identified(request, required=required)
    if staff_only and required and caller.is_plain:
        raise NotAllowed()
    return caller


def _user_id(request: Request) -> str:
    user_id: str = request.path_params["user_id"]
    return user_id.lower() if is_id(user_id) else user_id


def _printed(noun: str, request: Request, missing: type[Problem]) -> str:
    """The id in the path; what does not look like one is not looked up."""
    identifier: str = request.path_params[f"{noun}_id"]
    prefix, _, rest = identifier.partition("-")
    if prefix != PREFIXES[noun] or rest != rest.lower() or not is_id(rest):
        raise missing()
    return identifier


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


key_scheme = APIKeyHeader(name="X-API-Key", scheme_name="ServiceKey", auto_error=False)
SERVICE_KEY = Security(key_scheme)
"""Declares the scheme in the document of a service, by one of its routes; the guards read the header themselves."""

AnyCaller = Annotated[Caller, Depends(_AnyCaller())]
OwnUser = Annotated[User, Depends(_OwnUser())]
OwnAccountOrAdmins = Annotated[str, Depends(_OwnAccountOrAdmins(services=False))]
OwnAccountOrAdminsOrServices = Annotated[str, Depends(_OwnAccountOrAdmins(services=True))]
OwnList = Annotated[str, Depends(_OwnList())]
OwnOrder = Annotated[OrderInReach, Depends(_OwnOrder(staff_only=False))]
OrderToMove = Annotated[OrderInReach, Depends(_OwnOrder(staff_only=True))]
OwnPayment = Annotated[PaymentInReach, Depends(_OwnPayment(staff_only=False))]
PaymentToRefund = Annotated[PaymentInReach, Depends(_OwnPayment(staff_only=True))]


def documented(*parameters: str, anonymous: bool = True, services: bool = True) -> dict[str, Any]:
    """What the guards of a route read, for its `openapi_extra`: names of path parameters and "Idempotency-Key", and
    which credentials beside a token will do."""
    named = [IDEMPOTENCY if name == "Idempotency-Key" else {"name": name, **_in_path} for name in parameters]
    others: list[dict[str, list[str]]] = [{key_scheme.scheme_name: []}] if services else []
    return {"parameters": named, "security": [*others, *[{}] * anonymous]}


_in_path = {"in": "path", "required": True, "schema": {"type": "string", "maxLength": 64}}
IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same request with the same key is carried out once and answered alike, for 24 hours.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAXIMUM_KEY, "pattern": "^[ -~]+$"},
}
