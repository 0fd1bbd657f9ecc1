"""Run `mstemba` as a process.

Little is imported before `mstemba.guard` has taken over: what is raised earlier, such as Ctrl-C,
shows a traceback.
"""

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from mstemba.guard import run

        code = run()
    except KeyboardInterrupt:  # the guard is being imported
        print("mstemba: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
