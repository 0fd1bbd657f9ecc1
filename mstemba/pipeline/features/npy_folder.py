"""A folder of .npy files as a source of features."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mstemba.data_manifests.affixes import join_names
from mstemba.data_manifests.manifest import Action, Video
from mstemba.data_manifests.video_files import files_below
from mstemba.errors import StoreError, UsageError
from mstemba.limits import LONGEST_VIDEO
from mstemba.pipeline.caching.keys import Fingerprints, cache_key
from mstemba.pipeline.features.row_times import even_rows
from mstemba.reading.arrays import read_npy
from mstemba.records import FeatureSpec, TimeGrid
from mstemba.wording import counted

# What video_features writes next to the features of a video: (T,) milliseconds, and a number.
_TIMESTAMPS, _FPS = "_timestamps_ms", "_fps"
# Features a row of the usual backbones.
_WIDTHS = frozenset(
    (384, 512, 768, 1024, 1152, 1280, 1408, 1536, 1664, 2048, 2304, 2560, 3072, 4096)
)
# A constant length below this is rather that of short videos than a number of features.
_LEAST_WIDTH = 64
# Files whose shapes decide which axis is time.
_INSPECTED = 64


class NpyFolder:
    """A folder with one .npy file of shape (T, F), (T, 1, 1, F) or (1, T, F) for each video.

    This is how features are published. A file is called `<video id>.npy`, or has another form of
    that name (see `join_names`). Rows are spread evenly over the video's duration in the manifest,
    unless a file `..._timestamps_ms.npy` next to the features has their times. Timelines are in the
    manifest's unit, which makes them exactly those of the authors.
    """

    weights_file = None

    def __init__(
        self, root: Path, videos: Iterable[Video] | None = None, transposed: bool | None = None
    ) -> None:
        """Find the files of the videos.

        Args:
            root: Searched with its subfolders.
            videos: Those of the manifest. Without them, the names of the files are the ids.
            transposed: Whether the arrays are (F, T). Default: seen from their shapes.

        Raises:
            StoreError: The folder has no .npy files, or two for one video.
            UsageError: No file belongs to a video.
        """
        self.root, self._transposed = root, transposed
        self._fingerprints = Fingerprints()
        self._arrays: dict[str, str] = {}
        """SHA-256 of the arrays whose key was asked for, by video id."""
        found = files_below(root, lambda f: f.suffix == ".npy" and not f.name.startswith("."))
        if not found:
            raise StoreError(f"{root}: neither a feature store nor a folder of .npy files")
        self._present = set(found)
        names = {f.relative_to(root).with_suffix("").as_posix(): f for f in found}
        self._suffixes: dict[str, str] = {}
        self._name_lines: list[str] = []
        self.unused: list[str] = []
        """Names of the files that belong to no video."""
        if videos is None:
            self._files = _by_stem(root, found)
        else:
            self._files = self._join(names, {video.id: video.path for video in videos})

    def _join(self, names: dict[str, Path], files: dict[str, Path | None]) -> dict[str, Path]:
        """Return the files of the videos by id."""
        extra = {n for n in names if n.endswith((_TIMESTAMPS, _FPS)) and Path(n).name not in files}
        wanted = [name for name in names if name not in extra]
        joined = join_names(wanted, files, lambda name: _may_be_features(names[name]))
        if joined.twice is not None:
            one, other, id = joined.twice
            raise StoreError(
                f"{self.root}: {names[one]} and {names[other]} belong to the same video, {id!r}; "
                f"expected one file for each video: keep those of one kind in the folder, or "
                f"concatenate their features"
            )
        if not joined.ids:
            expected = next(iter(files), "VIDEO")
            raise UsageError(
                f"{self.root}: none of its files ({len(names)}) is named after a video of the "
                f"manifest; found {(wanted or list(names))[0]}.npy, expected for example "
                f"{expected}.npy"
            )
        self._suffixes = {
            joined.ids[name]: joined.affix.suffix
            for name in joined.affixed
            if not joined.ids_have_affix
        }
        self._name_lines = joined.lines("files", ".npy")
        self.unused = [name for name in wanted if name not in joined.ids]
        return {id: names[name] for name, id in joined.ids.items()}

    @cached_property
    def spec(self) -> FeatureSpec:
        return FeatureSpec.unknown(self._open(next(iter(self._files))).shape[-1])

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the files are read, one line each.

        Raises StoreError if it is not clear which axis is time.
        """
        notes = [f"{self.root}: {line}" for line in self._name_lines]
        if self._time_is_last and self._transposed is None:
            notes.append(
                f"{self.root}: the arrays are read as (features, rows), because all of them have "
                f"{self.spec.width} rows and different numbers of columns"
            )
        return notes

    def ids(self) -> list[str]:
        """Return the ids of the videos that have features."""
        return list(self._files)

    def bytes_of(self, id: str) -> int | None:
        """Return the size of a video's file; None if it has none."""
        return self._files[id].stat().st_size if id in self._files else None

    def has_times(self, id: str) -> bool:
        """Return whether there is a file with the times of a video's rows."""
        return self._times_file(id) is not None

    def key(self, video: Video, fingerprints: Fingerprints) -> str | None:
        if video.id not in self._files:
            return None
        self._fingerprints = fingerprints
        array = self._arrays[video.id] = fingerprints.of(self._files[video.id])
        parts: dict[str, object] = {"array": array}
        if times := self._times_file(video.id):
            parts["times"] = fingerprints.of(times)
        if self._time_is_last:
            parts["transposed"] = True
        return cache_key("features", **parts)

    def values(self, id: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            values = np.array(self._open(id), np.float32, order="C")
        if values.shape[1] != self.spec.width:
            raise StoreError(
                f"{self._files[id]}: {values.shape[1]} features a row, but the other files have "
                f"{self.spec.width}"
            )
        if not np.isfinite(values).all():
            raise StoreError(
                f"{self._files[id]}: contains NaN or infinity, or numbers beyond float32"
            )
        if id in self._arrays and self._fingerprints.of(self._files[id]) != self._arrays[id]:
            raise StoreError(
                f"{self._files[id]}: replaced while it was being read; run the same command again"
            )
        return values

    def timeline(self, video: Video, time_unit: str) -> tuple[list[Action], TimeGrid]:
        rows = len(self._open(video.id))
        if time_unit == "seconds" and (times := self._times_file(video.id)):
            return list(video.actions), _read_times(times, rows, video.duration)
        if not video.duration:
            raise StoreError(
                f"{self._files[video.id]}: the manifest gives {video.id!r} no duration, so the "
                f"times of its {counted(rows, 'row')} are unknown; add `duration` (in "
                f"{time_unit}), or use `mstemba import --fps FPS --stride STRIDE`"
            )
        return list(video.actions), even_rows(video.duration, rows)

    def _times_file(self, id: str) -> Path | None:
        """Return the file with the times of a video's rows, if there is one."""
        if id not in self._files:
            return None
        file = self._files[id]
        times = file.with_name(file.stem.removesuffix(self._suffixes.get(id, "")) + _TIMESTAMPS)
        times = times.with_name(times.name + ".npy")
        return times if times in self._present else None

    @cached_property
    def _time_is_last(self) -> bool:
        """Whether the arrays are (F, T). Raises StoreError if this is not clear."""
        if self._transposed is not None:
            return self._transposed
        shapes = {}
        files = list(self._files.values())
        for file in files[:: max(1, len(files) // _INSPECTED)]:
            try:
                shapes[file] = _load(file).shape
            except StoreError:
                continue  # told when its values are read
        last = _is_time_last(list(shapes.values()))
        if last is None:
            file, shape = next(iter(shapes.items()))
            raise StoreError(
                f"{file}: shape {shape}, expected (rows, features): {shape[0]} is the number of "
                f"features of common backbones, so time seems to be last. Pass --transposed to "
                f"`mstemba init --features` or `mstemba import`, or --no-transposed if there are "
                f"{shape[0]} rows"
            )
        return last

    def _open(self, id: str) -> NDArray[np.floating]:
        """Return an array as (T, F), which is read when it is used."""
        if id not in self._files:
            raise StoreError(f"{self.root}: no features of {id!r}, expected {id}.npy")
        array = _load(self._files[id])
        return array.T if self._time_is_last else array


def _by_stem(root: Path, found: Sequence[Path]) -> dict[str, Path]:
    files = defaultdict(list)
    for file in found:
        files[file.stem].append(file)
    if twice := [some for some in files.values() if len(some) > 1]:
        raise StoreError(
            f"{root}: {twice[0][0]} and {twice[0][1]} belong to the same video; "
            f"expected one file for each video"
        )
    return {id: some[0] for id, some in files.items()}


def _load(file: Path) -> NDArray[np.floating]:
    """Return an array with two axes, without its axes of length 1."""
    array: NDArray[np.floating] = read_npy(file, StoreError)
    shape = array.shape
    axes = [length for length in shape if length != 1]
    if len(axes) < 2 <= len(shape):  # one row, or one feature
        axes = list(shape[1:] if len(shape) == 3 and shape[0] == 1 < shape[1] else shape)
        axes = [axes[0], axes[-1]]
    if len(axes) != 2 or len(shape) < 2 or not array.size or array.dtype.kind != "f":
        raise StoreError(
            f"{file}: found {array.dtype} of shape {array.shape}, expected floating-point "
            f"numbers of shape (T, F) or (T, 1, 1, F)"
        )
    return array.reshape(axes)


def _may_be_features(file: Path) -> bool:
    try:
        return bool(_load(file).size)
    except StoreError:
        return False


def _is_time_last(shapes: Sequence[tuple[int, ...]]) -> bool | None:
    """Return whether arrays are (F, T), as F is the length that they share; None if unclear."""
    firsts, lasts = Counter(s[0] for s in shapes), Counter(s[1] for s in shapes)
    if len(firsts) != 1:
        return False
    first = next(iter(firsts))
    if len(lasts) > 1:  # one length is that of all, the other one is not
        return first >= _LEAST_WIDTH and not lasts.keys() <= _WIDTHS
    return None if first in _WIDTHS and not lasts.keys() <= _WIDTHS else False


def _read_times(file: Path, rows: int, duration: float | None) -> TimeGrid:
    """Return the times of rows from the timestamps of video_features, in milliseconds.

    Where they are those of the end of each row, as for stacks of frames, the first one begins at 0.
    """
    try:
        seconds = read_npy(file).astype(np.float64) / 1000
        if seconds.shape != (rows,):
            raise ValueError(f"found timestamps of shape {seconds.shape}, expected ({rows},)")
        if not (np.abs(seconds) <= LONGEST_VIDEO).all():
            raise ValueError(f"expected finite times of at most {LONGEST_VIDEO:.0f} seconds")
        step = float(np.median(np.diff(seconds))) if rows > 1 else float(seconds[0])
        step = step or duration or 0.0
        end = float(seconds[-1]) + step
        are_seconds = duration and duration / 2 <= 1000 * end <= 2 * duration
        if are_seconds or (duration and end > 2 * duration + 60):
            raise ValueError(
                f"found times up to {end:g} s in a video of {duration:g} s, expected milliseconds"
            )
        return TimeGrid(seconds - (seconds[0] if seconds[0] > step / 2 else 0.0), step)
    except (ValueError, UsageError) as error:
        told = str(error).removeprefix(f"{file}: ")
        raise StoreError(
            f"{file}: not usable as the times of rows: {told}; delete it to spread the {rows} "
            f"rows evenly over the video's duration"
        ) from None
