"""What the readers of annotation files return: videos with their raw actions, and a report."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mstemba.data_manifests.video_names import may_be_same
from mstemba.limits import LONGEST_NAME
from mstemba.reading.typed import shown

TWO_MEDIA_FILES = "two media files taken for one video"
DAMAGED_FILE = "file that cannot be read"


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))
"""Zero-width space, word joiner and byte order mark."""
UNUSUAL = ("kept", "ignored", "skipped")
"""What may happen to an unusual entry, as in `AnnotationReport`."""
_PLAIN = ("joined", "doubts")
_LONGEST_EXAMPLE = 600


@dataclass
class AnnotationReport:
    """Problems in annotations, counted by kind, with the first example of each."""

    joined: Counter[str] = field(default_factory=Counter)
    """Entries that are read as something other than what is written, such as another spelling."""
    doubts: Counter[str] = field(default_factory=Counter)
    """What looks like a mistake."""
    kept: Counter[str] = field(default_factory=Counter)
    """Unusual entries that are in the manifest as they are."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Valid entries that the manifest does not need, such as duplicates."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Unusable entries that are not in the manifest."""
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """How the files were interpreted, where there was a choice."""

    def join(self, kind: str, example: str) -> None:
        """Count an entry that is read as something other than what is written."""
        self._count(self.joined, kind, example)

    def doubt(self, kind: str, example: str) -> None:
        """Count something that looks like a mistake."""
        self._count(self.doubts, kind, example)

    def keep(self, kind: str, example: str) -> None:
        """Count an unusual entry."""
        self._count(self.kept, kind, example)

    def ignore(self, kind: str, example: str) -> None:
        """Count an entry that the manifest does not need."""
        self._count(self.ignored, kind, example)

    def skip(self, kind: str, example: str, count: int = 1) -> None:
        """Count an unusable entry."""
        self._count(self.skipped, kind, example, count)

    def _count(self, counts: Counter[str], kind: str, example: str, count: int = 1) -> None:
        counts[kind] += count
        if kind not in self.examples:
            half = _LONGEST_EXAMPLE // 2
            short = f"{example[:half]} ... {example[-half:]}"
            self.examples[kind] = example if len(example) <= _LONGEST_EXAMPLE else short

    def warnings(self) -> list[str]:
        """Return one line per kind of problem, without what was only read in another way."""
        return self.lines("doubts", *UNUSUAL)

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return kinds, counts and examples by what happened to the entries, for JSON."""
        return {
            fate: [
                {"kind": kind, "count": count, "example": self.examples[kind]}
                for kind, count in getattr(self, fate).items()
            ]
            for fate in (*_PLAIN, *UNUSUAL)
        }

    def lines(self, *fates: str) -> list[str]:
        """Return one line per kind of problem, of these fates or all, without the notes."""
        return [
            f"{kind}: {count}{'' if fate in _PLAIN else f' {fate}'}, for example "
            f"{self.examples[kind]}"
            for fate in fates or (*_PLAIN, *UNUSUAL)
            for kind, count in getattr(self, fate).items()
        ]


class RawAction(NamedTuple):
    """An action as in a file: its times are finite, its class is not looked up yet."""

    label: int | str
    """Class id as in the file, or class name."""
    start: float
    end: float
    where: str
    """Origin, for messages: `in <video>` or `in <file>, line <number>`."""
    file: Path | None = None
    """The file, where several may describe one video."""
    tier: str | None = None
    """The layer of annotations that has it, in files of ELAN."""


@dataclass
class ParsedVideo:
    """A video as in the annotation files."""

    subset: str | None = None
    duration: float | None = None
    annotated_until: float | None = None
    """Time up to which the video is annotated; None if the file does not say."""
    actions: list[RawAction] = field(default_factory=list)
    media: str | None = None
    """Path of the video in the first file that names it, where its name here is an id."""
    lacks_actions: bool = False
    """Whether the file has no list of actions at all, not even an empty one."""

    def set_media(self, media: str, where: str, report: AnnotationReport) -> None:
        """Set the path of the video; report one that is the path of another video."""
        self.media = self.media or media
        if not may_be_same(self.media, media):
            report.keep(TWO_MEDIA_FILES, f"{shown(self.media)} and {shown(media)} {where}")


@dataclass
class ParsedAnnotations:
    """The content of an annotation file or of a folder of them."""

    videos: dict[str, ParsedVideo] = field(default_factory=dict)
    """Videos by the names that the files have for them: ids, file names, paths or URLs."""
    ids: set[str] = field(default_factory=set)
    """Those of the names that are ids, if there is a video with that id."""
    report: AnnotationReport = field(default_factory=AnnotationReport)
    classes: tuple[str, ...] | None = None
    """Class names, if the files list them in the order of their ids."""
    time_unit: str | None = None
    """`seconds` or `frames`, if the files define it."""
    fps: float | None = None
    """Frame rate of the recordings, if a manifest defines it."""
    seconds_of: str | None = None
    """The program whose files these are, if its times are always seconds."""
    dataset: str | None = None
    """Name of the dataset, if only that one has files of this form."""

    file_names: dict[Path, str] = field(default_factory=dict)
    """Names of the videos that are named like files, where these differ by their folder alone."""
    tiers: tuple[str, ...] | None = None
    """The tiers to read; None for all."""
    tier_names: dict[str, None] = field(default_factory=dict)
    """Names of all tiers in the files, in their order."""

    def wants_tier(self, name: str) -> bool:
        """Add a tier to those of the files; return whether it is one to read."""
        if len(name) > LONGEST_NAME:
            kind = f"tier whose name is longer than {LONGEST_NAME:,} characters"
            self.report.skip(kind, shown(name))
            return False
        known = plain_text(name)
        self.tier_names.setdefault(known)
        return self.tiers is None or known in self.tiers

    @property
    def actions(self) -> list[RawAction]:
        """The actions of all videos."""
        return [action for video in self.videos.values() for action in video.actions]

    def video(self, name: str) -> ParsedVideo:
        """Return the video with this name; create it if it is new."""
        if name not in self.videos:
            self.videos[name] = ParsedVideo()
        return self.videos[name]

    def file_name(self, path: Path) -> str:
        """Return the name of the video that is named like a file of annotations."""
        return self.file_names.get(path, path.stem)

    def own_video(self, path: Path) -> str:
        """Create the video of a file that names none, and report it; return its name."""
        name = self.file_name(path)
        kind = "file without names of videos, taken for that of the video named like it"
        self.report.join(kind, f"{name!r} in {path.name}")
        self.video(name)
        return name

    def new_video(self, name: str, where: str) -> ParsedVideo | None:
        """Create a video that files must not repeat; return None and report one that they do."""
        if name in self.videos:
            self.report.skip("second entry of a video", f"{shown(name)} {where}")
            return None
        return self.video(name)


def plain_text(text: str) -> str:
    """Return a text in the form that is the same for all texts that look the same.

    Joiners and non-joiners, which many scripts need, are kept.
    """
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE).strip())


def tier_names(chosen: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the chosen tiers, which a text separates by commas; None for all."""
    if chosen is None:
        return None
    listed = chosen.split(",") if isinstance(chosen, str) else chosen
    return tuple(filter(None, map(plain_text, listed)))


def some_names(names: Iterable[str], count: int = 3) -> str:
    """Return the first few names, for a message."""
    listed = list(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")
