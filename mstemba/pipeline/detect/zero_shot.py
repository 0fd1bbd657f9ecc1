"""Zero-shot detection: labels in words, found without training by comparing CLIP's rows with texts.

A label is the mean of its embedded prompt templates, as Radford et al. (2021, arXiv 2103.00020)
ensemble prompts. At each row it is weighed against sentences that describe no label, as Kerr et al.
(LERF, 2023, arXiv 2303.09553) weigh a query against canonical phrases: each label by itself, so
that several may be active at once. Cosines are smoothed over time and compared with what is usual
in the video, which Liberatori et al. (T3AL, 2024, arXiv 2404.05426) do without training too.
docs/zero-shot.md has the formula.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.data_manifests.readers.text import read_text
from mstemba.errors import ManifestError, MstembaWarning, UsageError
from mstemba.extractors import registry
from mstemba.extractors.clip_text import TextEncoder
from mstemba.limits import LONGEST_NAME, MOST_CLASSES
from mstemba.pipeline.caching.keys import Fingerprints
from mstemba.pipeline.detect.detector import Score
from mstemba.pipeline.extract.stage import with_precision
from mstemba.pipeline.features.row_times import pictures_anchor
from mstemba.pipeline.features.spec import make_spec
from mstemba.pipeline.options import FeatureOptions, RunOptions, ZeroShotOptions
from mstemba.pipeline.progress import Event, EventHandler, ignore_events
from mstemba.reading.files import found_instead
from mstemba.reading.typed import shown
from mstemba.records import Features, FeatureSpec, TimeGrid
from mstemba.wording import counted

# Logits by which a label must be above its median over the video to be as likely as not, as far
# as `contrast` compares it with that: a cosine of 0.02 at CLIP's scale of 100.
ABOVE_USUAL = 2.0
# Standard deviations of the Gaussian beyond which a row is ignored.
_REACH = 4.0

# The options that change scores but not features.
_SCORING = ("templates", "background", "smoothing", "contrast")

Array = NDArray[np.float64]


def read_phrases(given: str | Path | Iterable[str]) -> tuple[str, ...]:
    """Return labels or sentences from a list, a text separated by commas, or a text file.

    The items of a list are taken as they are. A file has one phrase a line, which may hold commas;
    empty lines are skipped.

    Raises:
        UsageError: A `.txt` file is missing, a file is not text, or an item is not text.
    """
    if isinstance(given, str | Path):
        file = os.path.expanduser(given) if isinstance(given, str) else given
        if os.path.isfile(file):
            items = _lines(Path(file))
        elif isinstance(given, Path) or given.strip().endswith(".txt"):
            raise UsageError(
                f"{given}: {found_instead(file)}, expected a text file with one phrase a line"
            )
        else:
            items = given.split(",")
    else:
        items = list(given)
    if odd := [item for item in items if not isinstance(item, str)]:
        raise UsageError(
            f"{odd[0]!r} is {type(odd[0]).__name__}, expected text: a label, a sentence"
        )
    return tuple(item.strip() for item in items if item.strip())


def _lines(file: Path) -> list[str]:
    report = AnnotationReport()
    try:
        lines = read_text(file, report).split("\n")
    except ManifestError as error:
        raise UsageError(f"{error}; expected text with one phrase a line") from None
    for line in report.lines():
        warnings.warn(MstembaWarning(line), stacklevel=2)
    return lines


@dataclass(frozen=True)
class ZeroShotDetector:
    """Scores the rows of a backbone that has a text tower against labels in words."""

    classes: tuple[str, ...]
    options: ZeroShotOptions
    spec: FeatureSpec
    resolved: registry.ResolvedBackbone

    @property
    def anchor(self) -> float:
        return pictures_anchor(self.spec.window, self.spec.stride)

    def key_parts(self) -> dict[str, Any]:
        # Backbone, model, weights, window and stride are in the key of the features.
        how = asdict(self.options)
        return {"zero_shot": {"labels": self.classes, **{name: how[name] for name in _SCORING}}}

    def provenance(self) -> dict[str, Any]:
        return {**self.key_parts(), "features": self.spec.as_dict()}

    def backbone(self, fingerprints: Fingerprints) -> registry.ResolvedBackbone:
        return self.resolved

    def load(self, device: str, on_event: EventHandler) -> Score:
        """Embed labels and background. Raises UsageError if the text tower cannot run here."""
        how, count = self.options, len(self.classes)
        sentences = counted(len(how.templates), "sentence")
        message = (
            f"zero-shot: {counted(count, 'label')} in {sentences} each, "
            f"against {len(how.background)} of the background"
        )
        on_event(Event("detect", message))
        # The text tower is freed on return: only its numbers are needed.
        text = self.resolved.load_text(device)
        texts, scale = _embed(text, self.classes, how), text.scale

        def score(features: Features) -> NDArray[np.float32]:
            cosines = smooth(_unit(features.values) @ texts.T, features.grid, how.smoothing)
            return probabilities(cosines[:, :count], cosines[:, count:], scale, how.contrast)

        return score


def _embed(text: TextEncoder, labels: Sequence[str], options: ZeroShotOptions) -> Array:
    """Return (C + B, F): C labels, each the mean of its templates, then B background sentences."""
    prompts = [t.replace("{}", label) for label in labels for t in options.templates]
    sentences = _unit(text.embed([*prompts, *options.background]))
    by_label = sentences[: len(prompts)].reshape(len(labels), len(options.templates), -1)
    return np.concatenate([_unit(by_label.mean(axis=1)), sentences[len(prompts) :]])


def zero_shot_detector(
    labels: str | Path | Iterable[str],
    options: ZeroShotOptions | None,
    weights: str | None,
    stores: Path,
    run_options: RunOptions,
    fingerprints: Fingerprints,
    on_event: EventHandler = ignore_events,
) -> ZeroShotDetector:
    """Return the detector of these labels; nothing is loaded yet.

    Args:
        labels: As `read_phrases` takes them.
        options: How they are looked for.
        weights: A published tag, or a file.
        stores: Folder of the feature stores; an existing one decides the precision.
        run_options: Where features are extracted.
        fingerprints: Of weights files.
        on_event: Receives messages.

    Raises:
        UsageError: Unusable labels or sentences, or a backbone that is unknown or has no text
            tower.
    """
    options = options or ZeroShotOptions()
    templates, background = read_phrases(options.templates), read_phrases(options.background)
    options = replace(options, templates=templates, background=background)
    classes = read_phrases(labels)
    _check(classes, options)
    resolved = registry.resolve(options.backbone, options.model, weights, fingerprints.of)
    registry.text_loader(resolved.name)
    how = FeatureOptions(window=options.window, stride=options.stride)
    how = with_precision(resolved, how, run_options, None, stores, on_event)
    spec = make_spec(resolved, how)
    return ZeroShotDetector(classes, options, spec, resolved)


def _check(labels: Sequence[str], options: ZeroShotOptions) -> None:
    if not labels:
        raise UsageError("no labels: name at least one, as in --labels 'opening a door, drinking'")
    if len(labels) > MOST_CLASSES:
        raise UsageError(f"{len(labels):,} labels, expected at most {MOST_CLASSES:,}")
    for phrase in (*labels, *options.templates, *options.background):
        if len(phrase) > LONGEST_NAME:
            raise UsageError(f"{shown(phrase)}: longer than {LONGEST_NAME:,} characters")
        # Half a surrogate pair or a NUL would not survive being written to a file.
        if "\0" in phrase or any("\ud800" <= letter <= "\udfff" for letter in phrase):
            raise UsageError(f"{phrase!r} is not valid UTF-8 text")
    counts = Counter(label.casefold() for label in labels)
    if repeated := [label for label in labels if counts[label.casefold()] > 1]:
        raise UsageError(f"labels are named more than once: {', '.join(map(repr, repeated))}")
    if not options.templates:
        raise UsageError("no templates: name at least one, such as 'a photo of {}.'")
    if odd := [template for template in options.templates if "{}" not in template]:
        raise UsageError(f"template {odd[0]!r} has no {{}}, where the label goes")
    if not options.background:
        raise UsageError("no background: name at least one sentence for moments without a label")


def _unit(vectors: NDArray[Any]) -> Array:
    """Scale (..., F) vectors to length 1; zeros stay zeros."""
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    made: Array = vectors / np.where(lengths > 0, lengths, 1)
    return made


def smooth(values: Array, grid: TimeGrid, deviation: float) -> Array:
    """Average values over time with a Gaussian.

    Rows are weighted by the distance between their middles. Weights are normalised over the
    existing rows, so that a constant stays constant at the ends.

    Args:
        values: (T, C).
        grid: When the T rows are.
        deviation: Standard deviation in seconds; 0 changes nothing.

    Returns:
        (T, C).
    """
    times = (grid.starts + grid.ends) / 2
    total, weight = values.copy(), np.ones((len(values), 1))
    for lag in range(1, len(values) if deviation > 0 else 0):
        apart = (times[lag:] - times[:-lag])[:, None]
        if apart.min() > _REACH * deviation:
            break
        near = np.exp(-0.5 * (apart / deviation) ** 2)
        total[lag:] += near * values[:-lag]
        total[:-lag] += near * values[lag:]
        weight[lag:] += near
        weight[:-lag] += near
    return total / weight


def probabilities(
    labels: Array, background: Array, scale: float, contrast: float
) -> NDArray[np.float32]:
    """Turn cosines into probabilities, each label independently of the others.

    A label's logit is its scaled cosine minus the log-mean-exp of the background's. `contrast` then
    subtracts that share of the label's own median over the rows plus ABOVE_USUAL.

    Args:
        labels: (T, C) cosines with the labels.
        background: (T, B) cosines with the background sentences.
        scale: Of the logits, CLIP's own.
        contrast: 0 to 1.

    Returns:
        (T, C) probabilities.
    """
    usual_background = np.logaddexp.reduce(scale * background, axis=1, keepdims=True)
    logits = scale * labels - (usual_background - np.log(background.shape[1]))
    usual = np.median(logits, axis=0) + ABOVE_USUAL
    found: NDArray[np.float32] = np.exp(-np.logaddexp(0, contrast * usual - logits))
    return found.astype(np.float32)
