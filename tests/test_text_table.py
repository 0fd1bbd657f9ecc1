"""Tables that stay readable in a pipe and in terminals of any width."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mstemba.text_table import format_table

HEADS = ("name", "width", "weights")
ROWS = [
    ("clip", "768", "downloaded by open_clip, or a local file"),
    ("動画", "1280", ""),
]


def test_without_a_width_no_cell_is_folded() -> None:
    assert format_table(HEADS, ROWS, {"width"}) == [
        "name  width  weights",
        "clip    768  downloaded by open_clip, or a local file",
        "動画   1280",
    ]


def test_a_last_column_that_does_not_fit_is_wrapped_between_words() -> None:
    assert format_table(HEADS, ROWS, {"width"}, 40) == [
        "name  width  weights",
        "clip    768  downloaded by open_clip, or",
        "             a local file",
        "動画   1280",
    ]


def test_rows_are_blocks_where_the_columns_do_not_fit() -> None:
    assert format_table(HEADS, ROWS, {"width"}, 30) == [
        "clip",
        "  width    768",
        "  weights  downloaded by",
        "           open_clip, or a",
        "           local file",
        "動画",
        "  width  1280",
    ]


WORDS = st.lists(st.text("ab動", min_size=1, max_size=8), max_size=4).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=4), st.integers(72, 120))
def test_lines_fit_into_the_terminal_and_have_every_word(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    lines = format_table(HEADS, rows, {"width"}, width)
    assert all(cell_len(line) <= width for line in lines)
    said = " ".join(lines).split()
    for word in " ".join(cell for row in rows for cell in row).split():
        said.remove(word)
