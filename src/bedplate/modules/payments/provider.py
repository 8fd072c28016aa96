"""The port to whoever moves the money: the built-in sandbox, or Stripe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import ClassVar

from bedplate.modules.payments.public import PaymentMethod

# Less than the relay gives a handling, so that its last transaction has time.
CALL_SECONDS = 8.0

# Codes of refusals, as the events carry them, with the words for the payer.
REASONS: Mapping[str, str] = {
    "INSUFFICIENT_FUNDS": "Insufficient funds",
    "CARD_DECLINED": "Card declined",
    "EXPIRED_CARD": "Card expired",
    "INCORRECT_CVC": "Incorrect security code",
    "INCORRECT_NUMBER": "Incorrect card number",
    "AUTHENTICATION_REQUIRED": "The bank wants the payer to authenticate",
    "PROCESSING_ERROR": "The card could not be processed",
    "PROVIDER_REFUSED": "Refused by the payment provider",
    "REFUND_REFUSED": "Refund refused by the payment provider",
}


class Declined(Exception):
    """The provider has decided that no money moves, and will say the same whenever it is asked again.

    `code`: one of REASONS. `reason`: in words.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.reason = REASONS[code]


@dataclass(frozen=True, slots=True)
class ProviderToken:
    """What stands for a card at the provider, and what of it may be kept and shown: brand and last four digits (None
    for other methods)."""

    token: str
    brand: str | None
    last4: str | None


class Provider(ABC):
    """Each call ends within CALL_SECONDS. Unavailable: the outcome is unknown, and the same call may be made again.

    `remembers`: for how long a call with the same key is not a second one, and gets the first one's answer (None: for
    ever). Later than that nothing may be tried again blindly.
    """

    name: ClassVar[str]
    remembers: ClassVar[timedelta | None]

    @abstractmethod
    async def tokenize(self, method: PaymentMethod) -> ProviderToken:
        """Hand a checked method over. The only call that sees a number and a cvv.
        Raises InvalidPaymentMethod, Unavailable."""

    @abstractmethod
    async def charge(self, token: str, amount: Decimal, currency: str, key: str, description: str) -> str:
        """Take the money. The provider's reference of the charge. Raises Declined, Unavailable."""

    @abstractmethod
    async def refund(self, reference: str, amount: Decimal, currency: str, key: str) -> str:
        """Give money of this charge back. The provider's reference of the refund. Raises Declined, Unavailable."""

    @abstractmethod
    async def ping(self) -> None:
        """Raises Unavailable if the provider does not answer, or does not know us."""

    async def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Let go of connections."""
