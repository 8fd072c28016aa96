"""Payment methods: what cannot be one is refused before anybody is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.modules.payments import cards
from bedplate.modules.payments.public import InvalidPaymentMethod, PaymentMethod

# From Stripe's testing page.
BRANDS = {
    "4242424242424242": "visa",
    "4000056655665556": "visa",
    "5555555555554444": "mastercard",
    "2223003122003222": "mastercard",
    "5105105105105100": "mastercard",
    "378282246310005": "amex",
    "371449635398431": "amex",
    "6011111111111117": "discover",
    "6011981111111113": "discover",
    "3056930009020004": "diners",
    "36227206271667": "diners",
    "3566002020360505": "jcb",
    "6200000000000005": "unionpay",
}


def card(**details: str | None) -> PaymentMethod:
    good = {"card_number": "4111111111111111", "expiry_month": "12", "expiry_year": "2025", "cvv": "123"}
    return PaymentMethod("credit_card", **{**good, **details})


@pytest.mark.parametrize(("number", "brand"), BRANDS.items())
def test_a_card_is_known_by_the_digits_it_begins_with(number: str, brand: str) -> None:
    assert cards.checked(card(card_number=number)).card_number == number
    assert cards.brand(number) == brand


def test_a_card_of_an_unknown_brand_is_a_card() -> None:
    assert cards.brand(cards.checked(card(card_number="1000000000009")).card_number or "") == "unknown"


@pytest.mark.parametrize("number", ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"])
def test_digits_may_be_grouped(number: str) -> None:
    assert cards.checked(card(card_number=number)) == card()


def test_a_card_that_expired_long_ago_is_for_its_provider_to_refuse() -> None:
    assert cards.checked(card(expiry_month="1", expiry_year="1999")) == card(expiry_month="01", expiry_year="1999")


@pytest.mark.parametrize(
    "number",
    [
        None,
        "",
        "4111111111111112",  # the check digit
        "411111111111",  # 12 digits
        "41111111111111111111",  # 20 digits
        "4111  1111 1111 1111",
        " 4111111111111111",
        "4111111111111111\n",
        "4111_1111_1111_1111",
        "\u0664111111111111111",  # an Arabic four
        "４111111111111111",  # a wide four
        "card",
    ],
)
def test_what_is_not_a_number_is_refused(number: str | None) -> None:
    with pytest.raises(InvalidPaymentMethod) as refused:
        cards.checked(card(card_number=number))
    assert str(refused.value.details["reason"]).startswith("The card number")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("expiry_month", "00", "The expiry month must be from 01 to 12"),
        ("expiry_month", "13", "The expiry month must be from 01 to 12"),
        ("expiry_month", None, "The expiry month must be from 01 to 12"),
        ("expiry_month", "1 ", "The expiry month must be from 01 to 12"),
        ("expiry_year", "25", "The expiry year must have four digits"),
        ("expiry_year", "20255", "The expiry year must have four digits"),
        ("expiry_year", None, "The expiry year must have four digits"),
        ("cvv", "12", "The security code must have three or four digits"),
        ("cvv", "12345", "The security code must have three or four digits"),
        ("cvv", "12a", "The security code must have three or four digits"),
        ("cvv", None, "The security code must have three or four digits"),
    ],
)
def test_what_is_missing_or_malformed_is_named(field: str, value: str | None, reason: str) -> None:
    with pytest.raises(InvalidPaymentMethod) as refused:
        cards.checked(card(**{field: value}))
    assert refused.value.details == {"reason": reason}


@pytest.mark.parametrize("type", ["", "cash", "CREDIT_CARD", "credit card", "paypal "])
def test_an_unknown_type_is_refused(type: str) -> None:
    with pytest.raises(InvalidPaymentMethod) as refused:
        cards.checked(PaymentMethod(type, card_number="4111111111111111"))
    assert "credit_card, paypal, bank_transfer" in str(refused.value.details["reason"])


@pytest.mark.parametrize("type", ["paypal", "bank_transfer"])
def test_other_methods_need_no_card_and_lose_the_one_they_brought(type: str) -> None:
    assert cards.checked(PaymentMethod(type, "4111111111111111", "12", "2025", "123")) == PaymentMethod(type)


@given(st.text(alphabet="0123456789- ", min_size=1, max_size=25))
def test_a_refusal_never_repeats_a_digit(number: str) -> None:
    try:
        cards.checked(card(card_number=number, cvv="739"))
    except InvalidPaymentMethod as refused:
        said = f"{refused} {refused!r} {refused.details}"
        assert "739" not in said
        # Of up to three digits some stand in the words themselves: "13 to 19 digits".
        assert sum(character.isdigit() for character in number) < 4 or number not in said


@given(st.text(alphabet="0123456789", min_size=12, max_size=18))
def test_of_the_ten_last_digits_exactly_one_is_right(start: str) -> None:
    def is_one(number: str) -> bool:
        try:
            return cards.checked(card(card_number=number)).card_number == number
        except InvalidPaymentMethod:
            return False

    assert sum(is_one(f"{start}{digit}") for digit in range(10)) == 1


def test_a_method_does_not_show_its_number_and_code() -> None:
    method = card(cvv="739")
    assert "4111" not in f"{method} {method!r}"
    assert "739" not in f"{method} {method!r}"
