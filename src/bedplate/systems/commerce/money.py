"""Commerce API documentation: prices and amounts, which are JSON numbers with two decimals."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

CENT = Decimal("0.01")
MAXIMUM_PRICE = Decimal("1000000.00")
MAXIMUM_AMOUNT = Decimal("9999999.99")


def _up_to(maximum: Decimal) -> Callable[[object], Decimal]:
    def read(value: object) -> Decimal:
        if type(value) is not int and not (type(value) is float and math.isfinite(value)):
            raise ValueError("Input should be a number")
        amount = Decimal(str(value))  # the digits that were sent: what a float has beyond them is not money
        if not 0 <= amount <= maximum:
            raise ValueError(f"Input should be between 0 and {maximum}")
        cents = amount.quantize(CENT)
        if cents != amount:
            raise ValueError("Input should have two decimals at most")
        return abs(cents)  # JSON has a negative zero

    return read


def _positive(amount: Decimal) -> Decimal:
    if not amount:
        raise ValueError("Input should be greater than 0")
    return amount


def _number(maximum: Decimal, **least: float) -> WithJsonSchema:
    # No multipleOf: programs that check it with binary fractions would refuse 75.48.
    schema: dict[str, Any] = {"type": "number", "description": "Two decimals at most", "maximum": float(maximum)}
    return WithJsonSchema(schema | least)


Price = Annotated[Decimal, BeforeValidator(_up_to(MAXIMUM_PRICE)), _number(MAXIMUM_PRICE, minimum=0)]
Amount = Annotated[
    Decimal,
    BeforeValidator(_up_to(MAXIMUM_AMOUNT)),
    AfterValidator(_positive),
    _number(MAXIMUM_AMOUNT, exclusiveMinimum=0),
]
