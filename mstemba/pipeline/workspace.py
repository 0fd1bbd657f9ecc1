"""The workspace: a folder whose files the commands find without being given paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import Struct

from mstemba.data_manifests.video_files import WORKSPACE_MARKER
from mstemba.errors import UsageError
from mstemba.limits import LONGEST_PATH
from mstemba.pipeline.caching.files import as_local, optional, write_atomically, write_text
from mstemba.reading.files import real_path
from mstemba.reading.typed import PathText, read_toml, shown

# By whether the arrays of a folder of features have time last.
_TRANSPOSED = ("not transposed", "transposed")
_CONTENT = """\
# This file makes its folder an mstemba workspace: commands run in it, or below it, need no paths.
version = 1
manifest = "manifest.json"
"""


class _Marker(Struct):
    version: Literal[1] = 1
    manifest: PathText = "manifest.json"


@dataclass(frozen=True)
class Workspace:
    """The paths of a workspace.

    The files named `current` hold a name: the feature store of the last `extract`, and the run of
    the last `train`, which later commands use by default. After the name of a folder of .npy files
    stands whether time is the last axis, if that was given.
    """

    root: Path
    """The folder."""
    manifest: Path
    """The file that names the videos, their classes, subsets and actions."""

    @property
    def features(self) -> Path:
        """Folder of the feature stores."""
        return self.root / "features"

    @property
    def runs(self) -> Path:
        """Folder of the trained runs."""
        return self.root / "runs"

    @property
    def detections(self) -> Path:
        """Folder of the results of `detect`."""
        return self.root / "detections"

    @property
    def zero_shot(self) -> Path:
        """Folder of the results of `detect --labels`."""
        return self.detections / "zero-shot"

    @property
    def fingerprints(self) -> Path:
        """SHA-256 of known files; deleting it only costs time."""
        return self.root / ".cache" / "fingerprints.json"


def create_workspace(root: Path) -> Workspace:
    """Make `root` a workspace. An existing one is unchanged."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / WORKSPACE_MARKER).is_file():
        write_text(root / WORKSPACE_MARKER, _CONTENT)
    return open_workspace(root)


def open_workspace(root: str | Path) -> Workspace:
    """Open the workspace at `root`.

    Raises:
        UsageError: It is not one, or its file names a manifest outside of it.
    """
    root = as_local(root) or Path()
    if not (root / WORKSPACE_MARKER).is_file():
        raise UsageError(
            f"{root}: not a workspace, it has no {WORKSPACE_MARKER}. Create one with `mstemba init`"
        )
    marker = root / WORKSPACE_MARKER
    name = Path(read_toml(marker, _Marker).manifest)
    folder = Path(os.path.realpath(root))
    inside = Path(os.path.realpath(root / name.parent)).is_relative_to(folder)
    if name.is_absolute() or ".." in name.parts or not name.name or not inside:
        raise UsageError(
            f"{marker}: `manifest` is {shown(str(name))}, expected the name of a file in the "
            f"workspace, such as 'manifest.json'"
        )
    return Workspace(root, root / name)


def find_workspace(given: Workspace | str | Path | None = None) -> Workspace | None:
    """Return the given workspace, the one in MSTEMBA_WORKSPACE, or the nearest one above."""
    if isinstance(given, Workspace):
        return given
    if given is None and os.environ.get("MSTEMBA_WORKSPACE"):
        given = os.environ["MSTEMBA_WORKSPACE"]
    if given is not None:
        return open_workspace(given)
    here = Path.cwd()
    found = next((f for f in (here, *here.parents) if (f / WORKSPACE_MARKER).is_file()), None)
    # Relative, so that printed paths are as short as a user would type them.
    return None if found is None else open_workspace(Path(os.path.relpath(found)))


def require_workspace(workspace: Workspace | None, option: str) -> Workspace:
    """Return the workspace. Raises UsageError, naming the option to pass, if there is none."""
    if workspace is None:
        raise UsageError(f"no workspace here: pass {option}, or create one with `mstemba init`")
    return workspace


def set_current(folder: Path, name: str, transposed: bool | None = None) -> None:
    """Remember which entry of `folder` later commands use by default.

    Args:
        folder: Of the feature stores or the runs.
        name: The entry's path in `folder`, or an absolute one.
        transposed: Whether its arrays are (F, T), if that was given.
    """
    lines = [name] if transposed is None else [name, _TRANSPOSED[transposed]]
    if "\n" in name or name != name.strip():
        raise UsageError(f"{name!r}: a name with line breaks, or blanks at its ends; rename it")
    if _current(folder) != (name, *lines[1:], "")[:2]:
        content = os.fsencode("\n".join(lines) + "\n")
        write_atomically(folder / "current", lambda temporary: temporary.write_bytes(content))


def remember_current(folder: Path, name: str) -> None:
    """Do as `set_current`; that it cannot be written is a MstembaWarning."""
    with optional("later commands do not use this result by default"):
        set_current(folder, name)


def get_current(folder: Path) -> Path | None:
    """Return the remembered entry of `folder`, if it still exists."""
    name, _ = _current(folder)
    return folder / name if name and os.path.isdir(folder / name) else None


def given_transposed(folder: Path, entry: Path) -> bool | None:
    """Return whether the arrays of an entry are (F, T), if it is the remembered one of `folder`.

    None if that was not given.
    """
    name, transposed = _current(folder)
    known = transposed in _TRANSPOSED and real_path(folder / name) == real_path(entry)
    return bool(_TRANSPOSED.index(transposed)) if known else None


def _current(folder: Path) -> tuple[str, str]:
    """Return the remembered entry of `folder`, and the line after it; empty if there is none."""
    pointer = folder / "current"
    if not pointer.is_file():
        return "", ""
    with pointer.open("rb") as file:
        content = os.fsdecode(file.read(LONGEST_PATH + 100))
    name, _, rest = content.partition("\n")
    return ("" if "\0" in name else name.strip()), rest.strip()
