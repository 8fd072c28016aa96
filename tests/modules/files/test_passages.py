"""Passages of files, found by the database's full-text search, in each deployment."""

import asyncio

import pytest
from sqlalchemy import select, update

from bedplate.kernel.breaker import CALL_SECONDS
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.ids import new_id
from bedplate.kernel.relay import HANDLING_SECONDS
from bedplate.models import FileRow
from bedplate.modules.files import reading
from bedplate.modules.files.public import File, FileMissing, TextNotReady
from bedplate.modules.files.reading import Reading
from bedplate.modules.files.store import NONE, READ, UNREAD
from bedplate.modules.files.texts import MAXIMUM_TEXT
from bedplate.modules.files.words import MAXIMUM_HITS, MAXIMUM_WORDS, telling, words_of
from tests.modules.files import pdfs
from tests.modules.files.cabinet import Cabinet, owner
from tests.security.crowd import on_both_engines

FILLER = "The weather was fine and nothing else happened on that day. "
CONTRACT = "\n\n".join(
    [
        FILLER * 20,
        "The tenant may cancel the lease with a notice period of three months.",
        FILLER * 20,
        "The rent is 950 euros, to be paid on the first day of each month.",
        FILLER * 20,
    ]
).encode()


async def found(cabinet: Cabinet, file: File, query: str, limit: int = 20) -> list[str]:
    return [each.text for each in await cabinet.passages.search(file.owner_id, [file.id], query, limit)]


async def status_of(cabinet: Cabinet, file: File) -> str:
    return str(await cabinet.db.scalar(select(FileRow.text_status).where(FileRow.id == file.id)))


async def test_what_fits_best_comes_first(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), CONTRACT, "lease.txt")
    passages = await cabinet.passages.search(file.owner_id, [file.id], "What is the notice period of the tenant?", 3)
    assert 0 < len(passages) <= 3
    assert "three months" in passages[0].text
    assert (passages[0].file_id, passages[0].filename) == (file.id, "lease.txt")
    assert [each.score for each in passages] == sorted((each.score for each in passages), reverse=True)
    assert "950 euros" in (await found(cabinet, file, "rent euros"))[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", b"# Fruit\n\nThe pineapple is sweet."),
        ("a.csv", b"fruit,taste\npineapple,sweet\n"),
        ("a.json", b'{"fruit": "pineapple", "taste": "sweet"}'),
        ("a.txt", "Pineapple: sweet".encode("utf-16")),
        ("a.pdf", pdfs.pdf("The first page", "The pineapple is sweet")),
        ("pdf without its ending", pdfs.pdf("The pineapple is sweet")),
    ],
)
async def test_texts_tables_and_pdfs_can_be_searched(cabinet: Cabinet, name: str, content: bytes) -> None:
    file = await cabinet.store(owner(), content, name)
    (passage,) = await found(cabinet, file, "PINEAPPLES")
    assert "sweet" in passage


@pytest.mark.parametrize(
    "content",
    [b"", bytes(1000), b"\x89PNG\r\n\x1a\n" + bytes(100), b"<html>pineapple</html>", b"%PDF-1.7 pineapple"],
    ids=["empty", "zeros", "image", "page", "broken-pdf"],
)
async def test_a_file_that_holds_no_text_gives_none(cabinet: Cabinet, content: bytes) -> None:
    file = await cabinet.store(owner(), content)
    assert await found(cabinet, file, "pineapple") == []
    assert await status_of(cabinet, file) == NONE


async def test_files_are_read_soon_after_they_are_stored(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), CONTRACT)
    assert await status_of(cabinet, file) == UNREAD
    await cabinet.world.deliver()
    assert await status_of(cabinet, file) == READ
    assert await cabinet.passages_kept() == await cabinet.indexed() > 3
    assert await found(cabinet, file, "tenant")


async def test_passages_of_several_files_are_ranked_together(cabinet: Cabinet) -> None:
    me = owner()
    one = await cabinet.store(me, b"Apples and pears. " * 5, "one.txt")
    two = await cabinet.store(me, b"Pears only.", "two.txt")
    not_asked = await cabinet.store(me, b"Apples, apples, apples.", "three.txt")
    passages = await cabinet.passages.search(me, [one.id, two.id, one.id], "apples pears", 20)
    assert {each.file_id for each in passages} == {one.id, two.id}
    assert not_asked.id not in {each.file_id for each in passages}
    assert len(await cabinet.passages.search(me, [one.id, two.id], "apples pears", 1)) == 1


async def test_words_that_stand_everywhere_do_not_hide_the_one_that_tells(cabinet: Cabinet) -> None:
    me = owner()
    long = (FILLER * 1000).encode() + b"The secret of the day was a pineapple. " + (FILLER * 1000).encode()
    file = await cabinet.store(me, long)
    assert "pineapple" in (await found(cabinet, file, "what happened on that day with the pineapple", 1))[0]
    assert len(await found(cabinet, file, "the weather was fine on that day", 20)) == 20


async def test_what_others_have_changes_no_score(cabinet: Cabinet) -> None:
    me = owner()
    file = await cabinet.store(me, b"apples\n\n" + b"filler " * 1000 + b"\n\npears")
    before = await cabinet.passages.search(me, [file.id], "apples pears", 20)
    for _ in range(5):
        await cabinet.store(owner(), b"apples " * 1000)
    await cabinet.world.deliver()
    assert await cabinet.passages.search(me, [file.id], "apples pears", 20) == before


async def test_where_nothing_fits_files_are_given_from_their_beginnings(cabinet: Cabinet) -> None:
    me = owner()
    one = await cabinet.store(me, b"First. " * 500, "one.txt")
    two = await cabinet.store(me, b"Second. " * 500, "two.txt")
    for query in ("summarise it please, xyzzy", "", "?!", "\0", "¿"):
        passages = await cabinet.passages.search(me, [one.id, two.id], query, 4)
        assert [each.position for each in passages] == [0, 0, 1, 1]
        assert {each.score for each in passages} == {0.0}


async def test_another_users_file_is_missing_and_nothing_of_it_is_found(cabinet: Cabinet) -> None:
    me, other = owner(), owner()
    mine, secret = await cabinet.store(me, b"my apples"), await cabinet.store(other, b"secret apples")
    await cabinet.world.deliver()
    for wanted in ([secret.id], [mine.id, secret.id], [f"file-{new_id()}"], ["x"], [""]):
        with pytest.raises(FileMissing):
            await cabinet.passages.search(me, wanted, "apples", 20)
    for stranger in ("", "no id"):
        with pytest.raises(FileMissing):
            await cabinet.passages.search(stranger, [mine.id], "apples", 20)
    assert await found(cabinet, mine, "apples") == ["my apples"]
    assert await cabinet.passages.search(me, [], "apples", 20) == []


async def test_a_deleted_file_is_missing_and_nothing_of_it_is_kept(cabinet: Cabinet) -> None:
    me = owner()
    first, second = await cabinet.store(me, b"first apple"), await cabinet.store(me, b"second apple")
    await cabinet.world.deliver()
    await cabinet.files.delete_file(me, second.id)
    with pytest.raises(FileMissing):
        await cabinet.passages.search(me, [second.id], "apple", 20)
    await cabinet.world.deliver()
    assert (await cabinet.passages_kept(), await cabinet.indexed()) == (1, 1)
    third = await cabinet.store(me, b"third apple")
    assert await found(cabinet, third, "apple") == ["third apple"]
    assert await found(cabinet, first, "second") == ["first apple"], "what was deleted is not found under a new number"


HOSTILE = [
    '"',
    "'",
    "' | '",
    '" OR "',
    "apples' OR '1'='1",
    "apples'); DROP TABLE files_files; --",
    "text:apples",
    "file : file",
    "{file text}: apples",
    "apples*",
    "^apples",
    "-apples",
    "NEAR(apples pears, 2)",
    "apples AND NOT pears",
    "apples & !pears",
    "apples <-> pears",
    "apples:*",
    "(((((",
    ")",
    "\\",
    "\0",
    "%s %(x)s :x {x}",
    "a" * 100_000,
    "apples " * 10_000,
    "'" * 10_000,
    "؀ࠀ𐀀",
]


@on_both_engines
@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
async def test_no_question_means_anything_to_the_index(cabinet: Cabinet, query: str) -> None:
    me = owner()
    file, other = await cabinet.store(me, b"apples and more"), await cabinet.store(me, b"pears")
    passages = await cabinet.passages.search(me, [file.id], query, 20)
    assert {each.file_id for each in passages} <= {file.id}
    assert await found(cabinet, other, "pears") == ["pears"]


def test_the_words_of_a_question_are_letters_and_digits_and_not_too_many() -> None:
    assert words_of("What's the notice-period, 3 months?") == ["what", "s", "the", "notice", "period", "3", "months"]
    assert words_of("Größe größe GRÖSSE") == ["grösse"]
    assert words_of("a_b") == ["a", "b"]
    assert len(words_of(" ".join(str(number) for number in range(1000)))) == MAXIMUM_WORDS


def test_what_a_search_collects_is_bounded_and_the_rarest_words_are_kept() -> None:
    often = {f"word {number}": 8_000 - number for number in range(30)}
    assert telling({**often, "rare": 7}, 17_000) == [("rare", 7), ("word 29", 7_971)]
    everywhere = dict.fromkeys(("a", "b", "c"), MAXIMUM_HITS * 2)
    assert telling(everywhere, MAXIMUM_HITS * 2) == [("a", MAXIMUM_HITS * 2)]
    assert telling({"a": 900, "b": 3, "c": 40}, 1_000) == [("b", 3), ("c", 40)]
    assert telling({}, 0) == []


async def test_no_more_than_is_bounded_is_searched_or_given(cabinet: Cabinet) -> None:
    me = owner()
    files = [await cabinet.store(me, b"apple " * 2000) for _ in range(2)]
    assert len(await cabinet.passages.search(me, [file.id for file in files], "apple", 1000)) == 20
    assert len(await cabinet.passages.search(me, [files[0].id], "apple", 0)) == 1
    with pytest.raises(InvalidField, match="At most 20 files"):
        await cabinet.passages.search(me, [f"file-{new_id()}" for _ in range(21)], "apple", 20)


@on_both_engines
async def test_of_many_that_want_a_file_read_one_reads_it(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), CONTRACT)
    texts = await asyncio.gather(*(found(cabinet, file, "tenant") for _ in range(10)), cabinet.world.deliver())
    assert all(each == texts[0] for each in texts[:-1])
    assert await cabinet.passages_kept() == await cabinet.indexed()


@on_both_engines
async def test_of_two_processes_that_read_a_file_one_writes(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), CONTRACT)
    others = [Reading(cabinet.db, cabinet.blobs, cabinet.clock) for _ in range(4)]
    await asyncio.gather(*(other.read(file.id) for other in others))
    kept = await cabinet.passages_kept()
    assert kept == await cabinet.indexed() > 0
    for other in others:
        await other.close()


async def test_a_file_that_takes_long_to_read_is_not_waited_for(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), pdfs.laborious(), "long.pdf")
    with pytest.raises(TextNotReady) as raised:
        await found(cabinet, file, "words")
    assert raised.value.details == {"retry_after": 2}


@on_both_engines
async def test_what_was_left_unread_is_caught_up_with(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), CONTRACT)
    async with cabinet.db.transaction() as tx:
        await tx.execute(update(FileRow).values(text_status=UNREAD))
    await cabinet.reading.catch_up()
    assert await status_of(cabinet, file) == UNREAD, "it may be under way"
    cabinet.clock.advance(61)
    await cabinet.reading.catch_up()
    assert await status_of(cabinet, file) == READ


@on_both_engines
async def test_the_longest_text_is_written_without_holding_up_readers(cabinet: Cabinet) -> None:
    file = await cabinet.store(owner(), b"some words of a long text. " * 40_000)
    loop = asyncio.get_running_loop()
    longest, last, reading_ = 0.0, loop.time(), asyncio.create_task(cabinet.reading.read(file.id))
    while not reading_.done():
        await asyncio.sleep(0)
        longest, last = max(longest, loop.time() - last), loop.time()
    await reading_
    assert await cabinet.passages_kept() * 850 > MAXIMUM_TEXT
    print(f"\nthe loop was held up for {longest * 1000:.0f} ms at most")
    assert longest < 0.1


def test_what_is_waited_for_fits_into_what_callers_wait() -> None:
    assert reading.ASKED_SECONDS < CALL_SECONDS
    assert reading.WHILE_SECONDS < HANDLING_SECONDS


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_who_has_much_to_be_read_holds_up_nobody_else(cabinet: Cabinet) -> None:
    me = owner()
    long = [await cabinet.store(me, pdfs.laborious(), "long.pdf") for _ in range(3)]
    under_way = [asyncio.create_task(cabinet.reading.read(file.id)) for file in long]
    other = await cabinet.store(owner(), b"short apples")
    async with asyncio.timeout(2):
        assert await found(cabinet, other, "apples") == ["short apples"]
    await cabinet.reading.close()
    await asyncio.gather(*under_way, return_exceptions=True)
    assert [await status_of(cabinet, file) for file in long] == [UNREAD] * 3


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_nor_does_catching_up_hold_up_what_else_is_mended(cabinet: Cabinet) -> None:
    me = owner()
    for _ in range(reading.AT_ONCE):
        await cabinet.store(me, pdfs.laborious(), "long.pdf")
    cabinet.clock.advance(61)
    async with asyncio.timeout(reading.AT_ONCE * reading.WHILE_SECONDS + 1):
        await cabinet.reading.catch_up()
    await cabinet.reading.close()


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_what_takes_long_to_read_does_not_hold_up_the_events(cabinet: Cabinet) -> None:
    await cabinet.store(owner(), pdfs.laborious(), "long.pdf")
    async with asyncio.timeout(reading.WHILE_SECONDS + 1):
        await cabinet.world.deliver()
