"""Failpoints: they do nothing, until a test names one."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bedplate.kernel import failpoints
from bedplate.kernel.failpoints import KILLED, VARIABLE, FailpointReached, arm, reach
from tests.failpoints import FAILPOINTS

SCRIPT = """
import asyncio
from bedplate.kernel.failpoints import reach
async def main():
    for number in range(1, 4):
        await reach("some.other.place")
        await reach("some.place")
        print(number, flush=True)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


async def test_a_place_that_nobody_named_lets_pass() -> None:
    arm("some.place:raise")
    await reach("some.other.place")
    await reach("")
    arm("")
    await reach("some.place")


async def test_a_named_place_fails_once_so_that_a_retry_succeeds() -> None:
    arm("some.place:raise")
    with pytest.raises(FailpointReached, match=r"some\.place"):
        await reach("some.place")
    await reach("some.place")


async def test_it_fails_at_the_wanted_time() -> None:
    arm("some.place:raise:3")
    await reach("some.place")
    await reach("some.place")
    with pytest.raises(FailpointReached):
        await reach("some.place")
    await reach("some.place")


async def test_it_hangs_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    arm("some.place:hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await reach("some.place")
    monkeypatch.setattr(failpoints, "HANG_SECONDS", 0.01)
    arm("some.place:hang")
    with pytest.raises(FailpointReached):
        await reach("some.place")


@pytest.mark.parametrize("text", ["some.place", "some.place:explode", "some.place:raise:0", "some.place:raise:x", ":"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        arm(text)


@pytest.mark.parametrize(
    ("text", "passed"), [("some.place:exit", ""), ("some.place:exit:3", "1\n2\n"), ("", "1\n2\n3\n")]
)
def test_a_process_that_is_told_by_its_environment_dies_there(text: str, passed: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, VARIABLE: text},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.stdout, ended.returncode) == (passed, KILLED if text else 0), ended.stderr


def test_every_failpoint_is_found_in_the_source_and_well_named() -> None:
    assert "payments.charge.after_provider" in FAILPOINTS
    for name in FAILPOINTS:
        module, operation, place = name.split(".")
        assert module.isidentifier()
        assert operation.isidentifier()
        assert place.startswith(("before_", "after_")), name
