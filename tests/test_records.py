"""The arrays that travel between the stages carry their times and refuse what does not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.errors import StoreError, UsageError
from mstemba.records import Features, FeatureSpec, Frames, Scores, TimeGrid, check_finite

SPEC = FeatureSpec("clip", "ViT-B-32", "tag:openai", 512, 224, 224)
GRID = TimeGrid.even(0.0, 0.5, 3)


@pytest.mark.parametrize(
    ("starts", "step", "says"),
    [
        ([], 1.0, "T >= 1"),
        ([[0.0, 1.0]], 1.0, r"shape \(1, 2\)"),
        ([0.0, 0.0], 1.0, "strictly increasing"),
        ([1.0, 0.5], 1.0, "strictly increasing"),
        ([0.0, np.nan], 1.0, "strictly increasing"),
        ([0.0], 0.0, "step is 0.0"),
        ([0.0], -1.0, "step is -1.0"),
        ([0.0], np.nan, "step is nan"),
        ([0.0], np.inf, "step is inf"),
        ([np.nan], 1.0, "strictly increasing"),
    ],
)
def test_a_grid_refuses_times_that_do_not_increase(starts: object, step: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TimeGrid(np.array(starts, np.float64), step)


@given(
    start=st.floats(-100, 100),
    step=st.floats(1e-3, 10),
    count=st.integers(1, 500),
)
def test_an_even_grid_is_even_and_its_rows_touch(start: float, step: float, count: int) -> None:
    grid = TimeGrid.even(start, step, count)
    assert grid.is_even
    assert grid.as_dict() == {"start": start, "step": step, "count": count}
    assert np.array_equal(grid.ends[:-1], grid.starts[1:])
    assert grid.ends[-1] == grid.starts[-1] + step


def test_the_times_of_a_variable_rate_video_are_not_even_and_kept_as_they_are() -> None:
    starts = np.array([0.0, 0.1, 2.0, 2.1])
    grid = TimeGrid(starts, 0.7)
    assert not grid.is_even
    assert grid.ends.tolist() == [0.1, 2.0, 2.1, pytest.approx(2.8)]


def test_a_grid_stays_even_while_every_row_is_within_half_a_step() -> None:
    assert TimeGrid(np.array([0.0, 1.49, 2.0]), 1.0).is_even
    assert not TimeGrid(np.array([0.0, 1.51, 2.0]), 1.0).is_even


@given(
    steps=st.lists(st.floats(0.01, 5), min_size=1, max_size=12),
    anchor=st.floats(0, 1),
)
def test_values_are_shown_around_the_times_at_which_they_hold(
    steps: list[float], anchor: float
) -> None:
    grid = TimeGrid(np.cumsum([0.0, *steps[:-1]]), steps[-1])
    times, bounds = grid.times(anchor), grid.bounds(anchor)
    assert len(times) == grid.count == len(bounds) - 1
    assert (bounds[0], bounds[-1]) == (grid.start, grid.ends[-1])
    assert ((bounds[:-1] <= times) & (times <= bounds[1:])).all()
    assert ((grid.starts <= times) & (times <= grid.ends)).all()


def test_the_places_of_values_in_their_rows() -> None:
    assert GRID.times(0.0).tolist() == [0.0, 0.5, 1.0]
    assert GRID.times(0.5).tolist() == [0.25, 0.75, 1.25]
    assert GRID.bounds(0.0).tolist() == [0.0, 0.25, 0.75, 1.5]
    assert GRID.bounds(0.5).tolist() == [0.0, 0.5, 1.0, 1.5]
    dense = Scores(np.zeros((3, 1), np.float32), GRID, ("a",), "v", 1.1, 25.0, anchor=0.5)
    assert dense.times.tolist() == [0.25, 0.75, 1.1]  # not after the end of the video
    assert dense.bounds.tolist() == [0.0, 0.5, 1.0, 1.1]
    with pytest.raises(ValueError, match="anchor is 2, expected 0 to 1"):
        replace(dense, anchor=2)


@pytest.mark.parametrize(
    ("images", "times"),
    [
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2)),
        (np.zeros((2, 4, 4, 4), np.uint8), np.zeros(2)),
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3)),
    ],
)
def test_frames_must_be_rgb_bytes_with_a_time_each(images: np.ndarray, times: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected|times"):
        Frames(images, times)


def test_frames_features_and_scores_accept_what_fits() -> None:
    assert Frames(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2)).times.shape == (2,)
    assert Features(np.zeros((3, 5)), GRID, 1.5, 25.0, "k").grid is GRID
    assert Scores(np.zeros((3, 2), np.float32), GRID, ("a", "b"), "v", 1.5, 25.0).video == "v"


@pytest.mark.parametrize("shape", [(2, 5), (4, 5), (3,), (3, 5, 1)])
def test_features_must_have_a_row_for_every_step_of_the_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(3, F\)"):
        Features(np.zeros(shape, np.float32), GRID, 1.5, 25.0, "k")


@pytest.mark.parametrize("shape", [(3, 1), (2, 2), (3, 3), (3,)])
def test_scores_must_have_a_column_for_every_class(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        Scores(np.zeros(shape, np.float32), GRID, ("a", "b"), "v", 1.5, 25.0)


def test_a_specification_survives_being_written_down() -> None:
    spec = replace(SPEC, window=8, dtype="float16")
    assert FeatureSpec.from_dict(spec.as_dict()) == spec


@pytest.mark.parametrize("change", [{"window": ...}, {"colour": "red"}])
def test_a_specification_of_another_version_names_the_odd_field(change: dict[str, object]) -> None:
    data = {**SPEC.as_dict(), **change}
    name = next(iter(change))
    if change[name] is ...:
        del data[name]
    with pytest.raises(UsageError, match=name):
        FeatureSpec.from_dict(data)


def test_differences_name_the_option_what_it_is_and_what_was_wanted() -> None:
    assert SPEC.differences(SPEC) == ""
    wanted = replace(SPEC, window=8, precision="float16")
    assert SPEC.differences(wanted) == "window=16 (wanted 8), precision=float32 (wanted float16)"


def test_scores_are_probabilities_of_a_video_that_lasts() -> None:
    good = Scores([[0.0, 1.0]], TimeGrid([0], 1.0), ("a", "b"), "v", 1.0, 25.0)  # type: ignore[arg-type]
    assert good.probabilities.dtype == np.float32
    assert good.grid.starts.dtype == np.float64
    for wrong in (np.nan, -0.1, 1.5):
        with pytest.raises(ValueError, match="from 0 to 1"):
            replace(good, probabilities=np.array([[0.5, wrong]], np.float32))
    for length in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"duration is {length}"):
            replace(good, duration=length)


def test_features_that_are_no_numbers_are_refused() -> None:
    rows = np.zeros((4, 2), np.float16)
    check_finite(rows)
    rows[2, 1] = np.inf
    with pytest.raises(StoreError, match="NaN or infinity in row 2 of 4"):
        check_finite(rows)
