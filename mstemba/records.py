"""Records that pass between the stages: numpy arrays together with their times."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mstemba.errors import StoreError, UsageError
from mstemba.limits import LONGEST_NAME, WIDEST
from mstemba.reading.typed import Name, PathText, Positive, convert
from mstemba.wording import counted

FloatArray = NDArray[np.floating[Any]]
# Hours, minutes, seconds, frames; the last separator is : or, for drop frame, another.
TIMECODE = re.compile(r"\d\d:\d\d:\d\d[:;.]\d{2,3}")
LEVELS = 1000
"""Steps of probability in which segments are cut and the HTML page holds its scores."""


def to_levels(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Return the highest of 0..LEVELS whose thousandth, as float32, each probability reaches.

    Thus `level >= k` is exactly `probability >= float32(k / LEVELS)`.
    """
    edges = (np.arange(LEVELS + 1) / LEVELS).astype(np.float32)
    return np.maximum(np.searchsorted(edges, probabilities, side="right") - 1, 0).astype(np.uint16)


@dataclass(frozen=True)
class TimeGrid:
    """The times of the rows of a (T, ...) array, in seconds from the start of the video.

    `starts[i]` is the presentation time of the first frame of row i, which lasts until the next row
    starts. A constant frame rate gives an even grid; a variable one keeps the real times.
    """

    starts: NDArray[np.float64]
    """(T,) seconds, strictly increasing."""
    step: float
    """Mean number of seconds from one row to the next, and the length of the last row."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.asarray(self.starts, np.float64))
        if self.starts.ndim != 1 or len(self.starts) == 0:
            raise ValueError(f"starts has shape {self.starts.shape}, expected (T,) with T >= 1")
        if not (np.isfinite(self.starts).all() and np.all(np.diff(self.starts) > 0)):
            raise ValueError("starts must be finite and strictly increasing")
        if not 0 < self.step < np.inf:
            raise ValueError(f"step is {self.step}, expected a positive number of seconds")

    @classmethod
    def even(cls, start: float, step: float, count: int) -> TimeGrid:
        """Return a grid of `count` rows, `step` seconds apart."""
        return cls(start + step * np.arange(count, dtype=np.float64), step)

    def __repr__(self) -> str:
        rows = counted(self.count, "row")
        return f"TimeGrid({rows} from {self.start:.2f} s, {self.step:.3f} s apart)"

    @property
    def start(self) -> float:
        """Start of the first row, in seconds."""
        return float(self.starts[0])

    @property
    def count(self) -> int:
        """Number of rows, T."""
        return len(self.starts)

    @property
    def ends(self) -> NDArray[np.float64]:
        """(T,) seconds at which the rows end."""
        return np.append(self.starts[1:], self.starts[-1] + self.step)

    def times(self, anchor: float) -> NDArray[np.float64]:
        """Return the (T,) seconds at which the rows' values hold.

        Args:
            anchor: Place in a row: 0 for its start, 0.5 for its centre, 1 for its end.
        """
        return np.asarray(self.starts + anchor * (self.ends - self.starts))

    def bounds(self, anchor: float) -> NDArray[np.float64]:
        """Return the (T + 1,) seconds between which the values are shown.

        They lie halfway between the times of two rows. The first value is shown from the start of
        the first row, and the last one to the end of the last row.
        """
        times = self.times(anchor)
        return np.concatenate([self.starts[:1], (times[:-1] + times[1:]) / 2, self.ends[-1:]])

    @property
    def is_even(self) -> bool:
        """Whether start + i * step is within half a step of every row's start."""
        even = self.start + self.step * np.arange(self.count)
        return bool(np.abs(self.starts - even).max() <= self.step / 2)

    def as_dict(self) -> dict[str, Any]:
        """Return start, step and count, and `starts` if these do not determine it."""
        even = {"start": self.start, "step": self.step, "count": self.count}
        return even if self.is_even else {**even, "starts": self.starts.tolist()}


@dataclass(frozen=True)
class Frames:
    """A batch of consecutive decoded frames."""

    images: NDArray[np.uint8]
    """(N, H, W, 3) RGB."""
    times: NDArray[np.float64]
    """(N,) presentation times, seconds from the start of the video."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images are {self.images.dtype} {self.images.shape}, expected uint8 (N, H, W, 3)"
            )
        if self.times.shape != self.images.shape[:1]:
            raise ValueError(f"{len(self.images)} images but times have shape {self.times.shape}")


_Size = Annotated[int, Meta(ge=0, le=2**31)]
# Names in stores, checkpoints and cache keys that differ from the field's name.
_STORED = {"frame_step": "every"}


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that decides the numbers in a feature store.

    Device, workers and batch size are not part of it: they must not change what is cached.
    """

    backbone: Name
    model: PathText
    weights: PathText
    """`tag:...` (a published, immutable name) or `sha256:...` (a file's content)."""
    width: Annotated[int, Meta(ge=1, le=WIDEST)]
    input_size: _Size
    """Side of the centre crop, in pixels."""
    short_side: _Size
    """Length to which the short side is resized before the crop, in pixels."""
    window: _Size = 16
    stride: _Size = 16
    frame_step: _Size = 1
    precision: Name = "float32"
    dtype: Annotated[str, Meta(pattern="^float(16|32)$")] = "float32"
    decoder: Name = "auto"
    resize: Name = "bicubic-in-decoder"
    fps: Annotated[int, Meta(gt=0, le=2**31)] | Positive | None = None
    """Of videos that do not say when their frames are displayed; None = an assumed rate."""

    @classmethod
    def unknown(cls, width: int) -> FeatureSpec:
        """Return the specification of features of which only the width is known.

        Published features come without a word on how they were made. What stands in the fields
        is stored and hashed, and means nothing by itself: ask `is_known`.
        """
        text = "published"
        resize = "bilinear-in-decoder"  # as in the first stores, whose keys stay the same
        return cls(text, text, text, width, 0, 0, 0, 0, precision=text, decoder=text, resize=resize)

    @property
    def is_known(self) -> bool:
        """Whether it is known how the features were made."""
        return self != FeatureSpec.unknown(self.width)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are stored and hashed: `frame_step` is called `every` there,
        and `fps` is there only if it is given."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.fps is None:
            del content["fps"]
        return {_STORED.get(name, name): value for name, value in content.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureSpec:
        """Return the specification. Raises UsageError for missing, unknown or invalid fields."""
        known = {_STORED.get(field.name, field.name): field.name for field in fields(cls)}
        if set(data) | {"fps"} != set(known):
            odd = ", ".join(sorted((set(data) | {"fps"}) ^ set(known))[:10])[:LONGEST_NAME]
            raise UsageError(f"feature specification does not match this version of mstemba: {odd}")
        named = {known[name]: value for name, value in data.items()}
        return convert(named, cls, "feature specification")

    def differences(self, wanted: FeatureSpec) -> str:
        """Return the differences as `window=16 (wanted 8), ...`; empty if there are none."""
        mine, theirs = asdict(self), asdict(wanted)
        return ", ".join(
            f"{k}={mine[k]} (wanted {theirs[k]})" for k in mine if mine[k] != theirs[k]
        )


@dataclass(frozen=True)
class Features:
    """The features of one video."""

    values: FloatArray
    """(T, F) float16 or float32."""
    grid: TimeGrid
    duration: float
    """Seconds from the start of the video to the end of its last frame."""
    fps: float
    """Frames per second, pauses not counted."""
    key: str
    """Cache key of the entry."""
    timecode: str = ""
    """Of the video's first frame, as 10:00:00:00; empty if it has none."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != self.grid.count:
            raise ValueError(
                f"values have shape {self.values.shape}, expected ({self.grid.count}, F)"
            )


def check_finite(values: FloatArray) -> None:
    """Raise StoreError if features (T, F) hold NaN or infinity."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise StoreError(
            f"its features hold NaN or infinity in row {int(np.argmin(finite))} of {len(values)}: "
            f"delete the store and extract them again"
        )


@dataclass(frozen=True)
class Scores:
    """Dense class probabilities of one video."""

    probabilities: NDArray[np.float32]
    """(T, C) in [0, 1]; several classes may be active at once."""
    grid: TimeGrid
    """When each row happens."""
    classes: tuple[str, ...]
    """(C,) names."""
    video: str
    """Path of the file."""
    duration: float
    """Seconds from the start of the video to the end of its last frame."""
    fps: float
    """Frames per second, pauses not counted."""
    timecode: str = ""
    """Of the video's first frame, as 10:00:00:00; empty if it has none."""
    anchor: float = 0.0
    """Where in its row a probability holds: 0 for the row's start (networks trained with the label
    rule `strict`), 0.5 for its centre."""

    @property
    def times(self) -> NDArray[np.float64]:
        """(T,) seconds at which the probabilities hold, within the video."""
        return np.clip(self.grid.times(self.anchor), 0, self.duration)

    @property
    def bounds(self) -> NDArray[np.float64]:
        """(T + 1,) seconds between which the probabilities are shown, within the video."""
        return np.clip(self.grid.bounds(self.anchor), 0, self.duration)

    def __repr__(self) -> str:
        rows, classes = self.probabilities.shape
        shape = f"{counted(rows, 'row')} x {counted(classes, 'class')}"
        return f"Scores({self.video!r}, {shape}, {self.duration:.1f} s)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", np.asarray(self.probabilities, np.float32))
        expected = (self.grid.count, len(self.classes))
        if self.probabilities.shape != expected:
            raise ValueError(
                f"probabilities have shape {self.probabilities.shape}, expected {expected}"
            )
        if not np.all((self.probabilities >= 0) & (self.probabilities <= 1)):
            raise ValueError("probabilities must be numbers from 0 to 1")
        if not 0 < self.duration < np.inf:
            raise ValueError(f"duration is {self.duration}, expected a positive number of seconds")
        if self.timecode and not TIMECODE.fullmatch(self.timecode):
            raise ValueError(f"timecode is {self.timecode!r}, expected one like '10:00:00:00'")
        if not 0 <= self.anchor <= 1:
            raise ValueError(f"anchor is {self.anchor}, expected 0 to 1")


@dataclass(frozen=True, order=True)
class Segment:
    """One detected action: seconds from the start of the video, score in [0, 1]."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    class_id: int
    """Index of the class in `Scores.classes`."""
    label: str
    """Name of the class."""
    score: float
    """Mean probability over its rows, in [0, 1]; 1 for a labelled action."""
