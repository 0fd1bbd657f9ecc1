"""What an extraction is asked for, and what it did: jobs, results, and the list of failures."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from mstemba.errors import UsageError
from mstemba.pipeline.caching.files import optional, read_text, remote, write_json
from mstemba.pipeline.caching.locks import StoreLocks
from mstemba.pipeline.features.store import FeatureStore
from mstemba.reading.files import read_bytes
from mstemba.reading.typed import Name, parse_json

FAILURES = "failures.json"


@dataclass
class ExtractResult:
    """What an extraction did."""

    store: Path
    made: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by video id."""
    without_file: list[str] = field(default_factory=list)
    """Videos of the manifest that name no file."""
    frames: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """A video that needs features."""

    id: str
    path: Path
    fingerprint: str
    key: str
    """Of its entry in the store."""


def read_failures(root: Path) -> dict[str, str]:
    """Why videos failed, by id, as the last extractions into a store found."""
    try:
        file = root / FAILURES
        content = read_text(file).encode() if remote(file) else read_bytes(file)
        return parse_json(content, dict[Name, str], FAILURES)
    except (OSError, ValueError, UsageError):
        return {}  # none yet, or damaged: the next failure writes it anew


def remember_failures(store: FeatureStore, tried: Container[str], failed: dict[str, str]) -> None:
    """Keep why videos failed; those tried and not failed are taken off the list."""

    def update(known: dict[str, str]) -> dict[str, str]:
        return {id: reason for id, reason in known.items() if id not in tried} | failed

    known = read_failures(store.root)
    if update(known) == known:
        return
    with optional("`mstemba status` will not show which videos failed"):
        store.make()
        with StoreLocks(store.root).lock_store():  # another process may do the same
            write_json(store.root / FAILURES, update(read_failures(store.root)))
