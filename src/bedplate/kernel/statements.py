"""Statements as the drivers take them: SQLAlchemy turns each into text once, and the driver runs the text.

What SQLAlchemy's connections do around every execution costs several times what the drivers need for it. A statement
that is built once, at import, is compiled at its first use, for the names of its values and the lengths of its lists,
and remembered as long as it lives; one that is built for a single use is compiled for that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect, Executable, Float, Row
from sqlalchemy.engine import result_tuple
from sqlalchemy.sql.compiler import SQLCompiler

from bedplate.kernel.db import Parameters, Record

Process = Callable[[Any], Any]


class Plan:
    """One statement's text in a dialect, how values go in and how rows come out."""

    __slots__ = ("_constants", "_given", "_processes", "make", "sql")

    def __init__(self, statement: Executable, compiled: SQLCompiler, given: Parameters) -> None:
        if compiled.insert_prefetch or compiled.update_prefetch:
            raise TypeError("columns have no defaults here: give the value")
        dialect = compiled.dialect
        state = compiled.construct_expanded_state(given)
        lists = {part: (name, at) for name, parts in state.parameter_expansion.items() for at, part in enumerate(parts)}
        self.sql = state.statement
        self._constants: list[Any] = []
        # Where a value goes, its name, which one of a list it is, what the driver is to be given for it.
        self._given: list[tuple[int, str, int | None, Process | None]] = []
        for place, part in enumerate(state.positiontup or ()):
            name, at = lists.get(part, (part, None))
            process = _bind(compiled.binds[name].type, dialect)
            if name in given:
                self._given.append((place, name, at, process))
                self._constants.append(None)
            else:
                value = state.parameters[part]
                self._constants.append(value if process is None else process(value))
        columns: Iterable[Any] = getattr(statement, "exported_columns", ())
        self._processes: Any = tuple(_result(column.type, dialect) for column in columns)
        # What makes a row of what the driver brings, once its columns' names are known.
        self.make: Callable[[Any], Record] | None = None

    def values(self, given: Parameters) -> list[Any]:
        """What the driver is to be given, in order."""
        values = self._constants.copy()
        for place, name, at, process in self._given:
            value = given[name] if at is None else given[name][at]
            values[place] = value if process is None else process(value)
        return values

    def learn(self, names: Sequence[str]) -> Callable[[Any], Record]:
        """What makes a row of columns with these names."""
        if self._processes and len(self._processes) != len(names):
            raise TypeError(f"a statement selects {len(self._processes)} columns, and the driver brings {names}")
        parent, _, places = result_tuple(names).args  # type: ignore[attr-defined]
        self.make = made = partial(Row, parent, self._processes or None, places)
        return made


class Plans:
    """Those of one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: WeakKeyDictionary[Executable, dict[tuple[str, ...], _Shape]] = WeakKeyDictionary()

    def of(self, statement: Executable, given: Parameters) -> Plan:
        """How to run this statement with these values."""
        shapes = self._known.get(statement)
        if shapes is None:
            self._known[statement] = shapes = {}
        names = tuple(given)
        shape = shapes.get(names)
        if shape is None:
            shapes[names] = shape = _Shape(statement, given, self._dialect)
        lengths = tuple([len(given[name]) for name in shape.lists]) if shape.lists else ()
        plan = shape.plans.get(lengths)
        if plan is None:
            shape.plans[lengths] = plan = Plan(statement, shape.compiled(statement, given), given)
        return plan


class _Shape:
    """A statement with values of certain names. `lists`: those that are lists, whose lengths are part of the text."""

    def __init__(self, statement: Executable, given: Parameters, dialect: Dialect) -> None:
        self._dialect = dialect
        compiled = self.compiled(statement, given)
        binds: Mapping[str, Any] = compiled.binds
        self.lists = tuple(name for name in given if name in binds and binds[name].expanding)
        self.plans: dict[tuple[int, ...], Plan] = {}
        if not self.lists:
            self.plans[()] = Plan(statement, compiled, given)

    def compiled(self, statement: Executable, given: Parameters) -> SQLCompiler:
        # Not kept: it refers to the statement, which would live for ever.
        compiled = statement.compile(dialect=self._dialect, column_keys=list(given))  # type: ignore[attr-defined]
        assert isinstance(compiled, SQLCompiler)
        return compiled


def _bind(of: Any, dialect: Dialect) -> Process | None:
    process: Process | None = of.dialect_impl(dialect).bind_processor(dialect)
    return process


def _result(of: Any, dialect: Dialect) -> Process | None:
    if isinstance(of, Float):  # which both drivers bring; SQLAlchemy would ask which kind of number the server has
        return None
    process: Process | None = of.dialect_impl(dialect).result_processor(dialect, None)
    return process
