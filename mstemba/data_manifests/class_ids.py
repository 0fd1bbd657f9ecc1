"""Convert the labels in annotation files, names or numbers, to class ids that count from 0."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from mstemba.data_manifests.datasets import Dataset
from mstemba.data_manifests.manifest import Manifest
from mstemba.data_manifests.readers.parsed import (
    ParsedAnnotations,
    RawAction,
    plain_text,
    some_names,
)
from mstemba.errors import ManifestError
from mstemba.limits import MOST_CLASSES
from mstemba.reading.typed import shown

# A class number that leaves out more classes than this may be a typing error.
_WIDE_GAP = 10


def label_names(parsed: ParsedAnnotations, former: Manifest | None = None) -> tuple[str, ...]:
    """Return the class names that labels define; for numbers, those of the former manifest.

    Numbers from MOST_CLASSES on are typing errors: no classes are created for them.
    """
    counts = Counter(action.label for action in parsed.actions)
    names = sorted(label for label in counts if isinstance(label, str))
    if names:
        kind = "class number in annotations with class names, read as a place in alphabetical order"
        for action in parsed.actions if len(names) < len(counts) else ():
            if isinstance(action.label, int):
                parsed.report.doubt(kind, describe(action))
        return tuple(names)
    if former:
        return former.classes
    numbers = sorted(n for n in counts if isinstance(n, int) and 0 <= n < MOST_CLASSES)
    _doubt_highest(numbers, counts, parsed)
    return tuple(f"class_{i}" for i in range(max(numbers, default=-1) + 1))


def _doubt_highest(
    numbers: list[int], counts: Mapping[int | str, int], parsed: ParsedAnnotations
) -> None:
    """Report class numbers that a wide gap separates from the others, which are dense."""
    for used, (last, number) in enumerate(pairwise(numbers), 1):
        rare = sum(counts[n] for n in numbers[used:]) < sum(counts[n] for n in numbers[:used])
        if number - last > max(_WIDE_GAP, last + 1) and 2 * used > last + 1 and rare:
            kind = (
                f"class number far beyond the others, which end at {last}: a typing error? "
                f"({number - last - 1} classes without an action are created)"
            )
            for action in parsed.actions:
                if action.label in numbers[used:]:
                    parsed.report.doubt(kind, describe(action))
            return


class ClassIds:
    """Converts labels as in the files to class ids that count from 0."""

    def __init__(
        self, path: Path, names: tuple[str, ...], known: Dataset | None, parsed: ParsedAnnotations
    ) -> None:
        self._count = len(names)
        self._report = parsed.report
        self._by_name = {normalise_name(name): number for number, name in enumerate(names)}
        for alias, name in (known.aliases if known else {}).items():
            if normalise_name(name) in self._by_name:
                self._by_name.setdefault(normalise_name(alias), self._by_name[normalise_name(name)])
        # Names that differ only in case stay distinct.
        self._by_name |= {name: number for number, name in enumerate(names)}
        labels = {action.label for action in parsed.actions}
        self._first = self._first_id(labels) if known and 1 in known.first_ids else 0
        texts = {label for label in labels if isinstance(label, str)}
        if texts and texts == labels and not any(self._number(text) is not None for text in texts):
            raise ManifestError(
                f"{path}: all class names are unknown: found "
                f"{some_names(map(repr, sorted(texts)))}, expected {some_names(map(repr, names))}"
            )

    def __call__(self, action: RawAction) -> int | None:
        """Return the class id of an action; return None and report one of an unknown class."""
        number = self._number(action.label)
        if number is None:
            last = (self._count or MOST_CLASSES) - 1 + self._first
            kind = (
                "unknown class name"
                if isinstance(action.label, str)
                else f"class id outside {self._first} to {last}"
            )
            self._report.skip(kind, describe(action))
        return number

    def _number(self, label: int | str) -> int | None:
        if isinstance(label, str):
            return self._by_name.get(label, self._by_name.get(normalise_name(label)))
        return label - self._first if 0 <= label - self._first < self._count else None

    def _first_id(self, labels: set[int | str]) -> int:
        if 0 in labels or not all(isinstance(label, int) for label in labels):
            return 0
        from_one = self._count in labels
        self._report.notes.append(
            f"class ids count from 1 in this file, up to {self._count}"
            if from_one
            else f"no class id is 0 or {self._count}: they are assumed to count from 0"
        )
        return int(from_one)


def normalise_name(name: str) -> str:
    """Return a name in the form for comparison: `Read_book` equals `read book`."""
    words = unicodedata.normalize("NFKC", plain_text(name)).casefold().replace("_", " ").split()
    # Folding case may undo the normal form.
    return unicodedata.normalize("NFC", "_".join(words))


def unify_spellings(parsed: ParsedAnnotations, join: bool, known: tuple[str, ...] = ()) -> None:
    """Give labels that are one name one spelling: that of a known class, or the most frequent one.

    Unicode forms of one text, with or without invisible characters, are always joined. Spellings
    that differ in case, spaces or underscores are joined if `join` is set; otherwise reported.
    """
    counts = Counter(a.label for a in parsed.actions if isinstance(a.label, str))
    composed = {label: plain_text(label) or label for label in counts}
    spellings: dict[str, Counter[str]] = {}
    for label, count in counts.items():
        spellings.setdefault(normalise_name(label), Counter())[composed[label]] += count
    best = {name: forms.most_common(1)[0][0] for name, forms in spellings.items()}
    alike = Counter(map(normalise_name, known))
    best |= {form: name for name in known if alike[form := normalise_name(name)] == 1}
    changed = {label: form for label, form in composed.items() if label != form}
    for label, form in composed.items():
        other = best[normalise_name(label)]
        if form == other or form in known:
            continue
        if not join and len(spellings[normalise_name(label)]) == 1:
            continue  # `merge` gives it the spelling of the known class
        if join:
            changed[label] = other
            parsed.report.join("class in another spelling", f"{form!r} as {other!r}")
        else:
            kind = "class that differs from another one in spelling only (--join-spellings)"
            parsed.report.doubt(kind, f"{form!r} and {other!r}")
    for video in parsed.videos.values() if changed else ():
        video.actions = [
            a._replace(label=changed.get(a.label, a.label)) if isinstance(a.label, str) else a
            for a in video.actions
        ]


def describe(action: RawAction) -> str:
    """Return an action and its origin as text for the report."""
    return f"[{shown(action.label)}, {action.start}, {action.end}] {action.where}"
