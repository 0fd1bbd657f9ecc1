"""What travels between the stages: numpy arrays that never go without their time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstemba.errors import StoreError, UsageError

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TimeGrid:
    """When every row of a (T, ...) array happens, in seconds from the start of the video.

    `starts[i]` is the presentation time of the first frame of row i; row i lasts until the next
    row starts. Constant-rate video gives an even grid; variable-rate video keeps its real times.
    """

    starts: NDArray[np.float64]
    """(T,) strictly increasing, seconds."""
    step: float
    """Seconds from one row to the next: the mean over the video, and the length of the last row."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", np.asarray(self.starts, np.float64))
        if self.starts.ndim != 1 or len(self.starts) == 0:
            raise ValueError(f"starts has shape {self.starts.shape}, expected (T,) with T >= 1")
        if not (np.isfinite(self.starts).all() and np.all(np.diff(self.starts) > 0)):
            raise ValueError("starts must be numbers that increase strictly")
        if not 0 < self.step < np.inf:
            raise ValueError(f"step is {self.step}, expected a number of seconds, more than 0")

    @classmethod
    def even(cls, start: float, step: float, count: int) -> TimeGrid:
        """A grid of `count` rows, `step` seconds apart."""
        return cls(start + step * np.arange(count, dtype=np.float64), step)

    def __repr__(self) -> str:
        return f"TimeGrid({self.count} rows from {self.start:.2f} s, {self.step:.3f} s apart)"

    @property
    def start(self) -> float:
        """Seconds at which the first row starts."""
        return float(self.starts[0])

    @property
    def count(self) -> int:
        """T, the number of rows."""
        return len(self.starts)

    @property
    def ends(self) -> NDArray[np.float64]:
        """(T,) seconds: where each row gives way to the next."""
        return np.append(self.starts[1:], self.starts[-1] + self.step)

    @property
    def is_even(self) -> bool:
        """Whether start + i * step gives every row's time to half a step."""
        even = self.start + self.step * np.arange(self.count)
        return bool(np.abs(self.starts - even).max() <= self.step / 2)

    def as_dict(self) -> dict[str, Any]:
        """start, step and count in seconds; `starts` as well where these do not give them."""
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


# Names of fields in stores, checkpoints and cache keys, where they are not the field's own.
_STORED = {"frame_step": "every"}


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that decides the numbers in a feature store, and nothing else.

    Device, workers and batch size are not here: they must not change what is cached.
    """

    backbone: str
    model: str
    weights: str
    """`tag:...` (a published, immutable name) or `sha256:...` (a file's content)."""
    width: int
    input_size: int
    """Pixels: the side of the centre square."""
    short_side: int
    """Pixels: what the decoder resizes the short side to before the square is taken."""
    window: int = 16
    stride: int = 16
    frame_step: int = 1
    precision: str = "float32"
    dtype: str = "float32"
    decoder: str = "auto"
    resize: str = "bilinear-in-decoder"

    @classmethod
    def unknown(cls, width: int) -> FeatureSpec:
        """Return the specification of features of which only the width is known.

        Published features come without a word on how they were made. What stands in the fields
        is stored and hashed, and means nothing by itself: ask `is_known`.
        """
        text = "published"
        return cls(text, text, text, width, 0, 0, 0, 0, precision=text, decoder=text)

    @property
    def is_known(self) -> bool:
        """Whether it is known how the features were made."""
        return self != FeatureSpec.unknown(self.width)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are stored and hashed: `frame_step` is called `every` there."""
        content = asdict(self)
        return {_STORED.get(name, name): value for name, value in content.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FeatureSpec:
        """Raises UsageError naming what is missing or unknown."""
        known = {_STORED.get(field.name, field.name): field.name for field in fields(cls)}
        if set(data) != set(known):
            odd = ", ".join(sorted(set(data) ^ set(known)))
            raise UsageError(f"feature specification does not match this version of mstemba: {odd}")
        return cls(**{known[name]: value for name, value in data.items()})

    def differences(self, wanted: FeatureSpec) -> str:
        """What differs, as `window=16 (wanted 8), ...`; empty when nothing does."""
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
    """Seconds, from the start to the end of the last frame."""
    fps: float
    """Mean frames a second."""
    key: str
    """The cache key of the entry: what it was made from and how."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != self.grid.count:
            raise ValueError(
                f"values have shape {self.values.shape}, expected ({self.grid.count}, F)"
            )


def check_finite(values: FloatArray) -> None:
    """Raises StoreError for features (T, F) that hold NaN or infinity."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise StoreError(
            f"its features hold NaN or infinity in row {int(np.argmin(finite))} of {len(values)}: "
            f"delete the store that holds them, so that they are made again"
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
    """Seconds, from the start to the end of the last frame."""
    fps: float
    """Mean frames a second."""

    def __repr__(self) -> str:
        rows, classes = self.probabilities.shape
        return f"Scores({self.video!r}, {rows} rows x {classes} classes, {self.duration:.1f} s)"

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
            raise ValueError(f"duration is {self.duration}, expected a number of seconds, above 0")


@dataclass(frozen=True, order=True)
class Segment:
    """One detected action: seconds from the start of the video, score in [0, 1]."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    class_id: int
    """Place of the class in `Scores.classes`."""
    label: str
    """Name of the class."""
    score: float
    """Mean probability over its rows, in [0, 1]; 1 for a labelled action."""
