"""The process `mstemba`: runs a command, and says in one line what went wrong."""

from __future__ import annotations

import sys

from mstemba.cli import app
from mstemba.errors import MstembaError

_INTERRUPTED = 130  # as a shell counts a process that Ctrl-C ended


def main() -> None:
    """Entry point: a user's mistake, a full disk or Ctrl-C is one line, never a traceback."""
    try:
        _run()
    except MstembaError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except OSError as error:
        sys.exit(_fail(_explain(error), 1))
    except KeyboardInterrupt:
        advice = "What was finished is kept: the same command again does the rest"
        sys.exit(_fail(f"interrupted. {advice}", _INTERRUPTED))


def _run() -> None:
    try:
        app(prog_name="mstemba")
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # all that Typer leaves of Ctrl-C
            raise KeyboardInterrupt from None
        raise


def _fail(message: str, code: int) -> int:
    from mstemba.pipeline.progress import one_line

    print(f"mstemba: {one_line(message)}", file=sys.stderr)
    return code


def _explain(error: OSError) -> str:
    from mstemba.pipeline.caching.files import describe_error, ends_the_run

    if not ends_the_run(error):
        return describe_error(error)
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}the disk is full ({error.strerror}). What was finished is kept: "
        f"free some space and run the same command again"
    )


if __name__ == "__main__":
    main()
