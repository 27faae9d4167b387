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


@pytest.fixture(scope="session")
def small_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1,536 x 1,024 px pyramidal TIFF at 0.5 um/px: thirty dark cells on a bright field, fixed places."""
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
