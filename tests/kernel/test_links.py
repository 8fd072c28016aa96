"""Signed links: they open what they name, until they expire, and nothing else."""

import pytest

from bedplate.kernel.links import Links
from tests.kernel.clocks import StillClock

SECRET = "a secret of the tests, long enough"


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def links(clock: StillClock) -> Links:
    return Links(SECRET, "files", clock)


def test_a_link_holds_until_it_expires(links: Links, clock: StillClock) -> None:
    link = links.issue("file-1", 3600)
    assert 0 <= link.expires - clock.timestamp() - 3600 < 300
    shown = ("file-1", str(link.expires), link.signature)
    assert links.holds(*shown)
    clock.advance(link.expires - clock.timestamp() - 1)
    assert links.holds(*shown)
    clock.advance(1)
    assert not links.holds(*shown)


def test_links_that_are_asked_for_together_are_the_same(links: Links, clock: StillClock) -> None:
    clock.advance(1)
    first = links.issue("file-1", 3600)
    clock.advance(299)
    assert links.issue("file-1", 3600) == first
    clock.advance(1)
    assert links.issue("file-1", 3600).expires == first.expires + 300


def test_a_link_of_another_thing_purpose_or_installation_is_worth_nothing(links: Links, clock: StillClock) -> None:
    link = links.issue("file-1", 3600)
    shown = (str(link.expires), link.signature)
    assert not links.holds("file-2", *shown)
    assert not Links(SECRET, "exports", clock).holds("file-1", *shown)
    assert not Links(f"{SECRET}.", "files", clock).holds("file-1", *shown)


def test_no_part_of_a_link_can_be_changed(links: Links) -> None:
    link = links.issue("file-1", 3600)
    moment = str(link.expires)
    for expires in (str(link.expires + 1), f"0{moment}", f"+{moment}", f" {moment}", f"{moment}\n", "", "-1", "9" * 13):
        assert not links.holds("file-1", expires, link.signature)
    assert not links.holds("file-1", moment.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")), link.signature)
    for at in range(64):
        other = "0" if link.signature[at] != "0" else "1"
        assert not links.holds("file-1", moment, link.signature[:at] + other + link.signature[at + 1 :])
    for signature in (
        "",
        link.signature[:-1],
        f"{link.signature}0",
        link.signature.upper(),
        f"{link.signature}\n",
        "é",
    ):
        assert not links.holds("file-1", moment, signature)


def test_what_stands_in_one_part_is_not_taken_for_another(links: Links) -> None:
    link = links.issue("1:file", 3600)
    assert not links.holds("file", f"{link.expires}:1", link.signature)
    assert not links.holds("\udcff", str(link.expires), link.signature), "no text at all is no error"
