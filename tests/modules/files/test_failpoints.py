"""A process that fails anywhere in the work of files: afterwards no bytes are alone, no row is without bytes, and what
is counted is what is there."""

import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from bedplate.kernel import failpoints
from bedplate.kernel.failpoints import FailpointReached
from bedplate.kernel.outbox import revive
from bedplate.models import FileRow
from bedplate.modules.files.public import File
from bedplate.modules.files.store import READ
from tests.failpoints import noted, of_module
from tests.modules.files.cabinet import EVERYTHING, Cabinet, owner
from tests.security.crowd import on_both_engines

POINTS = of_module("files")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


async def until_stored(cabinet: Cabinet, me: str, content: bytes) -> File:
    """As a client does that got no answer: the same again."""
    for _ in range(3):
        with contextlib.suppress(FailpointReached):
            return await cabinet.store(me, content)
    raise AssertionError("it fails again and again")


async def settle(cabinet: Cabinet) -> None:
    """An hour later everything that recovers by itself has done so."""
    for _ in range(3):
        await cabinet.world.deliver()
        cabinet.clock.advance(1300)
        with contextlib.suppress(FailpointReached):
            await cabinet.service.sweep()
        with contextlib.suppress(FailpointReached):
            await cabinet.reading.catch_up()
        await revive(cabinet.db, cabinet.clock, ["files"])
    await cabinet.world.deliver()


async def walk(cabinet: Cabinet) -> str:
    """Everything that happens to files: stored, read, refused, deleted. Whose they are."""
    me = owner()
    await until_stored(cabinet, me, b"a text that is kept")
    gone = await until_stored(cabinet, me, b"a text that is deleted")
    await cabinet.world.deliver()
    with contextlib.suppress(FailpointReached):
        await cabinet.files.delete_file(me, gone.id)
    await cabinet.world.deliver()
    await settle(cabinet)
    return me


async def assert_all_is_well(cabinet: Cabinet, me: str) -> None:
    await cabinet.assert_nothing_is_alone()
    mine = (await cabinet.files.list_files(me, EVERYTHING)).items
    # An upload whose answer was lost may be there twice: clients see both in the list.
    assert 1 <= len(mine) <= 3
    for file in mine:
        assert await cabinet.is_whole(file)
        assert await cabinet.passages.search(me, [file.id], "text", 5)
    assert await cabinet.passages_kept() == await cabinet.indexed() == len(mine)
    assert {row[0] for row in await cabinet.db.all(select(FileRow.text_status))} == {READ}


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_the_walk_comes_by_every_failpoint(cabinet: Cabinet) -> None:
    with noted() as reached:
        await assert_all_is_well(cabinet, await walk(cabinet))
    assert sorted(point for point in reached if point.startswith("files.")) == list(POINTS)


@on_both_engines
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", POINTS)
async def test_a_failure_anywhere_is_recovered_from(cabinet: Cabinet, point: str, nth: int) -> None:
    failpoints.arm(f"{point}:raise:{nth}")
    await assert_all_is_well(cabinet, await walk(cabinet))
    assert nth > 1 or failpoints._armed.name == "", "it has failed there"
