"""Counts in messages agree with their nouns."""

import pytest

from mstemba.wording import counted


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("video",), "0 videos"),
        (1, ("video",), "1 video"),
        (2, ("more video",), "2 more videos"),
        (1, ("class",), "1 class"),
        (3, ("class",), "3 classes"),
        (2, ("file that does", "files that do"), "2 files that do"),
    ],
)
def test_a_noun_has_the_number_of_its_count(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text
