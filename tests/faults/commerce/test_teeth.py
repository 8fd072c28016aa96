"""The suites have teeth: each of these defects, put into a copy of the source, makes the suite that it names fail.

A suite that would pass over all of them proves nothing. Every defect is one that programs of this kind are known for.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.commerce.deployments import ROOT

SECONDS = 240
HERE = "tests/faults/commerce"
KILLS = f"{HERE}/test_kills.py::test_eight_kills_of_the_one_process_lose_nothing"
POINTS = f"{HERE}/test_failpoints.py"
CHAOS = f"{HERE}/test_events.py::test_events_in_any_order_and_number_come_to_the_same_end"


@dataclass(frozen=True)
class Defect:
    """`changes`: file below src/bedplate, what stands there, what is put in its place. `suite` and `chosen`: the tests
    that have to fail; `says`: words of how they do."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    suite: str
    says: str
    chosen: str = ""


NO_PROVIDER_KEY = Defect(
    "the provider is called without an idempotency key",
    (
        (
            "modules/payments/stripe.py",
            '{"idempotency_key": key},\n        )\n        intent',
            '{"idempotency_key": new_id()},\n        )\n        intent',
        ),
    ),
    KILLS,
    "was charged",
)
KEY_IGNORED = Defect(
    "the client's key is ignored",
    (("kernel/idempotency.py", "        if once is None:\n", "        if once is None or once:\n"),),
    POINTS,
    "was ordered 2 times",
    "any_point and orders.place.after_commit",
)
SAID_BEFORE = Defect(
    "an event is said before the commit that makes it true",
    (
        (
            "modules/orders/orders.py",
            "                await self._store.insert(tx, order)\n"
            "                await emit(tx, _created(order), order.created_at)\n",
            "                await emit(tx, _created(order), order.created_at)\n"
            "            async with self._store.transaction() as tx:\n"
            "                await self._store.insert(tx, order)\n",
        ),
    ),
    POINTS,
    "Order Received",
    "any_point and orders.place.before_commit",
)
SAID_AFTER = Defect(
    "an event is said after the commit, without an outbox",
    (
        ("modules/orders/orders.py", "                await emit(tx, said(order), step.at)\n", ""),
        (
            "modules/orders/orders.py",
            '        await reach("orders.step.after_commit")\n',
            '        await reach("orders.step.after_commit")\n        if order is not None:\n'
            "            async with self._store.transaction() as tx:\n"
            "                await emit(tx, said(order), step.at)\n",
        ),
    ),
    POINTS,
    "mail Order Cancelled",
    "any_point and orders.step.after_commit",
)
NEVER_TAKEN_OVER = Defect(
    "what a dead process had in its hands is never taken over",
    (
        (
            "kernel/relay.py",
            '    or_(_due.claimed_until.is_(None), _due.claimed_until < bindparam("now")),\n',
            "    _due.claimed_until.is_(None),\n",
        ),
    ),
    POINTS,
    "still waiting for",
    "ends_in_the_middle",
)
NOT_ON_THE_DISK = Defect(
    "the database does not wait for the disk",
    (("kernel/sqlite.py", '"synchronous=FULL"', '"synchronous=NORMAL"'),),
    "tests/faults/test_durability.py",
    "POST",
    "on_the_disk_before",
)
CLAIMED_FIRST = Defect(
    "an event is marked as handled before it is",
    (
        (
            "modules/mail/notifications.py",
            '        await reach("mail.notification.after_send")\n        async with self._db.transaction() as tx:\n'
            "            if not await delivery.first_time(tx):\n                return\n",
            "        async with self._db.transaction() as tx:\n"
            "            if not await delivery.first_time(tx):\n                return\n"
            '        await reach("mail.notification.after_send")\n        async with self._db.transaction() as tx:\n',
        ),
    ),
    POINTS,
    "1 due, 0 there",
    "any_point and mail.notification.after_send",
)
HEARD_TWICE = Defect(
    "an event that comes again is taken for a new one",
    (
        (
            "modules/mail/notifications.py",
            "            if not await delivery.first_time(tx):\n                return\n",
            "            await delivery.first_time(tx)\n",
        ),
    ),
    CHAOS,
    "mail_push",
)
LAST_WINS = Defect(
    "the event that comes last wins",
    (
        (
            "modules/orders/store.py",
            '.where(OrderRow.id == bindparam("order_id"), or_('
            "*(OrderRow.status == source.value for source in sources)))",
            '.where(OrderRow.id == bindparam("order_id"))',
        ),
    ),
    CHAOS,
    "the order is confirmed",
)
EVERYBODYS_LIST = Defect(
    "a list shows what is others'",
    (
        (
            "modules/orders/store.py",
            '    mine = (OrderRow.user_id == bindparam("user"), *conditions)\n',
            "    mine = conditions\n",
        ),
    ),
    "tests/modules/orders/test_orders.py",
    "lists_show_one_users_orders",
    "lists_show_one_users_orders and sqlite",
)
ECHO = Defect(
    "a refusal repeats what was sent",
    (
        (
            "kernel/errors.py",
            'reason=error["msg"].removeprefix("Value error, "),',
            "reason=f\"{error['msg']}: {error.get('input')}\",",
        ),
    ),
    "tests/commerce/test_input.py",
    "FAILED",
)
ALL_ARE_PROBES = Defect(
    "a half-open circuit lets everybody through",
    (
        (
            "kernel/breaker.py",
            "        self.probe, self.until = ticket, now + self.call_seconds\n",
            "        self.probe = ticket\n",
        ),
    ),
    "tests/kernel/test_breaker.py",
    "exactly_one_probe",
    "exactly_one_probe",
)
LOOKED_BEFORE = Defect(
    "a refund looks first and writes then",
    (("modules/payments/store.py", "        PaymentRow.refunded_amount + _sum <= PaymentRow.amount,\n", ""),),
    "tests/modules/payments/test_races.py",
    "no_cent_more",
    "no_cent_more and sqlite",
)
STOPPED_AT_ONCE = Defect(
    "the server stops as its library does by default",
    (("kernel/server.py", "        server = DrainingServer(config)\n", "        server = uvicorn.Server(config)\n"),),
    "tests/faults/test_stop.py",
    "FAILED",
    "test_a_terminated_server_answers",
)
DEFECTS = (
    NO_PROVIDER_KEY,
    KEY_IGNORED,
    SAID_BEFORE,
    SAID_AFTER,
    NEVER_TAKEN_OVER,
    NOT_ON_THE_DISK,
    CLAIMED_FIRST,
    HEARD_TWICE,
    LAST_WINS,
    EVERYBODYS_LIST,
    ECHO,
    ALL_ARE_PROBES,
    LOOKED_BEFORE,
    STOPPED_AT_ONCE,
)


def spoilt(folder: Path, defect: Defect) -> Path:
    """A copy of the source with the defect in it."""
    copy = folder / "src"
    shutil.copytree(ROOT / "src" / "bedplate", copy / "bedplate", ignore=shutil.ignore_patterns("__pycache__"))
    for name, good, bad in defect.changes:
        path = copy / "bedplate" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(good) == 1, f"{name} has changed: {good!r} stands there {text.count(good)} times"
        path.write_text(text.replace(good, bad), encoding="utf-8")
    return copy


def test_every_defect_can_still_be_put_into_the_source(tmp_path: Path) -> None:
    for number, defect in enumerate(DEFECTS):
        spoilt(tmp_path / str(number), defect)


@pytest.mark.faults
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name.replace(" ", "-"))
def test_a_defect_is_caught(tmp_path: Path, defect: Defect) -> None:
    source = spoilt(tmp_path, defect)
    chosen = ["-k", defect.chosen] if defect.chosen else []
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", defect.suite, *chosen]
        + ["--basetemp", str(tmp_path / "tests")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source), "BEDPLATE_TEST_SETTLE_SECONDS": "45"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout[-3000:] + ran.stderr[-2000:]
    assert defect.says in ran.stdout, ran.stdout[-3000:]
