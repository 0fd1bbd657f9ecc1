"""Fonts for pictures: one that is always here, and the machine's own for the letters it lacks."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

# As Linux, macOS and Windows have them, those of most letters first; Pillow knows their folders.
SYSTEM = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJK-VF.ttc",
    "SourceHanSans.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansThai-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Arial Unicode.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Kohinoor.ttc",
    "msyh.ttc",
    "YuGothR.ttc",
    "malgun.ttf",
    "LeelawUI.ttf",
    "Nirmala.ttf",
    "Nirmala.ttc",
)
# What is put before or after a name that is too long, or like another one.
BESIDES = "…#0123456789 "


def font(size: int) -> Font:
    """DejaVu Sans, as matplotlib brings it, found without importing that; size in pixels."""
    return _open(_own(), size)


def font_for(text: str, size: int) -> Font:
    """The font that has all letters of the text: ours, else one of the machine, else ours."""
    letters = set(text + BESIDES)

    def has_all(path: str) -> bool:
        try:
            return all(_in_font(letter, path) for letter in letters)
        except OSError:  # a damaged font, found out by its letters
            return False

    if has_all(_own()):
        return font(size)
    return _open(next(filter(has_all, _here(SYSTEM)), _own()), size)


def in_font(letter: str, used: Font) -> bool:
    """Whether the font has the letter: for all others, as for what is no letter, it has a box."""
    return _in_font(letter, str(used.path))


@lru_cache
def _own() -> str:
    package = find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return str(Path(package.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache
def _here(names: tuple[str, ...]) -> list[str]:
    """The paths of those of the fonts that the machine has."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append(str(ImageFont.truetype(name).path))
    return found


@lru_cache
def _open(path: str, size: int, layout: ImageFont.Layout | None = None) -> Font:
    return ImageFont.truetype(path, size, layout_engine=layout)


@lru_cache(maxsize=4096)
def _in_font(letter: str, path: str) -> bool:
    plain = _open(path, 17, ImageFont.Layout.BASIC)
    return bytes(plain.getmask(letter)) != bytes(plain.getmask("\uffff"))
