"""Pages: every list is bounded. Two documented styles: page and per_page, limit and offset."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAXIMUM_OFFSET = 2**31
MAXIMUM_LISTED = 100


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of an ordered list is wanted: so many rows after the first so many."""

    limit: int
    offset: int

    @classmethod
    def of_page(cls, page: int, per_page: int, maximum: int = 100) -> "Slice":
        """Page 1 is the first; values out of range are brought into it."""
        limit = min(max(per_page, 1), maximum)
        return cls(limit, min((max(page, 1) - 1) * limit, MAXIMUM_OFFSET))

    @property
    def page(self) -> int:
        return self.offset // self.limit + 1

    def bounded(self) -> "Slice":
        """At most a hundred rows, whatever was asked for."""
        return Slice(min(max(self.limit, 1), MAXIMUM_LISTED), max(self.offset, 0))

    def total_if_last(self, found: int) -> int | None:
        """How long the list is, if so few rows were found that it ends with them; None: they have to be counted."""
        return self.offset + found if found < self.limit and (found or not self.offset) else None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A slice of a list, and how long the list is."""

    items: list[T]
    total: int

    def pages(self, per_page: int) -> int:
        """How many pages there are; none for an empty list."""
        return -(-self.total // per_page)
