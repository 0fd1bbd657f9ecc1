"""Run `mstemba` as a process: every error becomes one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Any

from mstemba.cli import app
from mstemba.errors import MstembaError, MstembaWarning

SPIN_COUNT = "3000"
"""How often a waiting thread of GNU OpenMP checks before it sleeps. The default, 100 times higher,
may be 5 to 10 % faster on an idle machine; next to a busy process training takes 1.4 times as long.
"""
_INTERRUPTED = 130  # the exit code by which shells report Ctrl-C
_format_other_warning = warnings.formatwarning


def main() -> None:
    """Run the command line; report a usage error, a full disk or Ctrl-C in one line."""
    warnings.formatwarning = _format_warning
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is loaded
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if it is closed
            stream.reconfigure(errors="backslashreplace")  # what the encoding lacks
    try:
        app(prog_name="mstemba")
        return
    except MstembaError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        message, code = _explain(error), 1
    except (KeyboardInterrupt, SystemExit) as ended:
        # Typer turns Ctrl-C into this exit code.
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        advice = "What was finished is kept: run the same command again to continue"
        message, code = f"interrupted. {advice}", _INTERRUPTED
    from mstemba.pipeline.progress import one_line

    print(f"mstemba: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def _format_warning(
    message: Warning | str, category: type[Warning], *where: Any, **line: Any
) -> str:
    if not issubclass(category, MstembaWarning):
        return _format_other_warning(message, category, *where, **line)
    from mstemba.pipeline.progress import one_line

    return f"warning: {one_line(str(message))}\n"


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
