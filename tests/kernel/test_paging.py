"""Pages: every list is bounded, and no page number is too strange."""

from hypothesis import given
from hypothesis import strategies as st

from bedplate.kernel.paging import MAXIMUM_LISTED, MAXIMUM_OFFSET, Page, Slice

any_number = st.integers(-(2**70), 2**70)


@given(page=any_number, per_page=any_number, maximum=st.integers(1, 1000))
def test_any_page_number_gives_a_bounded_slice(page: int, per_page: int, maximum: int) -> None:
    part = Slice.of_page(page, per_page, maximum)
    assert 1 <= part.limit <= maximum
    assert 0 <= part.offset <= MAXIMUM_OFFSET


@given(page=st.integers(1, 10_000), per_page=st.integers(1, 100))
def test_a_slice_knows_its_page(page: int, per_page: int) -> None:
    assert Slice.of_page(page, per_page).page == page


@given(total=st.integers(0, 500), per_page=st.integers(1, 100))
def test_the_pages_together_are_the_whole_list_in_order(total: int, per_page: int) -> None:
    everything = list(range(total))
    pages = Page(everything, total).pages(per_page)
    parts = [Slice.of_page(number, per_page) for number in range(1, pages + 1)]
    shown = [everything[part.offset : part.offset + part.limit] for part in parts]
    assert sum(shown, []) == everything
    assert all(shown), "no page is empty"


def test_an_empty_list_has_no_pages() -> None:
    assert Page([], 0).pages(20) == 0


@given(total=st.integers(0, 300), limit=st.integers(-5, 200), offset=st.integers(-5, 400))
def test_a_list_is_counted_only_where_its_end_does_not_show(total: int, limit: int, offset: int) -> None:
    part = Slice(limit, offset).bounded()
    assert 1 <= part.limit <= MAXIMUM_LISTED and part.offset >= 0
    found = len(range(total)[part.offset : part.offset + part.limit])
    assert part.total_if_last(found) in (total, None)
    assert (part.total_if_last(found) is None) == (found == part.limit or (not found and part.offset > 0))
