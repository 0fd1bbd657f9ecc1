"""Join names with videos where they share a prefix or an ending, as `v_ID` or `ID_clip`.

Programs that write features add to the names of the videos: ActivityNet's files begin with `v_`,
those of video_features end in the name of the backbone.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mstemba.data_manifests.video_names import VideoNames, without_ending

# A prefix or an ending that some of the names have is taken if it joins nearly all that any one
# could join; if nearly all of the names have it, half of that is enough.
_SOME, _HALF, _NEARLY_ALL = 0.2, 0.5, 0.9
# Characters that a prefix or an ending may have, and how many of each are tried in a name.
_LONGEST_AFFIX, _MOST_SPLITS = 100, 20


class Affix(NamedTuple):
    """What names have around the name of their video; both may be empty."""

    prefix: str
    suffix: str

    def strip(self, name: str) -> str | None:
        """Return a name without the affix, its folders kept; None if it does not have it."""
        folders, file = _split(name)
        if not self.is_of(file):
            return None
        return folders + file[len(self.prefix) : len(file) - len(self.suffix)]

    def is_of(self, file: str) -> bool:
        """Return whether a file name has the affix around something."""
        longer = len(file) > len(self.prefix) + len(self.suffix)
        return longer and file.startswith(self.prefix) and file.endswith(self.suffix)


NO_AFFIX = Affix("", "")


@dataclass
class JoinedNames:
    """The videos that names mean, and how this was seen."""

    ids: dict[str, str] = field(default_factory=dict)
    """Ids by name."""
    other_forms: list[str] = field(default_factory=list)
    """Those of the names that differ from the id in form: path, ending, case or Unicode."""
    affix: Affix = NO_AFFIX
    """What the names in `affixed` have and their ids lack, or the reverse."""
    affixed: list[str] = field(default_factory=list)
    ids_have_affix: bool = False
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the videos that fit equally well, by name."""
    twice: tuple[str, str, str] | None = None
    """Two names of one video, of which none is its id, and this id."""
    second: dict[str, str] = field(default_factory=dict)
    """Ids by name where another name is exactly the id, which is joined instead."""

    def lines(self, what: str, ending: str = "") -> list[str]:
        """Return a line for each way in which names were joined that are not ids themselves.

        Args:
            what: The things with these names, in the plural.
            ending: What follows a name that is displayed.
        """
        kinds = {f"{what} named by another form of the id": self.other_forms}
        if self.ids_have_affix:
            kinds[f"{what} named VIDEO, of ids like {'VIDEO'.join(self.affix)}"] = self.affixed
        else:
            kinds[f"{what} named {'VIDEO'.join(self.affix)}{ending}"] = self.affixed
        lines = [
            f"{kind}: {len(names)} joined, for example {names[0]}{ending} as {self.ids[names[0]]!r}"
            for kind, names in kinds.items()
            if names
        ]
        if self.ambiguous:
            name, ids = next(iter(self.ambiguous.items()))
            lines.append(
                f"{what} whose name fits several videos: {len(self.ambiguous)} not used, for "
                f"example {name}{ending}, which fits {ids[0]!r} and {ids[1]!r}"
            )
        return lines


def join_names(
    names: Iterable[str],
    files: Mapping[str, Path | None],
    usable: Callable[[str], bool] = lambda name: True,
) -> JoinedNames:
    """Find the videos that names mean, where exactly one name fits a video.

    A name is the id, or another form of it (see `VideoNames`). What remains is joined if one prefix
    or ending that the names have, or that the ids have, fits nearly all of it.

    Args:
        names: The names, possibly with folders.
        files: The videos' paths by id; None for a video without a file.
        usable: Whether the thing with this name can be what is looked for. Asked only of things
            that compete for one video.
    """
    listed = list(dict.fromkeys(names))
    exact = {name: name if name in files else _split(name)[1] for name in listed}
    counts = Counter(exact.values())
    joined = JoinedNames(ids={n: id for n, id in exact.items() if id in files and counts[id] == 1})
    taken = set(joined.ids.values())
    rest = [name for name in listed if name not in joined.ids]
    if not rest:
        return joined
    matches = VideoNames(files).match(rest)
    joined.ambiguous = matches.ambiguous
    joined.second = {name: id for name, id in matches.ids.items() if id in taken}
    _add(joined, {name: id for name, id in matches.ids.items() if id not in taken})
    joined.other_forms = [n for n in rest if n in joined.ids and exact[n] != joined.ids[n]]
    known = matches.ids.keys() | matches.ambiguous.keys() | matches.rivals.keys()
    rest = [name for name in rest if name not in known]
    taken = set(joined.ids.values())
    without_name = {id: file for id, file in files.items() if id not in taken}
    if rest and without_name and joined.twice is None:
        _join_by_affix(joined, rest, without_name, usable)
    return joined


def _add(joined: JoinedNames, ids: Mapping[str, str]) -> None:
    """Add names by id; of two names of one video, remember both."""
    names: dict[str, str] = {}
    for name, id in ids.items():
        if id in names and joined.twice is None:
            joined.twice = (names[id], name, id)
        names.setdefault(id, name)
        joined.ids[name] = id


def _join_by_affix(
    joined: JoinedNames,
    names: Sequence[str],
    files: Mapping[str, Path | None],
    usable: Callable[[str], bool],
) -> None:
    """Join names that have one affix more than the ids, or one less."""
    stems: dict[str, list[str]] = {}
    for id, file in files.items():
        for form in {_fold(_split(id)[1]), _fold(without_ending((file or Path(id)).name))}:
            stems.setdefault(form, []).append(id)
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(_fold(without_ending(_split(name)[1])), []).append(name)
    ours, theirs = _affixes(names, stems), _affixes(list(files), plain)
    if len(ours) > 1:
        ours = {affix: found for affix, found in ours.items() if usable(next(iter(found)))}
    few = len(joined.ids)
    longer, shorter = _best(ours, names, few), _best(theirs, list(files), few)
    if longer is not None and (shorter is None or len(ours[longer]) >= len(theirs[shorter])):
        joined.affix, joined.ambiguous = longer, joined.ambiguous | _unclear(ours, longer)
        _add(joined, _partners(ours[longer], longer, files, joined.ambiguous))
        for id, (one, other) in _rivals(ours, longer).items():
            joined.twice = joined.twice or (one, other, id)
    elif shorter is not None:
        joined.affix, joined.ids_have_affix = shorter, True
        joined.ambiguous |= {n: list(ids) for n, ids in _rivals(theirs, shorter).items()}
        unclear = _unclear(theirs, shorter)
        partners = _partners(theirs[shorter], shorter, dict.fromkeys(names), unclear)
        _add(joined, {n: id for id, n in partners.items() if n not in joined.ambiguous})
    joined.affixed = [name for name in names if name in joined.ids]


def _partners(
    found: Mapping[str, Sequence[str]],
    affix: Affix,
    others: Mapping[str, Path | None],
    unclear: Mapping[str, object],
) -> dict[str, str]:
    """Return what names are without an affix, where this is clear; see `_affixes` for `found`."""
    clear = {name: some[0] for name, some in found.items() if len(some) == 1}
    several = {name: affix.strip(name) or name for name in found if name not in clear}
    if several:
        ids = VideoNames(others).match(several.values()).ids
        clear |= {name: ids[short] for name, short in several.items() if short in ids}
    return {name: other for name, other in clear.items() if name not in unclear}


def _affixes(
    names: Sequence[str], wanted: Mapping[str, Sequence[str]]
) -> dict[Affix, dict[str, Sequence[str]]]:
    """Return, by affix, the names that are wanted without it, and what they are then."""
    splits = [_splits(_split(name)[1]) for name in names]
    prefixes = _frequent([before for before, _ in splits])
    suffixes = _frequent([after for _, after in splits])
    found: dict[Affix, dict[str, Sequence[str]]] = {}
    for name, (before, after) in zip(names, splits, strict=True):
        file = _split(name)[1]
        for prefix in before & prefixes:
            for suffix in after & suffixes:
                affix = Affix(prefix, suffix)
                if (prefix or suffix) and affix.is_of(file):
                    short = _fold(without_ending(file[len(prefix) : len(file) - len(suffix)]))
                    if short in wanted:
                        found.setdefault(affix, {})[name] = wanted[short]
    return found


def _frequent(affixes: Sequence[set[str]]) -> set[str]:
    counts = Counter(affix for some in affixes for affix in some)
    return {affix for affix, count in counts.items() if count >= _SOME * len(affixes)}


def _best(
    found: Mapping[Affix, Mapping[str, Sequence[str]]], names: Sequence[str], few: int
) -> Affix | None:
    """Return the affix that joins the most names, if this cannot be chance.

    Args:
        found: The names that each affix joins, and with what.
        names: All names.
        few: The number of names that are joined without it: it has to join more.
    """
    best = max(found, key=lambda a: (len(found[a]), -len(a.prefix + a.suffix)), default=None)
    if best is None or len(found[best]) <= few:
        return None
    having = sum(best.is_of(_split(name)[1]) for name in names) / len(names)
    if having < _SOME:
        return None
    share = _HALF if having >= _NEARLY_ALL else _NEARLY_ALL
    within_reach = {partners[0] for joined in found.values() for partners in joined.values()}
    return best if len(found[best]) >= share * len(within_reach) else None


def _rivals(
    found: Mapping[Affix, Mapping[str, Sequence[str]]], best: Affix
) -> dict[str, tuple[str, str]]:
    """Return two names of each video, if another affix joins about as many of the same videos."""
    mine = {ids[0]: name for name, ids in found[best].items()}
    rivals: dict[str, tuple[str, str]] = {}
    for names in found.values():
        shared = {ids[0]: n for n, ids in names.items() if ids[0] in mine and n not in found[best]}
        if 2 * len(shared) > len(mine):
            rivals |= {id: (mine[id], name) for id, name in shared.items()}
    return rivals


def _unclear(
    found: Mapping[Affix, Mapping[str, Sequence[str]]], best: Affix
) -> dict[str, list[str]]:
    """Return two videos of each name, if another affix joins about as many of the same names."""
    mine = found[best]
    unclear: dict[str, list[str]] = {}
    for names in found.values():
        shared = {n: ids[0] for n, ids in names.items() if n in mine and ids[0] not in mine[n]}
        if 2 * len(shared) > len(mine):
            unclear |= {name: [mine[name][0], id] for name, id in shared.items()}
    return unclear


def _split(name: str) -> tuple[str, str]:
    """Return the folders of a path, with the separator, and its last part."""
    head, separator, last = name.rpartition("/")
    return head + separator, last


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _splits(name: str) -> tuple[set[str], set[str]]:
    """Return the beginnings and the ends of a name, up to separators or where digits begin."""
    before = {name[:at] for at in _borders(name[: _LONGEST_AFFIX + 1])[:_MOST_SPLITS]}
    end = name[-_LONGEST_AFFIX - 1 :]
    return {"", *before}, {"", *(end[at:] for at in _borders(end)[-_MOST_SPLITS:])}


def _borders(text: str) -> list[int]:
    kinds = ["l" if c.isalpha() else "d" if c.isdigit() else c for c in text]
    return [at for at in range(1, len(text)) if kinds[at - 1] != kinds[at] or kinds[at] not in "ld"]
