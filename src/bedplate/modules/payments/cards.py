"""What a payment method must look like before anybody is asked about it. Format only: whether a card has expired is
for its provider to say."""

import re
from collections.abc import Mapping

from bedplate.modules.payments.public import InvalidPaymentMethod, PaymentMethod

CREDIT_CARD = "credit_card"
TYPES = (CREDIT_CARD, "paypal", "bank_transfer")

NUMBER = re.compile(r"[0-9](?:[ -]?[0-9]){12,18}")
MONTH = re.compile(r"0?[1-9]|1[0-2]")
YEAR = re.compile(r"[0-9]{4}")
CVV = re.compile(r"[0-9]{3,4}")
LAST = 4

# By how their numbers begin, in the names that Stripe gives them.
BRANDS: Mapping[str, re.Pattern[str]] = {
    "visa": re.compile(r"4"),
    "mastercard": re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"),
    "amex": re.compile(r"3[47]"),
    "discover": re.compile(r"6011|64[4-9]|65"),
    "diners": re.compile(r"30[0-5]|36|3[89]"),
    "jcb": re.compile(r"35(?:2[89]|[3-8])"),
    "unionpay": re.compile(r"62"),
}
UNKNOWN_BRAND = "unknown"


def checked(method: PaymentMethod) -> PaymentMethod:
    """The method in one form: digits without spaces or dashes, the month with two; nothing of a card where there is
    none.

    Raises:
        InvalidPaymentMethod: an unknown type, or something that cannot be a card. Its details never repeat a digit.
    """
    if method.type not in TYPES:
        raise InvalidPaymentMethod(reason=f"The type must be one of {', '.join(TYPES)}")
    if method.type != CREDIT_CARD:
        return PaymentMethod(method.type)
    return PaymentMethod(
        method.type,
        card_number=_number(method.card_number or ""),
        expiry_month=_fitting(MONTH, method.expiry_month, "The expiry month must be from 01 to 12").zfill(2),
        expiry_year=_fitting(YEAR, method.expiry_year, "The expiry year must have four digits"),
        cvv=_fitting(CVV, method.cvv, "The security code must have three or four digits"),
    )


def brand(number: str) -> str:
    """Whose card it is, by the digits it begins with."""
    return next((name for name, pattern in BRANDS.items() if pattern.match(number)), UNKNOWN_BRAND)


def last4(number: str) -> str:
    """What of a number may be kept."""
    return number[-LAST:]


def _number(text: str) -> str:
    digits = re.sub(r"[ -]", "", _fitting(NUMBER, text, "The card number must have 13 to 19 digits"))
    if not _luhn(digits):
        raise InvalidPaymentMethod(reason="The card number is not valid")
    return digits


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812: every second digit from the right counts double, cast out nines."""
    doubled = (int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits)))
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _fitting(pattern: re.Pattern[str], text: str | None, reason: str) -> str:
    if text is None or not pattern.fullmatch(text):
        raise InvalidPaymentMethod(reason=reason)
    return text
