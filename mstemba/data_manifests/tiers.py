"""Choose among the tiers of annotation files, and recognise those that are no classes.

Only ELAN has tiers: layers of annotations, of which some may be classes and others transcriptions
or comments.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from mstemba.data_manifests.class_ids import normalise_name
from mstemba.data_manifests.readers.parsed import ParsedAnnotations, RawAction, some_names
from mstemba.errors import UsageError

# With fewer annotations, most values of any tier occur once, unless they are sentences.
_MANY = 10
_WORDS_OF_A_SENTENCE = 3


def check_tiers(parsed: ParsedAnnotations) -> None:
    """Raise UsageError if a chosen tier is not among those of the files."""
    missing = [name for name in parsed.tiers or () if name not in parsed.tier_names]
    if parsed.tiers is not None and not parsed.tiers:
        raise UsageError("--tiers: no name; expected names of tiers, separated by commas")
    if missing and not parsed.tier_names:
        raise UsageError(f"--tiers {missing[0]}: the annotations have no tiers; omit --tiers")
    if missing:
        raise UsageError(
            f"--tiers: no tier {missing[0]!r}; expected some of "
            f"{', '.join(map(repr, parsed.tier_names))}"
        )


def ignore_tiers_without_classes(parsed: ParsedAnnotations, classes: Iterable[str]) -> None:
    """Remove and report the actions of tiers of which no value is a class, unless all are."""
    known = set(map(normalise_name, classes))
    others = {
        tier
        for tier, actions in _by_tier(parsed).items()
        if not any(normalise_name(str(action.label)) in known for action in actions)
        and any(action.label != tier for action in actions)  # a tier may be named like its class
    }
    if others == {action.tier for action in parsed.actions}:
        return
    for video in parsed.videos.values():
        for action in video.actions:
            if action.tier in others:
                kind = "annotation of a tier without any of the classes"
                example = f"{action.label!r} of {action.tier!r} {action.where}"
                parsed.report.ignore(kind, example)
        video.actions = [action for action in video.actions if action.tier not in others]


def warn_of_transcriptions(parsed: ParsedAnnotations) -> None:
    """Report labels that look like text in words: most of them occur once, and there are many."""
    tiers = _by_tier(parsed)
    found = {tier: actions for tier, actions in tiers.items() if _is_transcription(tier, actions)}
    for tier, actions in found.items():
        others = [repr(name) for name in parsed.tier_names if name not in found]
        advice = f"choose by --tiers, for example --tiers {others[0]}" if others else "see --tiers"
        kind = f"class from tier {tier!r}, which looks like a transcription ({advice})"
        for label, action in {action.label: action for action in actions}.items():
            parsed.report.keep(kind, f"{label!r} {action.where}")
    if not tiers:
        _note_single_labels(parsed)


def _by_tier(parsed: ParsedAnnotations) -> dict[str, list[RawAction]]:
    tiers = defaultdict[str, list[RawAction]](list)
    for video in parsed.videos.values():
        for action in video.actions:
            if action.tier is not None:
                tiers[action.tier].append(action)
    return tiers


def _is_transcription(tier: str, actions: list[RawAction]) -> bool:
    counts = Counter(str(action.label) for action in actions if action.label != tier)
    once = [label for label, count in counts.items() if count == 1]
    if not once or 2 * len(once) <= counts.total():
        return False
    words = sum(len(label.split()) for label in once) / len(once)
    return counts.total() >= _MANY or words >= _WORDS_OF_A_SENTENCE


def _note_single_labels(parsed: ParsedAnnotations) -> None:
    counts = Counter(action.label for action in parsed.actions if isinstance(action.label, str))
    once = [label for label, count in counts.items() if count == 1]
    if len(counts) >= _MANY and 2 * len(once) > counts.total():
        parsed.report.notes.append(
            f"{len(once)} of {len(counts)} classes occur once, for example "
            f"{some_names(map(repr, once), 2)}: if these are texts and not classes, use another "
            f"column, or --classes"
        )
