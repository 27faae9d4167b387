"""Fixtures shared by every test."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real slides and fields; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real slides and fields are not here: {SHARED_DATA} is absent")
    return SHARED_DATA
