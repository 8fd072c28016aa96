"""What the documentation names is there: files, headings, commands and their options, make targets."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bedplate.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
GENERATED = {ROOT / "docs" / "configuration.md"}  # whether it is there and current is the matter of its own test
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken_links(page: Path, text: str) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if target in GENERATED:
            continue
        if not target.exists() or (anchor and anchor not in headings(target)):
            yield link


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each line of a shell example, without its comment."""
    for language, block in FENCE.findall(text):
        if language in ("sh", "bash"):
            yield from (line.split("#")[0].split() for line in block.replace("\\\n", " ").splitlines())


def unknown(words: list[str]) -> str | None:
    """What of a command line does not exist."""
    if words[:1] == ["make"]:
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return next((word for word in words[1:2] if word not in targets), None)
    if words[:1] != ["bedplate"]:
        return None
    command: Any = typer.main.get_command(app)
    for word in words[1:]:
        commands = getattr(command, "commands", {})
        if commands and word not in commands:
            return word
        command = commands.get(word, command)
        if word.startswith("--") and all(word not in option.opts for option in command.params):
            return word
    return None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page, page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    quoted = [words.split() for words in re.findall(r"`(bedplate [a-z][^`]*|make [a-z]+)`", FENCE.sub("", text))]
    assert [words for words in [*command_lines(text), *quoted] if unknown(words)] == []


def test_the_tour_quotes_the_source_as_it_is() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    quoted = [
        block for language, block in FENCE.findall((ROOT / "docs" / "tour.md").read_text()) if language == "python"
    ]
    assert quoted
    assert [block for block in quoted if block not in source] == []


def test_what_is_missing_would_be_noticed() -> None:
    readme = ROOT / "README.md"
    assert list(broken_links(readme, "[a](nowhere.md) [b](LICENSE) [c](#nowhere) [d](https://example.com/)")) == [
        "nowhere.md",
        "#nowhere",
    ]
    assert unknown(["bedplate", "dance"]) == "dance"
    assert unknown(["bedplate", "up", "--dance"]) == "--dance"
    assert unknown(["bedplate", "mail", "list", "--json"]) is None
    assert unknown(["make", "dance"]) == "dance"
