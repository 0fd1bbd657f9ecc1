"""Fixtures for the tests of the model."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """Every test of the model runs on one thread, unless it sets another number itself."""
