"""The shoppers: a process of its own whose connections each place an order, pay for it, and begin again.

Run as a script: `Shopping` as JSON on standard input, `Shopped` as JSON on standard output. 127.0.0.1 only.
"""

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

import uvloop

GIVE_UP_SECONDS = 60.0


@dataclass(frozen=True)
class Shopping:
    """`per_second`: flows begun at most, 0 for as many as are answered. `prefixes`: of the paths of both services."""

    order_port: int
    payment_port: int
    order_prefix: str
    payment_prefix: str
    users: list[list[str]]  # id and access token
    connections: int
    seconds: float
    per_second: float


@dataclass(frozen=True)
class Shopped:
    """`paid`: of each order the time (seconds since the epoch) at which its payment was sent. `post_ms`: from there to
    the answer."""

    paid: dict[str, float]
    post_ms: list[float]
    seconds: float
    cost_us: float
    errors: dict[str, int]


def shop(shopping: Shopping) -> Shopped:
    """Run it. Raises subprocess.SubprocessError if it failed or did not end in time."""
    limit = shopping.seconds + GIVE_UP_SECONDS
    ran = subprocess.run(
        [sys.executable, __file__], input=json.dumps(asdict(shopping)), stdout=subprocess.PIPE, text=True, timeout=limit
    )
    ran.check_returncode()
    return Shopped(**json.loads(ran.stdout))


class Shopper:
    """Two keep-alive connections, one to each service."""

    def __init__(self, shopping: Shopping, number: int, paid: dict[str, float], post_ms: list[float]) -> None:
        self._shopping = shopping
        self._number = number
        self._paid = paid
        self._post_ms = post_ms
        self.errors: Counter[str] = Counter()

    async def run(self, deadline: float) -> None:
        begun = 0
        shopping = self._shopping
        orders = await asyncio.open_connection("127.0.0.1", shopping.order_port)
        payments = await asyncio.open_connection("127.0.0.1", shopping.payment_port)
        pause = shopping.connections / shopping.per_second if shopping.per_second else 0.0
        began = time.perf_counter() + pause * self._number / shopping.connections
        while time.perf_counter() < deadline:
            if pause:
                await asyncio.sleep(max(0.0, began + begun * pause - time.perf_counter()))
            user, token = shopping.users[(self._number + begun) % len(shopping.users)]
            begun += 1
            items = [
                {"productId": "prod-1", "quantity": 2, "price": 29.99},
                {"productId": "prod-2", "quantity": 1, "price": 15.50},
            ]
            status, order = await self._post(
                orders, f"{shopping.order_prefix}/api/orders", token, {"userId": user, "items": items}
            )
            if status != 201:
                self.errors[f"order {status}"] += 1
                continue
            card = {"cardNumber": "4111111111111111", "expiryMonth": "12", "expiryYear": "2030", "cvv": "123"}
            body = {
                "orderId": order["id"],
                "userId": user,
                "amount": 75.48,
                "currency": "USD",
                "paymentMethod": {"type": "credit_card", **card},
            }
            sent, wall = time.perf_counter(), time.time()
            status, _ = await self._post(payments, f"{shopping.payment_prefix}/api/payments", token, body)
            if status != 201:
                self.errors[f"payment {status}"] += 1
                continue
            self._post_ms.append((time.perf_counter() - sent) * 1000)
            self._paid[order["id"]] = wall
        for _, writer in (orders, payments):
            writer.close()

    async def _post(
        self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str, token: str, body: object
    ) -> tuple[int, dict[str, str]]:
        reader, writer = connection
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        at = answer.index(b"content-length: ") + 16
        data = await reader.readexactly(int(answer[at : answer.index(b"\r", at)]))
        return int(answer[9:12]), json.loads(data)


async def _run(shopping: Shopping) -> Shopped:
    paid: dict[str, float] = {}
    post_ms: list[float] = []
    shoppers = [Shopper(shopping, number, paid, post_ms) for number in range(shopping.connections)]
    began, used = time.perf_counter(), time.process_time()
    async with asyncio.timeout(shopping.seconds + GIVE_UP_SECONDS / 2):
        await asyncio.gather(*(shopper.run(began + shopping.seconds) for shopper in shoppers))
    seconds, used = time.perf_counter() - began, time.process_time() - used
    errors = sum((shopper.errors for shopper in shoppers), Counter())
    return Shopped(paid, post_ms, seconds, used / max(len(paid), 1) * 1e6, dict(errors))


if __name__ == "__main__":
    gc.disable()
    json.dump(asdict(uvloop.run(_run(Shopping(**json.load(sys.stdin))))), sys.stdout)
