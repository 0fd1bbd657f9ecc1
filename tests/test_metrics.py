"""Per-frame average precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.pipeline.metrics import average_precision, mean_average_precision


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.mark.parametrize(
    ("scores", "labels", "ap"),
    [
        ([0.9, 0.8, 0.1], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.1], [0, 1, 1], (1 / 2 + 2 / 3) / 2),
        ([0.1, 0.8, 0.9], [1, 0, 0], 1 / 3),
        ([0.9, 0.8], [0, 0], 0.0),
        ([0.9], [1], 1.0),
    ],
)
def test_average_precision_by_hand(scores: list[float], labels: list[int], ap: float) -> None:
    assert average_precision(column(*scores), column(*labels) > 0)[0] == pytest.approx(ap)


def test_the_mean_is_in_percent_over_the_classes_that_occur() -> None:
    ap = np.array([0.5, 0.0, 1.0])
    assert mean_average_precision(ap, np.array([3, 0, 1])) == pytest.approx(75.0)
    assert math.isnan(mean_average_precision(ap, np.array([0, 0, 0])))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        average_precision(np.zeros((3, 2)), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        average_precision(np.zeros(3), np.zeros(3, bool))


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), classes=st.integers(1, 4))
def test_only_the_ranking_counts(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.linspace(-3, 3, rows)[:, None], classes), axis=0)
    labels = rng.random((rows, classes)) < 0.3
    ap = average_precision(scores, labels)
    assert np.array_equal(average_precision(1 / (1 + np.exp(-scores)), labels), ap)
    assert np.array_equal(average_precision(7 * scores + 2, labels), ap)
    order = rng.permutation(rows)  # without ties the order of the steps does not matter either
    assert np.allclose(average_precision(scores[order], labels[order]), ap, atol=1e-12)
    assert ((ap >= 0) & (ap <= 1)).all()


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40))
def test_average_precision_equals_the_plain_loop(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.random(rows), rng.random(rows) < 0.4
    hits, precisions = 0, []
    for rank, index in enumerate(sorted(range(rows), key=lambda i: -scores[i]), 1):
        if labels[index]:
            hits += 1
            precisions.append(hits / rank)
    expected = sum(precisions) / len(precisions) if precisions else 0.0
    assert average_precision(column(*scores), labels[:, None])[0] == pytest.approx(expected)


def test_the_fields_own_meter_gives_the_same_numbers(shared: Path) -> None:
    expected = json.loads((shared / "golden" / "metrics_expected.json").read_text())
    with np.load(shared / "golden" / "metrics_inputs.npz") as data:
        names = sorted(name for name in data if name.startswith("probs_"))
        scores = np.concatenate([data[name] for name in names])
        labels = np.concatenate([data[n.replace("probs", "labels")] for n in names]) > 0
    ap = average_precision(scores, labels)
    assert ap == pytest.approx(np.array(expected["ap_per_class"]), abs=1e-6)
    assert 100 * ap.mean() == pytest.approx(expected["map_all_classes"], rel=1e-6)
    present = mean_average_precision(ap, labels.sum(axis=0))
    assert present == pytest.approx(expected["map_present_classes"], rel=1e-6)
