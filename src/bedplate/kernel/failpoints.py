"""Failpoints: named places where a test makes this process die, fail or hang. Without a test they are two comparisons.

BEDPLATE_TEST_FAILPOINT="name:exit", "name:raise" or "name:hang", with ":3" at the end for the third time that the place
is reached (every other time it lets pass), is read once, when the process starts. The names are found in the source:
each stands whole in a call of `reach`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

VARIABLE = "BEDPLATE_TEST_FAILPOINT"
HANG_SECONDS = 30.0
# What a shell reports of a process that was killed.
KILLED = 137
ACTIONS = ("exit", "raise", "hang")


class FailpointReached(RuntimeError):
    """A test wanted it to end here."""


Watcher = Callable[[str], Awaitable[None]]


@dataclass
class _Armed:
    name: str = ""
    action: str = ""
    passes: int = 0


_armed = _Armed()
_watchers: list[Watcher] = []


def arm(text: str) -> None:
    """Make one place fail, as the variable would; an empty text lets all pass again. Raises ValueError."""
    if not text:
        _armed.name = ""
        return
    name, action, nth = (*text.split(":"), "1", "1")[:3]
    if action not in ACTIONS or not nth.isdecimal() or int(nth) < 1:
        raise ValueError(f"{VARIABLE}: write name:{'|'.join(ACTIONS)}, and :number for the number-th time")
    _armed.name, _armed.action, _armed.passes = name, action, int(nth) - 1


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Await `watcher` with the name of every place that is reached meanwhile: to count, or to let others go first."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


async def reach(name: str) -> None:
    """This place is reached. `name`: module, operation and place, such as "orders.place.after_commit"."""
    for watcher in _watchers:
        await watcher(name)
    if name == _armed.name:
        await _fail(name)


async def _fail(name: str) -> None:
    if _armed.passes > 0:
        _armed.passes -= 1
        return
    if _armed.action == "exit":
        os._exit(KILLED)
    _armed.name = ""  # what is tried again must be able to succeed
    if _armed.action == "hang":
        await asyncio.sleep(HANG_SECONDS)
    raise FailpointReached(name)


arm(os.environ.get(VARIABLE, ""))
