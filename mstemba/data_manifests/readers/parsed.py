"""What every reader of annotation files hands over, and the report of what was odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass
class Report:
    """What was odd, counted by kind, with the first example of each."""

    kept: Counter[str] = field(default_factory=Counter)
    """Odd, and in the manifest as it is."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """In order, and not in the manifest, because it needs no second place there or none at all."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Not usable, and not in the manifest."""
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """How the files were understood, where that was not plain."""

    def count(self, table: Counter[str], kind: str, example: str) -> None:
        table[kind] += 1
        self.examples.setdefault(kind, example)

    def lines(self) -> list[str]:
        """One line a kind; the notes are not in it."""
        tables = (
            (self.kept, "kept"),
            (self.passed_over, "passed over"),
            (self.left_out, "left out"),
        )
        return [
            f"{kind}: {count} {fate}, for example {self.examples[kind]}"
            for table, fate in tables
            for kind, count in table.items()
        ]


class RawAction(NamedTuple):
    """One action as a file says it: times are finite, the class is not looked up yet."""

    label: int | str
    """A class id, which counts as in the file, or a class name."""
    start: float
    end: float
    where: str
    """`in <video>`, or `in <file>, line <number>`."""
    file: Path | None = None
    """The file, where several may tell of one video."""


@dataclass
class ParsedVideo:
    """One video as a file says it."""

    subset: str | None = None
    duration: float | None = None
    actions: list[RawAction] = field(default_factory=list)
    media: Path | None = None
    """The video's file, as the first file to tell of it names it."""
    ignore_events: bool = False
    """Whether the file says nothing of its actions, not even that there are none."""

    def told_of(self, media: Path, where: str, report: Report) -> None:
        """Take by what path a file names the video, and count one that is another video's."""
        self.media = self.media or media
        # One file says `walk.mp4`, another one where that is.
        shared = min(len(self.media.parts), len(media.parts))
        if self.media.parts[-shared:] != media.parts[-shared:]:
            example = f"{str(self.media)!r} and {str(media)!r} {where}"
            report.count(report.kept, "two media files taken for one video", example)


@dataclass
class ParsedAnnotations:
    """What a reader found in a file or folder."""

    entries: dict[str, ParsedVideo] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    """Ids of the videos that are there, by what a file of annotations may call them."""
    classes: tuple[str, ...] | None = None
    """Class names, if the files list them in the order of their ids."""
    time_unit: str | None = None
    """If the files or their form say so."""
    dataset: str | None = None
    """If the form is one dataset's own."""

    def entry(self, id: str) -> ParsedVideo:
        """The video of this id, made where it is new."""
        return self.entries.setdefault(id, ParsedVideo())

    def new(self, id: str, where: str, report: Report) -> ParsedVideo | None:
        """A video that its files name once; None, counted, for one that is there already."""
        if id in self.entries:
            report.count(report.left_out, "second entry of a video", f"{id!r} {where}")
            return None
        return self.entry(id)


def example_files(files: Iterable[Path], count: int = 3) -> str:
    """The names of the first few files, for a message."""
    names = [file.name for file in files]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
