"""Fixtures shared by every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("WSI_CHAT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
"""Data and cases beside the checkout. Tests reach them through the fixture `shared` alone."""


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Gives a path below ../shared, e.g. ``shared("data/slides")``; skips the test where it is not there."""

    def path(name: str) -> Path:
        found = SHARED / name
        if not found.exists():
            pytest.skip(f"{found} is absent (WSI_CHAT_SHARED names the folder)")
        return found

    return path


@pytest.fixture(scope="session")
def shared_data(shared: Callable[[str], Path]) -> Path:
    """The folder with real slides and fields; the test is skipped where it is absent."""
    return shared("data")


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1,536 x 1,024 px pyramidal TIFF at 0.5 µm/px: thirty dark cells on a bright field, fixed places."""
    import cv2
    import numpy as np

    from wsi_chat.datasets.mosaic import write_pyramid

    rng = np.random.default_rng(3)
    canvas = np.full((1024, 1536, 3), 238, dtype=np.uint8)
    canvas += rng.integers(0, 6, canvas.shape, dtype=np.uint8)
    for x, y in zip(rng.integers(60, 1470, 30), rng.integers(60, 960, 30), strict=True):
        cv2.circle(canvas, (int(x), int(y)), 26, (150, 180, 190), -1, cv2.LINE_AA)
        cv2.circle(canvas, (int(x), int(y)), 9, (80, 60, 120), -1, cv2.LINE_AA)
    path = tmp_path_factory.mktemp("slides") / "cells.tiff"
    write_pyramid(path, canvas, mpp=0.5)
    return path
