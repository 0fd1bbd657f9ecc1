"""The SHA-256 that a JSON object of ours carries of its own content.

It is that of the object without it as canonical JSON, so that layout and order do not matter.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mstemba.errors import UsageError

_NAME = "sha256"


def with_digest(data: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its SHA-256 as the last member."""
    return {**data, _NAME: _digest(data)}


def check_digest(data: Any, where: str, error: type[UsageError] = UsageError) -> None:
    """Check the content of a JSON object against the SHA-256 in it, if it has one.

    Args:
        data: What was parsed.
        where: The file, for messages.
        error: What to raise.

    Raises:
        UsageError: Or `error`: the content has changed since it was written.
    """
    if not isinstance(data, dict) or _NAME not in data:
        return
    content = {name: value for name, value in data.items() if name != _NAME}
    if (found := _digest(content)) != data[_NAME]:
        raise error(
            f"{where}: damaged or edited: its content has the SHA-256 {found[:12]}..., not the "
            f"one saved in it, {str(data[_NAME])[:12]!a}...; copy it again or train again, or, if "
            f"you changed it on purpose, delete its field {_NAME!r}"
        )


def _digest(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
