"""How the command's threads wait for each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command_line import environment

RUN = """
import os, sys
from mstemba.__main__ import main
sys.argv = ["mstemba", "--version"]
try:
    main()
finally:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    own = {name: value for name, value in environment().items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=own | given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == expected
