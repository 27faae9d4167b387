"""A run folder made by a scripted engine, fresh for every test, and what the page's parts need of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsi_chat
from wsi_chat.analysis.result import SlideResult, load_result
from wsi_chat.app.review import ReviewStore
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Query

from .browsing import browser as browser
from .browsing import context as context
from .browsing import serving as serving


def says(query: Query) -> str | dict[str, float]:
    """Every tile is abnormal, with an hsil and a lsil at fixed places."""
    if query.choices:
        return {choice: 0.1 + 0.8 * (n == 1) for n, choice in enumerate(query.choices)}
    if query.task == "ground":
        places = {"hsil": "64 64 128 128", "lsil": "160 40 200 90"}
        if query.target not in places:
            return f"No {query.target} is found."
        return f"{query.target} 1 is located at <region>{places[query.target]}</region>."
    return {"describe": "Cells are seen.", "refer": "hsil"}.get(query.task, "No abnormal cells were found.")


@pytest.fixture(scope="session")
def analyzed(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = wsi_chat.analyze(
        small_slide,
        out=tmp_path_factory.mktemp("page-run"),
        engine=ScriptedEngine(says),
        dialect="embedded",
        specimen="cervix",
        top_k=3,
        pdf=False,
        gallery=0,
    )
    return result.folder


@pytest.fixture
def folder(analyzed: Path, tmp_path: Path) -> Path:
    """A slide's folder in a run folder of its own, which a test may write to."""
    root = tmp_path / "run"
    shutil.copytree(analyzed.parent, root)
    return root / analyzed.name


@pytest.fixture
def result(folder: Path) -> SlideResult:
    return load_result(folder)


@pytest.fixture
def store(folder: Path) -> Iterator[ReviewStore]:
    with ReviewStore(folder) as opened:
        yield opened


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A specimen of three photographed fields, each of a colour of its own."""
    folder = tmp_path / "specimen 7"
    folder.mkdir()
    for n, color in enumerate(((230, 200, 200), (200, 230, 200), (200, 200, 230)), start=1):
        Image.fromarray(np.full((480, 640, 3), color, np.uint8)).save(folder / f"field {n}.png")
    return folder
