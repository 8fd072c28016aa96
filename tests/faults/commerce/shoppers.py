"""Shoppers: clients that order, pay, cancel and ask for money back, and write down what they saw.

The history follows Jepsen: an operation is invoked, and ends ok, fail, or info, which means that it may or may not
have happened (a time-out, a broken connection, a 5xx). Whoever does not know asks again, with the same Idempotency-Key,
until the answer is final.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx2

from tests.faults.commerce.deployments import Deployment

REQUEST_SECONDS = 20.0
PATIENCE_SECONDS = 600.0
LONGEST_PAUSE = 1.0
PASSWORD = "SecurePass123!"
ORDERS_OF_ONE_USER = 9
# One of each kind: cancelled and then paid for, a refused card, cancelled while it is paid, given back in part, asked
# for again.
LOTS = (0.01, 0.1, 0.2, 0.3, 0.95)
GOOD, REFUSED = "4242424242424242", "4000000000009995"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the history. `kind`: invoke, ok, fail or info."""

    at: float
    shopper: int
    kind: str
    what: str
    flow: str
    status: int = 0


@dataclass
class Seen:
    """What one flow was told: `order` and `payment` as they were acknowledged."""

    flow: str
    user_id: str
    total: Decimal
    order_id: str = ""
    payment_id: str = ""
    cancelled: bool = False
    refunded: Decimal = Decimal(0)
    finished: bool = False


@dataclass
class History:
    entries: list[Entry] = field(default_factory=list)
    flows: dict[str, Seen] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)  # id: address
    offences: list[str] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)  # of operations, by how often they were asked

    def note(self, shopper: int, kind: str, what: str, flow: str, status: int = 0) -> None:
        self.entries.append(Entry(time.monotonic(), shopper, kind, what, flow, status))

    def count(self, kind: str, what: str = "") -> int:
        return sum(1 for each in self.entries if each.kind == kind and what in each.what)

    def statuses(self) -> Counter[int]:
        return Counter(each.status for each in self.entries if each.status)

    @property
    def acknowledged(self) -> int:
        return sum(1 for seen in self.flows.values() if seen.order_id)


class Shopper:
    """`client`: another one than that of the network."""

    def __init__(
        self, number: int, there: Deployment, history: History, seed: int, client: httpx2.AsyncClient | None = None
    ) -> None:
        self._number = number
        self._there = there
        self._history = history
        self._dice = random.Random(f"{seed} {number}")
        self._client = client or httpx2.AsyncClient(timeout=REQUEST_SECONDS)
        self._turn = 0
        self._user = ""

    async def close(self) -> None:
        await self._client.aclose()

    async def shop(self, lot: float | None = None) -> None:
        """One flow to its end; `lot` decides which."""
        if self._turn % ORDERS_OF_ONE_USER == 0:
            await self._register()
        self._turn += 1
        flow = f"{self._number}-{self._turn}"
        price, quantity = Decimal(self._dice.randint(100, 9_999)).scaleb(-2), self._dice.randint(1, 3)
        seen = self._history.flows[flow] = Seen(flow, self._user, price * quantity)
        items = [{"productId": f"flow-{flow}", "quantity": quantity, "price": float(price)}]
        body = {"userId": self._user, "items": items}
        made = await self._until_final("order", flow, self._there.orders_url, "/api/orders", body)
        if made.status_code != 201:
            self._offend(f"order {flow} was refused: {made.status_code} {made.text}")
            return
        seen.order_id = made.json()["id"]
        self._agree(float(seen.total), made.json()["totalAmount"], f"total of order {flow}")
        lot = self._dice.random() if lot is None else lot
        if lot < 0.05:
            await self._cancel(seen)
        await self._pay(seen, REFUSED if 0.05 <= lot < 0.15 else GOOD)
        if 0.15 <= lot < 0.25:
            await self._cancel(seen)
        elif 0.25 <= lot < 0.35 and seen.payment_id:
            await self._give_some_back(seen)
        if lot > 0.9:
            again = await self._until_final("order", flow, self._there.orders_url, "/api/orders", body)
            self._agree(seen.order_id, again.json().get("id"), f"order {flow}, asked for again")
        read = await self._until_final("read", flow, self._there.orders_url, f"/api/orders/{seen.order_id}")
        self._agree(200, read.status_code, f"status of reading order {flow}")
        seen.finished = True

    async def _register(self) -> None:
        name = f"shopper{self._number}turn{self._turn}"
        body = {"email": f"{name}@example.com", "username": name, "password": PASSWORD}
        made = await self._until_final("register", name, self._there.users_url, "/api/users", body)
        # Registration has no key: what was lost on the way may have been carried out, and is refused now.
        while made.status_code == 409:
            name = f"{name}x"
            body |= {"email": f"{name}@example.com", "username": name}
            made = await self._until_final("register", name, self._there.users_url, "/api/users", body)
        assert made.status_code == 201, made.text
        self._user = made.json()["id"]
        self._history.users[self._user] = body["email"]

    async def _pay(self, seen: Seen, number: str) -> None:
        card = {"cardNumber": number, "expiryMonth": "12", "expiryYear": "2040", "cvv": "123"}
        method = {"type": "credit_card", **card}
        body = {"orderId": seen.order_id, "userId": seen.user_id, "amount": float(seen.total), "currency": "USD"}
        answer = await self._until_final(
            "payment", seen.flow, self._there.payments_url, "/api/payments", {**body, "paymentMethod": method}
        )
        if answer.status_code == 201:
            seen.payment_id = answer.json()["id"]
        elif not seen.cancelled or answer.status_code not in (409, 422):
            self._offend(f"payment of {seen.flow} was refused: {answer.status_code} {answer.text}")

    async def _cancel(self, seen: Seen) -> None:
        answer = await self._until_final(
            "cancel", seen.flow, self._there.orders_url, f"/api/orders/{seen.order_id}/cancel", {}
        )
        seen.cancelled = answer.status_code == 200
        if answer.status_code not in (200, 400, 409):  # a payment that was refused has cancelled it already
            self._offend(f"cancelling {seen.flow}: {answer.status_code} {answer.text}")

    async def _give_some_back(self, seen: Seen) -> None:
        """Once the payment is completed, a part of it, which is some cents."""
        path = f"/api/payments/{seen.payment_id}"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            answer = await self._until_final("read", seen.flow, self._there.payments_url, path)
            if answer.json().get("status") != "processing":
                break
            await asyncio.sleep(0.2)
        if answer.json().get("status") != "completed":
            return
        body = {"amount": 0.5, "reason": "scratched"}
        answer = await self._until_final("refund", seen.flow, self._there.payments_url, f"{path}/refund", body)
        if answer.status_code == 200:
            seen.refunded += Decimal("0.50")
        else:
            self._offend(f"refund of {seen.flow}: {answer.status_code} {answer.text}")

    async def _until_final(
        self, what: str, flow: str, base: str, path: str, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        """Ask, and ask again with the same key, until the answer says what has happened. TimeoutError after minutes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for attempt in range(10_000):
            self._history.note(self._number, "invoke", what, flow)
            answer = await self._ask(base + path, f"{what} {flow}", body)
            status = answer.status_code if answer is not None else 0
            if answer is not None and not _unknown(answer):
                self._history.note(self._number, "ok" if status < 300 else "fail", what, flow, status)
                self._history.attempts[attempt + 1] += 1
                return answer
            self._history.note(self._number, "info", what, flow, status)
            if time.monotonic() > deadline:
                break
            pause = min(0.05 * 2**attempt, LONGEST_PAUSE) if attempt < 10 else LONGEST_PAUSE
            await asyncio.sleep(pause * self._dice.uniform(0.5, 1.0))
        raise TimeoutError(f"{what} of {flow} has no final answer, at last {status}")

    async def _ask(self, url: str, key: str, body: dict[str, Any] | None) -> httpx2.Response | None:
        try:
            if body is None:
                return await self._client.get(url)
            headers = {"Idempotency-Key": key}
            return await self._client.post(url, json=body or None, headers=headers)
        except (httpx2.HTTPError, OSError):
            return None

    def _agree(self, expected: object, found: object, what: str) -> None:
        if expected != found:
            self._offend(f"{what}: expected {expected}, found {found}")

    def _offend(self, offence: str) -> None:
        self._history.offences.append(offence)


def _unknown(answer: httpx2.Response) -> bool:
    if answer.status_code >= 500 or answer.status_code == 429:
        return True
    return answer.status_code == 409 and answer.json()["code"] == "IDEMPOTENCY_KEY_IN_WORK"


async def shop_until(
    there: Deployment, history: History, seed: int, *, shoppers: int, enough: asyncio.Event, per_second: float = 0.0
) -> None:
    """So many shoppers at once, each flow after flow until it is enough. `per_second`: flows begun by all, at most."""

    async def one(number: int) -> None:
        shopper = Shopper(number, there, history, seed)
        pause = shoppers / per_second if per_second else 0.0
        due = time.monotonic() + pause * number / shoppers
        try:
            while not enough.is_set():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += pause
                await shopper.shop()
        finally:
            await shopper.close()

    async with asyncio.TaskGroup() as group:
        for number in range(shoppers):
            group.create_task(one(number))
