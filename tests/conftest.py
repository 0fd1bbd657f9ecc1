"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from hypothesis import settings

from tests.command_line import in_this_process  # noqa: F401  (a fixture)

# How long an example takes does not matter here; on CI the same examples are drawn every time.
settings.register_profile("mstemba", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("mstemba")


def _interprets() -> bool:
    """Return whether the interpreter of the installed Triton works with the installed NumPy."""
    try:
        triton = tuple(map(int, version("triton").split(".")[:2]))
    except PackageNotFoundError:
        return False
    return triton >= (3, 9) or tuple(map(int, version("numpy").split(".")[:2])) < (2, 4)


# Without an NVIDIA GPU the tests of Triton's kernels run in its interpreter, which must be chosen
# before anything imports Triton.
if shutil.which("nvidia-smi") is None and _interprets():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# With a process a core, several threads in each mostly wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.pop("MSTEMBA_SCAN", None)  # a developer's own choice is not what is tested

SHARED = Path(os.environ.get("MSTEMBA_TEST_DATA", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch's waiting threads spin: on a busy machine two of them are far slower than one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data next to the checkout, or named by MSTEMBA_TEST_DATA."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no test data in {SHARED}; set MSTEMBA_TEST_DATA to its folder")
    return SHARED
