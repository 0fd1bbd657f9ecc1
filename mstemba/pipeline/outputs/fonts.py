"""Fonts for pictures: DejaVu Sans, and the system's fonts for the letters that it lacks."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

# Fonts of Linux, macOS and Windows, those with most letters first; Pillow knows their folders.
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
# What is added to a name that is too long, or that looks like another one.
_ADDED = "…#0123456789 "


def font(size: int) -> Font:
    """Return DejaVu Sans from matplotlib's files, without importing it; size in pixels."""
    return _open(_own(), size)


def font_for(text: str, size: int) -> Font:
    """Return a font that has all letters of the text: DejaVu Sans or one of the system.

    It is DejaVu Sans, too, if no font has them.
    """
    letters = set(text + _ADDED)

    def has_all(path: str) -> bool:
        try:
            return all(_in_font(letter, path) for letter in letters)
        except OSError:  # a damaged font, which shows when letters are drawn
            return False

    if has_all(_own()):
        return font(size)
    return _open(next(filter(has_all, _installed(SYSTEM)), _own()), size)


def in_font(letter: str, used: Font) -> bool:
    """Return whether the font has the letter; for letters that it lacks it draws a box."""
    return _in_font(letter, str(used.path))


@lru_cache
def _own() -> str:
    package = find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return str(Path(package.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache
def _installed(names: tuple[str, ...]) -> list[str]:
    """Return the paths of the fonts that are installed."""
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
