"""The built-in test provider: no money moves. What a payment comes to is decided by its card number.

| card number | what happens |
|---|---|
| 4242424242424242, 4111111111111111, any other valid one | charged |
| 4000000000009995 | declined: insufficient funds |
| 4000000000000002 | declined |
| 4000000000000069 | declined: the card has expired |
| 4000000000000127 | declined: the security code is wrong |
| 4000000000000119 | needs a retry: the first attempt fails without a charge, the next one is charged |
| 4000000000000077 | charged, but the first answer is lost; who asks again with the same key gets it |

PayPal and bank transfers are charged. It stands for somebody else's system: it has a ledger of its own, which nobody
else reads, its own transactions, and never sees ours. A call with a known key gets the first call's result, and there
is one entry in the ledger for it.
"""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import bindparam, func, insert, select, update

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database, Record, Transaction, UniqueViolation
from bedplate.kernel.errors import Unavailable
from bedplate.kernel.ids import new_id
from bedplate.modules.payments import cards
from bedplate.modules.payments.models import SandboxEntryRow
from bedplate.modules.payments.provider import Declined, Provider, ProviderToken
from bedplate.modules.payments.public import PaymentMethod

SUCCESS = "success"
NEEDS_RETRY = "needs_retry"
ANSWER_LOST = "answer_lost"
DECLINES: Mapping[str, str] = {
    "insufficient_funds": "INSUFFICIENT_FUNDS",
    "card_declined": "CARD_DECLINED",
    "expired_card": "EXPIRED_CARD",
    "incorrect_cvc": "INCORRECT_CVC",
}
CARDS: Mapping[str, str] = {
    "4000000000009995": "insufficient_funds",
    "4000000000000002": "card_declined",
    "4000000000000069": "expired_card",
    "4000000000000127": "incorrect_cvc",
    "4000000000000119": NEEDS_RETRY,
    "4000000000000077": ANSWER_LOST,
}

# Outcomes in the ledger, besides the names of declines.
SUCCEEDED = "succeeded"
TRY_AGAIN = "try_again"
EXCEEDS_CHARGE = "exceeds_charge"
CHARGE = "charge"
REFUND = "refund"

_INSERT = insert(SandboxEntryRow).returning(*SandboxEntryRow.__table__.columns)
_FIND = select(SandboxEntryRow.__table__).where(SandboxEntryRow.key == bindparam("entry"))
# A known key: one attempt more, and what needed a retry has now had it.
_AGAIN = update(SandboxEntryRow).where(SandboxEntryRow.key == bindparam("entry"))
_AGAIN = _AGAIN.values(
    attempts=SandboxEntryRow.attempts + 1,
    outcome=func.replace(SandboxEntryRow.outcome, TRY_AGAIN, SUCCEEDED),
).returning(*SandboxEntryRow.__table__.columns)
_CHARGED = (
    select(SandboxEntryRow.amount)
    .where(
        SandboxEntryRow.reference == bindparam("charge"),
        SandboxEntryRow.kind == CHARGE,
        SandboxEntryRow.outcome == SUCCEEDED,
    )
    .with_for_update()
)
_GIVEN_BACK = select(SandboxEntryRow.amount).where(
    SandboxEntryRow.reference == bindparam("charge"),
    SandboxEntryRow.kind == REFUND,
    SandboxEntryRow.outcome == SUCCEEDED,
)


class Sandbox(Provider):
    name: ClassVar[str] = "sandbox"
    remembers: ClassVar[timedelta | None] = None

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def tokenize(self, method: PaymentMethod) -> ProviderToken:
        number = method.card_number
        scenario = CARDS.get(number, SUCCESS) if number else SUCCESS
        token = f"tok_{scenario}_{new_id()}"
        if number is None:
            return ProviderToken(token, None, None)
        return ProviderToken(token, cards.brand(number), cards.last4(number))

    async def charge(self, token: str, amount: Decimal, currency: str, key: str, description: str) -> str:
        scenario = token.removeprefix("tok_").rpartition("_")[0]
        outcome = TRY_AGAIN if scenario == NEEDS_RETRY else scenario if scenario in DECLINES else SUCCEEDED
        entry = {"key": key, "kind": CHARGE, "reference": f"ch_{key}", "amount": amount, "currency": currency}
        kept = await self._entry(entry, outcome)
        if kept.outcome in DECLINES:
            raise Declined(DECLINES[kept.outcome])
        if kept.outcome == TRY_AGAIN or (scenario == ANSWER_LOST and kept.attempts == 1):
            raise Unavailable()
        return str(kept.reference)

    async def refund(self, reference: str, amount: Decimal, currency: str, key: str) -> str:
        entry = {"key": key, "kind": REFUND, "reference": reference, "amount": amount, "currency": currency}
        kept = await self._entry(entry, SUCCEEDED)
        if kept.outcome == EXCEEDS_CHARGE:
            raise Declined("REFUND_REFUSED")
        return f"re_{key}"

    async def ping(self) -> None:
        await self._db.ping()

    async def _entry(self, entry: Mapping[str, Any], outcome: str) -> Record:
        """The entry of this key: a new one, or the one that is known."""
        if await self._db.first(_FIND, {"entry": entry["key"]}) is None:
            try:
                async with self._db.transaction() as tx:
                    return await self._first(tx, entry, outcome)
            except UniqueViolation:  # somebody was quicker
                pass
        async with self._db.transaction() as tx:
            kept = await tx.first(_AGAIN, {"entry": entry["key"]})
        if kept is None or any(getattr(kept, name) != value for name, value in entry.items()):
            raise RuntimeError("another request was made with this key")
        return kept

    async def _first(self, tx: Transaction, entry: Mapping[str, Any], outcome: str) -> Record:
        if entry["kind"] == REFUND:
            charged = await tx.scalar(_CHARGED, {"charge": entry["reference"]})
            before = await tx.all(_GIVEN_BACK, {"charge": entry["reference"]})
            if charged is None or sum(refund.amount for refund in before) + entry["amount"] > charged:
                outcome = EXCEEDS_CHARGE
        row = {**entry, "outcome": outcome, "attempts": 1, "created_at": self._clock.now()}
        kept = await tx.first(_INSERT, row)
        assert kept is not None
        return kept
