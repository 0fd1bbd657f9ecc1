"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MSTEMBA_TEST_DATA", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the checkout, or named by MSTEMBA_TEST_DATA."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"the real test data is not at {SHARED}; set MSTEMBA_TEST_DATA to its folder")
    return SHARED
