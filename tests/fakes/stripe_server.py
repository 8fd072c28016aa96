"""A server that speaks the part of Stripe's API that is used here, with a ledger of its own in an SQLite file.

    python -m tests.fakes.stripe_server --port N --ledger FILE --seed S --drop 0.1

It prints its address, then serves until it is killed; killed at any moment, it goes on where its ledger is. An
Idempotency-Key is honoured as Stripe documents it: one execution, whose answer is repeated, marked as such; the same
key with other parameters is an idempotency_error. Execution and answer are one commit. `--drop`, `--hang` and `--fail`
are the shares of requests that are executed with the connection closed instead of an answer, that hang before anything
is executed, and that are refused with 500 before anything is executed; `/_control` sets them by count.

Test cards decline as Stripe's do. Numbers are not kept: what a PaymentMethod will come to is.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import sqlite3
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl

HANG_SECONDS = 60.0
IDLE_SECONDS = 60.0
MAXIMUM_BODY = 65_536
BRANDS = {"4": "visa", "5": "mastercard", "3": "amex", "6": "discover"}
# What Stripe answers when one of its test cards is charged: (code, decline_code).
DECLINES: Mapping[str, tuple[str, str | None]] = {
    "4000000000000002": ("card_declined", "generic_decline"),
    "4000000000009995": ("card_declined", "insufficient_funds"),
    "4000000000009987": ("card_declined", "lost_card"),
    "4000000000000069": ("expired_card", None),
    "4000000000000127": ("incorrect_cvc", None),
    "4000000000000119": ("processing_error", None),
    "4000002760003184": ("authentication_required", "authentication_required"),
}
ASYNCHRONOUS = (
    "4000000000000077"  # in this server: the charge is processing at first, and has succeeded when asked again
)
TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, fingerprint TEXT, status INTEGER, body TEXT);
CREATE TABLE IF NOT EXISTS methods (id TEXT PRIMARY KEY, brand TEXT, last4 TEXT, outcome TEXT);
CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, payment TEXT, amount INTEGER, currency TEXT, status TEXT);
CREATE TABLE IF NOT EXISTS refunds (id TEXT PRIMARY KEY, intent TEXT, refund TEXT, amount INTEGER);
"""

Form = dict[str, str]
Answer = tuple[int, dict[str, Any]]


class Refused(Exception):
    """An error answer. `executed`: it is repeated under the same key, as Stripe does once it has begun."""

    def __init__(self, status: int, type: str, code: str | None = None, *, executed: bool = False, **more: Any) -> None:
        super().__init__(code)
        self.status = status
        self.executed = executed
        self.body = {"error": {"type": type, "code": code, "message": code or type, **more}}


@dataclass
class Faults:
    """How requests are mistreated: shares of all, and how many of the next ones for certain."""

    seed: int = 0
    drop: float = 0.0
    hang: float = 0.0
    fail: float = 0.0
    next: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def choose(self) -> str:
        for kind in ("hang", "fail", "busy", "drop"):
            if self.next.get(kind, 0) > 0:
                self.next[kind] -= 1
                return kind
        lot = self._random.random()
        for kind, share in (("hang", self.hang), ("fail", self.fail), ("drop", self.drop)):
            if lot < share:
                return kind
            lot -= share
        return ""


class Ledger:
    """What was asked and done. Every method is one commit."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {TABLES}")

    def close(self) -> None:
        self._db.close()

    def once(self, key: str, path: str, form: Form, secret: str) -> tuple[int, str, bool]:
        """The answer to a POST, and whether it is a repeated one."""
        content = json.dumps([path, form, secret], sort_keys=True)
        fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            known = self._db.execute("SELECT fingerprint, status, body FROM answers WHERE key = ?", (key,)).fetchone()
            if known is not None:
                if known[0] != fingerprint:
                    raise Refused(400, "idempotency_error")
                self._db.execute("COMMIT")
                return known[1], known[2], True
            try:
                status, body = self._execute(path, form)
            except Refused as refused:
                if not refused.executed:
                    raise
                status, body = refused.status, refused.body
            text = json.dumps(body)
            self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (key, fingerprint, status, text))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return status, text, False

    def read(self, path: str) -> Answer:
        if path == "/v1/balance":
            return 200, {"object": "balance", "available": [], "pending": [], "livemode": False}
        if path == "/_ledger":
            return 200, self.contents()
        kind, _, identifier = path.removeprefix("/v1/").partition("/")
        row = self._db.execute("SELECT * FROM intents WHERE id = ?", (identifier,)).fetchone()
        if kind != "payment_intents" or row is None:
            raise Refused(404, "invalid_request_error", "resource_missing")
        if row[4] == "processing":
            self._db.execute("UPDATE intents SET status = 'succeeded' WHERE id = ?", (identifier,))
            row = (*row[:4], "succeeded")
        return 200, _intent(row)

    def contents(self) -> dict[str, Any]:
        """Every charge that has taken money, with the refunds of it, in minor units."""
        charges = self._db.execute("SELECT * FROM intents WHERE status IN ('succeeded', 'processing')").fetchall()
        refunds = self._db.execute("SELECT * FROM refunds").fetchall()
        return {
            "charges": [{"id": row[0], "payment": row[1], "amount": row[2], "currency": row[3]} for row in charges],
            "refunds": [{"id": row[0], "charge": row[1], "refund": row[2], "amount": row[3]} for row in refunds],
        }

    def _execute(self, path: str, form: Form) -> Answer:
        if path == "/v1/payment_methods":
            return self._new_method(form)
        if path == "/v1/payment_intents":
            return self._new_intent(form)
        if path == "/v1/refunds":
            return self._new_refund(form)
        raise Refused(404, "invalid_request_error", "url_invalid")

    def _new_method(self, form: Form) -> Answer:
        number = _wanted(form, "card[number]")
        if form.get("type") != "card" or not number.isdecimal():
            raise Refused(400, "invalid_request_error", "parameter_invalid_string_blank")
        if not _luhn(number):
            raise Refused(402, "card_error", "incorrect_number", param="number")
        for name in ("card[exp_month]", "card[exp_year]", "card[cvc]"):
            _wanted(form, name)
        outcome = "processing" if number == ASYNCHRONOUS else json.dumps(DECLINES.get(number))
        made = (self._new_id("pm", "methods"), BRANDS.get(number[0], "unknown"), number[-4:], outcome)
        self._db.execute("INSERT INTO methods VALUES (?, ?, ?, ?)", made)
        return 200, {"id": made[0], "object": "payment_method", "type": "card", "card": {"brand": made[1]}}

    def _new_intent(self, form: Form) -> Answer:
        if "payment_method_types[0]" in form:  # as Stripe since 2026-09-30
            raise Refused(400, "invalid_request_error", "payment_method_types_no_longer_supported")
        amount, currency = int(_wanted(form, "amount")), _wanted(form, "currency")
        if amount < 50:
            raise Refused(400, "invalid_request_error", "amount_too_small", param="amount")
        token = _wanted(form, "payment_method")
        method = self._db.execute("SELECT outcome FROM methods WHERE id = ?", (token,)).fetchone()
        if method is None:
            raise Refused(400, "invalid_request_error", "resource_missing", param="payment_method")
        if form.get("confirm") != "true":
            raise Refused(400, "invalid_request_error", "parameter_missing", param="confirm")
        declined = None if method[0] == "processing" else json.loads(method[0])
        status = method[0] if method[0] == "processing" else "requires_payment_method" if declined else "succeeded"
        row = (self._new_id("pi", "intents"), form.get("metadata[payment_id]"), amount, currency, status)
        self._db.execute("INSERT INTO intents VALUES (?, ?, ?, ?, ?)", row)
        if declined:
            code, decline_code = declined
            more = {"decline_code": decline_code} if decline_code else {}
            raise Refused(402, "card_error", code, executed=True, payment_intent=_intent(row), **more)
        return 200, _intent(row)

    def _new_refund(self, form: Form) -> Answer:
        intent, amount = _wanted(form, "payment_intent"), int(_wanted(form, "amount"))
        charge = self._db.execute("SELECT amount, status FROM intents WHERE id = ?", (intent,)).fetchone()
        if charge is None or charge[1] != "succeeded":
            raise Refused(400, "invalid_request_error", "resource_missing", executed=True)
        total = self._db.execute("SELECT coalesce(sum(amount), 0) FROM refunds WHERE intent = ?", (intent,)).fetchone()
        if amount < 1 or total[0] + amount > charge[0]:
            code = "charge_already_refunded" if total[0] == charge[0] else None
            raise Refused(400, "invalid_request_error", code, executed=True)
        made = (self._new_id("re", "refunds"), intent, form.get("metadata[refund_id]"), amount)
        self._db.execute("INSERT INTO refunds VALUES (?, ?, ?, ?)", made)
        return 200, {"id": made[0], "object": "refund", "amount": amount, "status": "succeeded"}

    def _new_id(self, prefix: str, table: str) -> str:
        number = self._db.execute(f"SELECT count(*) + 1 FROM {table}").fetchone()[0]
        return f"{prefix}_{number:024d}"


class StripeServer:
    """The server in this process, at a free port unless one is given."""

    def __init__(self, ledger: str, faults: Faults | None = None, port: int = 0) -> None:
        self.ledger = Ledger(ledger)
        self.faults = faults or Faults()
        # The last ones: method, path, headers, body.
        self.requests: deque[tuple[str, str, dict[str, str], str]] = deque(maxlen=100)
        self._number = 0
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.ledger.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                while await self._request(reader, writer):
                    pass
        finally:
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False: the connection is to be closed."""
        async with asyncio.timeout(IDLE_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = (await reader.readexactly(min(int(headers.get("content-length", 0)), MAXIMUM_BODY))).decode()
        self._number += 1
        self.requests.append((method, path, headers, body))
        fault = "" if path.startswith("/_") else self.faults.choose()
        if fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
            return False
        status, text, replayed = self._answer(method, path, headers, body, fault)
        if fault == "drop":
            return False
        extra = "Idempotent-Replayed: true\r\n" if replayed else ""
        content = text.encode()
        writer.write(
            f"HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            f"Request-Id: req_{self._number}\r\n{extra}\r\n".encode()
            + content
        )
        await writer.drain()
        return True

    def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: str, fault: str
    ) -> tuple[int, str, bool]:
        try:
            if path == "/_control" and method == "POST":
                self.faults.next.update(json.loads(body))
                return 200, "{}", False
            if not path.startswith("/_") and not headers.get("authorization", "").startswith("Bearer sk_"):
                raise Refused(401, "invalid_request_error")
            if fault == "fail":
                raise Refused(500, "api_error")
            if fault == "busy":  # the same key is in work at this moment
                raise Refused(409, "idempotency_error", "idempotency_key_in_use")
            if method == "GET":
                status, answer = self.ledger.read(path.partition("?")[0])
                return status, json.dumps(answer), False
            key = headers.get("idempotency-key")
            if not key:
                raise Refused(400, "invalid_request_error", "parameter_missing")  # stricter than Stripe: always wanted
            return self.ledger.once(key, path, dict(parse_qsl(body)), headers["authorization"])
        except Refused as refused:
            return refused.status, json.dumps(refused.body), False


def _intent(row: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "id": row[0],
        "object": "payment_intent",
        "metadata": {"payment_id": row[1]},
        "amount": row[2],
        "currency": row[3],
        "status": row[4],
    }


def _wanted(form: Form, name: str) -> str:
    if not form.get(name):
        raise Refused(400, "invalid_request_error", "parameter_missing", param=name)
    return form[name]


def _luhn(number: str) -> bool:
    digits = [int(digit) for digit in reversed(number)]
    return sum(digits[0::2] + [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]) % 10 == 0


async def _serve(arguments: argparse.Namespace) -> None:
    faults = Faults(arguments.seed, arguments.drop, arguments.hang, arguments.fail)
    async with StripeServer(arguments.ledger, faults, arguments.port) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--seed", type=int, default=0)
    for fault in ("drop", "hang", "fail"):
        parser.add_argument(f"--{fault}", type=float, default=0.0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
