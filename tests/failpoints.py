"""Every failpoint there is, found in the source: what is added there is tested, or fails a test."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bedplate.kernel import failpoints

SRC = Path(__file__).parent.parent / "src" / "bedplate"


def reached_in(source: Path) -> Iterator[str]:
    """The names in the calls of `reach` below a folder. AssertionError: one that does not stand there whole."""
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reach":
                [name] = node.args
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: write the whole name"
                yield str(name.value)


FAILPOINTS: tuple[str, ...] = tuple(sorted(set(reached_in(SRC))))


@contextmanager
def noted() -> Iterator[set[str]]:
    """Those that are reached meanwhile."""
    reached: set[str] = set()

    async def note(name: str) -> None:
        reached.add(name)

    with failpoints.watched(note):
        yield reached


def of_module(name: str) -> tuple[str, ...]:
    """Those of one module, which its names begin with."""
    return of_modules(name)


def of_modules(*names: str) -> tuple[str, ...]:
    """Those of several."""
    return tuple(point for point in FAILPOINTS if point.partition(".")[0] in names)
