"""The laws that import-linter cannot say (3 and 5), and the house style that a parser can see."""

import ast
import functools
import gc
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

SRC = Path(__file__).parent.parent / "src" / "bedplate"
FILES = sorted(SRC.rglob("*.py"))
LONGEST_FILE = 420
NAMES_NEVER_USED = {"utils", "helpers", "common", "manager", "base"}
ROUTE_VERBS = {"get", "post", "put", "patch", "delete", "head", "options", "trace", "api_route", "websocket"}
HANDLER_DECORATORS = ROUTE_VERBS | {"exception_handler", "route"}
OPEN_TO_OTHERS = {"public", "events"}


@functools.cache
def tree(path: Path) -> ast.Module:
    # Python 3.11 miscounts its recursion, a SystemError, where garbage is collected while it makes a tree.
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    finally:
        gc.enable()


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(SRC.parent.parent)}:{getattr(node, 'lineno', 1)}"


def called(node: ast.AST) -> str:
    """`APIRouter` of `APIRouter(...)`, `get` of `router.get(...)`, else an empty string."""
    target = node.func if isinstance(node, ast.Call) else node
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


@pytest.fixture(scope="module")
def imports() -> list[tuple[str, str]]:
    """Every direct import inside the package, as (importer, imported)."""
    graph = grimp.build_graph("bedplate", cache_dir=None)
    return sorted((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))


def domain_module(name: str) -> str | None:
    parts = name.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "modules" else None


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for following in sorted(edges.get(node, ())):
                if cycle := walk(following, [*path, node]):
                    return cycle
            done.add(node)
        return None

    return next((cycle for start in sorted(edges) if (cycle := walk(start, []))), None)


def may_import(importer: str, imported: str) -> bool:
    """Law 5. Only the inside of another domain module is closed; who may look in is listed here."""
    owner, parts = domain_module(imported), imported.split(".")
    if owner is None or domain_module(importer) == owner:
        return True
    if len(parts) > 3 and parts[3] in OPEN_TO_OTHERS:
        return True
    section = importer.split(".")[1] if "." in importer else ""
    if section == "compose":
        return True
    return section in {"models", "migrations"} and len(parts) > 3 and parts[3] == "models"


def test_law_3_modules_are_acyclic(imports: list[tuple[str, str]]) -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for importer, imported in imports:
        a, b = domain_module(importer), domain_module(imported)
        if a and b and a != b:
            edges[a].add(b)
    cycle = find_cycle(edges)
    assert cycle is None, " -> ".join(cycle or [])


def test_law_5_only_public_and_events_are_imported_across_modules(imports: list[tuple[str, str]]) -> None:
    assert [f"{a} imports {b}" for a, b in imports if not may_import(a, b)] == []


def test_the_laws_would_be_noticed() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}}) is None
    inside, public = "bedplate.modules.identity.users", "bedplate.modules.identity.public"
    tables = "bedplate.modules.identity.models"
    assert may_import("bedplate.systems.cobalt.auth", public)
    assert not may_import("bedplate.systems.cobalt.auth", inside)
    assert not may_import("bedplate.modules.mail.outbound", inside)
    assert not may_import("bedplate.cli", inside)
    assert may_import("bedplate.compose", inside)
    assert may_import("bedplate.models", tables)
    assert not may_import("bedplate.models", inside)


def test_no_file_is_too_long() -> None:
    lengths = {place(f, ast.Pass()): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


def test_no_file_is_named_after_nothing() -> None:
    parts = {f: {part.strip("_") for part in f.relative_to(SRC).with_suffix("").parts} for f in FILES}
    assert [place(f, ast.Pass()) for f in FILES if parts[f] & NAMES_NEVER_USED] == []


def routes_without_a_whole_path(path: Path, module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and called(node) in {"APIRouter", "include_router"}
            and any(word.arg == "prefix" for word in node.keywords)
        ):
            yield f"{place(path, node)} uses prefix="
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and called(decorator) in ROUTE_VERBS:
                    first = decorator.args[0] if decorator.args else None
                    if not (isinstance(first, ast.Constant) and str(first.value).startswith("/")):
                        yield f"{place(path, decorator)} has no literal path"


def test_the_whole_path_stands_in_the_decorator() -> None:
    assert [fault for f in FILES for fault in routes_without_a_whole_path(f, tree(f))] == []


def runs_in_a_thread(definition: ast.AST) -> bool:
    """FastAPI sends whatever is not a coroutine function to its thread pool: slow, and a bounded resource."""
    return isinstance(definition, ast.FunctionDef | ast.ClassDef | ast.Lambda)


def dependency_faults(node: ast.Call, definitions: dict[str, list[ast.AST]]) -> Iterator[str]:
    target = node.args[0] if node.args else None
    if isinstance(target, ast.Lambda):
        yield "a lambda"
    elif isinstance(target, ast.Name | ast.Attribute):
        yield from (called(target) for d in definitions[called(target)] if runs_in_a_thread(d))
    elif isinstance(target, ast.Call):  # a factory: what it returns is the dependency
        for d in definitions[called(target)]:
            if isinstance(d, ast.ClassDef):
                methods = [m for m in d.body if isinstance(m, ast.FunctionDef) and m.name == "__call__"]
                yield from (f"{d.name}.__call__" for _ in methods)
            else:
                returned = {called(r.value) for r in ast.walk(d) if isinstance(r, ast.Return) and r.value}
                yield from (
                    f"{called(target)}.{inner.name}"
                    for inner in ast.walk(d)
                    if isinstance(inner, ast.FunctionDef) and inner is not d and inner.name in returned
                )


def synchronous_callables(modules: dict[str, ast.Module]) -> Iterator[str]:
    definitions: dict[str, list[ast.AST]] = defaultdict(list)
    for module in modules.values():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                definitions[node.name].append(node)
    for name, module in modules.items():
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(d, ast.Call) and called(d) in HANDLER_DECORATORS for d in node.decorator_list
            ):
                yield f"{name}:{node.lineno} {node.name}"
            if isinstance(node, ast.Call) and called(node) in {"Depends", "Security"}:
                for fault in dependency_faults(node, definitions):
                    yield f"{name}:{node.lineno} {fault}"


def test_handlers_and_dependencies_are_coroutines() -> None:
    inside = [f for f in FILES if f.is_relative_to(SRC / "systems") or f.is_relative_to(SRC / "kernel")]
    assert list(synchronous_callables({place(f, ast.Pass()): tree(f) for f in inside})) == []


def test_style_breaches_would_be_noticed() -> None:
    code = ast.parse(
        """
router = APIRouter(prefix="/users")
@router.get("/users/{id}")
async def good(user: Annotated[User, Depends(caller)]): ...
@router.get("")
def bad(user: Annotated[User, Depends(limited(5))]): ...
async def caller(): ...
def limited(n):
    def check(): ...
    return check
"""
    )
    faults = {fault.partition(" ")[2] for fault in routes_without_a_whole_path(SRC / "x.py", code)}
    assert faults == {"uses prefix=", "has no literal path"}
    assert sorted(synchronous_callables({"x.py": code})) == ["x.py:6 bad", "x.py:6 limited.check"]
