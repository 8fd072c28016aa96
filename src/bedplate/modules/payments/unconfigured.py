"""No provider: in production the test provider would give goods away, so payments wait until there is a real one."""

import logging
from datetime import timedelta
from decimal import Decimal
from typing import ClassVar

from bedplate.kernel.errors import Unavailable
from bedplate.modules.payments.provider import Provider, ProviderToken
from bedplate.modules.payments.public import PaymentMethod

log = logging.getLogger("bedplate.payments")


class NoProvider(Provider):
    name: ClassVar[str] = "none"
    remembers: ClassVar[timedelta | None] = None

    async def tokenize(self, method: PaymentMethod) -> ProviderToken:
        log.warning("a payment is refused: there is no STRIPE_SECRET_KEY")
        raise Unavailable()

    async def charge(self, token: str, amount: Decimal, currency: str, key: str, description: str) -> str:
        raise Unavailable()

    async def refund(self, reference: str, amount: Decimal, currency: str, key: str) -> str:
        raise Unavailable()

    async def ping(self) -> None:
        raise Unavailable()
