"""The process `mstemba`: runs a command, and says in one line what went wrong."""

from __future__ import annotations

import sys

from mstemba.cli import app
from mstemba.errors import MstembaError


def main() -> None:
    """Entry point: a user's mistake or a full disk is one line, never a traceback."""
    try:
        app(prog_name="mstemba")
    except MstembaError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except OSError as error:
        sys.exit(_fail(_explain(error), 1))


def _fail(message: str, code: int) -> int:
    from mstemba.pipeline.progress import one_line

    print(f"mstemba: {one_line(message)}", file=sys.stderr)
    return code


def _explain(error: OSError) -> str:
    from mstemba.pipeline.files import FULL_DISK

    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL_DISK:
        return (
            f"{where}the disk is full ({error.strerror}). What was finished is kept: "
            f"free some space and run the same command again"
        )
    return f"{where}{error.strerror or error}"


if __name__ == "__main__":
    main()
