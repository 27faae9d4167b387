"""Reports to write: a flagged cervical slide, a blank one, an indeterminate one, a counted smear, a crowded one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aggregators import aggregate
from reports.narrative import narrate
from wsi_chat.schema import (
    Box,
    Funnel,
    LabelledBox,
    ModelRecord,
    Provenance,
    Report,
    SlideRecord,
    Specimen,
    Tile,
    TileVerdict,
    Timings,
)
from wsi_chat.terminology import System, load_system

SIDE = 600  # level-0 px of a tile
STRIDE = 480
GRID = (12, 18)  # rows, columns
WIDTH, HEIGHT = STRIDE * (GRID[1] - 1) + SIDE, STRIDE * (GRID[0] - 1) + SIDE
MPP = 0.5


@dataclass(frozen=True)
class Case:
    """A report with what it was made from."""

    report: Report
    tiles: tuple[TileVerdict, ...]
    system: System
    plan: Any


def a_tile(index: int, *, cellularity: float | None = 0.4) -> Tile:
    row, column = divmod(index, GRID[1])
    return Tile(index, column * STRIDE, row * STRIDE, SIDE, SIDE, 0, (SIDE, SIDE), 512, 0.5 * SIDE / 512, cellularity)


def build(
    *,
    specimen: str | None = "cervix",
    hot: int = 8,
    boxes_per_tile: int = 3,
    unread: int = 2,
    failed: int = 1,
    empty: bool = False,
    slide_id: str = "smear-0173-3f9c21aa",
    file_name: str = "smear-0173.svs",
    description: str = "Cells with enlarged, dark nuclei and an irregular outline.",
    notes: tuple[str, ...] = (),
) -> Case:
    """A slide of 18 x 12 tiles whose ``hot`` tiles screen high and hold boxes; deterministic."""
    rng = np.random.default_rng(7)
    system = load_system(specimen)
    labels = [label.code for label in system.asked_labels]
    tiles: list[TileVerdict] = []
    order = [] if empty else list(range(GRID[0] * GRID[1]))
    lost = set(rng.choice(order, size=unread + failed, replace=False).tolist()) if order else set()
    heated = [i for i in rng.permutation(order).tolist() if i not in lost][:hot] if order else []
    for index in order:
        tile = a_tile(index, cellularity=round(float(rng.uniform(0.05, 0.9)), 3))
        if index in lost:
            status = "unreadable" if sum(t.status == "unreadable" for t in tiles) < unread else "screen_failed"
            tiles.append(TileVerdict(tile=tile, status=status, error=f"{status} for a test"))
            continue
        is_hot = index in heated
        p = float(rng.uniform(0.8, 0.97) if is_hot else rng.beta(1.2, 14))
        boxes = []
        for _ in range(boxes_per_tile if is_hot else 0):
            x, y = rng.uniform(60, SIDE - 140, size=2)
            side = float(rng.uniform(36, 84))
            label = labels[int(rng.integers(0, min(3, len(labels))))]
            boxes.append(LabelledBox(label, Box(tile.x + x, tile.y + y, tile.x + x + side, tile.y + y + side * 0.9)))
        tiles.append(
            TileVerdict(
                tile=tile,
                status="detailed" if is_hot else "screened",
                p_screen=p,
                p_abnormal=p if system.screen.about_abnormality else None,
                boxes=tuple(boxes),
                asked=tuple(labels) if is_hot else (),
                description=description if is_hot else "",
                focus=float(rng.uniform(80, 420)),
            )
        )
    count = {status: sum(t.status == status for t in tiles) for status in ("unreadable", "screen_failed", "detailed")}
    funnel = Funnel(
        grid=GRID[0] * GRID[1],
        foreground=len(tiles),
        selected=len(tiles),
        read=len(tiles) - count["unreadable"],
        unreadable=count["unreadable"],
        screened=sum(t.p_screen is not None for t in tiles),
        screen_failed=count["screen_failed"],
        detailed=count["detailed"],
        detail_failed=0,
        truncated_answers=1 if tiles else 0,
        dropped_boxes=2 if tiles else 0,
    )
    verdict = aggregate(tiles, system=system, funnel=funnel, bounds=Box(0, 0, WIDTH, HEIGHT), k=min(5, max(1, hot)))
    report = Report(
        slide=SlideRecord(
            id=slide_id,
            file_name=file_name,
            fingerprint="sha256:" + hashlib.sha256(slide_id.encode()).hexdigest(),
            reader="openslide 4.0.1",
            width=WIDTH,
            height=HEIGHT,
            levels=3,
            mpp=MPP,
            mpp_source="aperio.MPP",
            objective_power=20.0,
            vendor="aperio",
        ),
        specimen=Specimen(
            given=specimen is not None,
            code=specimen or "unspecified",
            name={"cervix": "Cervical cytology", "blood-smear": "Blood smear"}.get(specimen or "", "not given"),
            system=system.name,
            system_version=system.version,
            sources=system.sources,
        ),
        verdict=verdict,
        funnel=funnel,
        notes=notes,
        provenance=Provenance(
            model=ModelRecord(
                name="embedded",
                revision="9b1f0c2d",
                engine="transformers",
                dialect="embedded",
                prompts_sha256=hashlib.sha256(b"prompts").hexdigest(),
                decoding={"greedy": True, "max_tokens": 512},
            ),
            tile_px=512,
            tile_mpp=0.5859375,
            overlap=0.2,
            mask="deposit",
            aggregation={"pool": "topk_logit", "k": 5, "threshold": 0.5},
            seed=0,
            versions={"wsi-chat": "0.1.0", "torch": "2.13.0", "transformers": "5.1.0", "openslide": "4.0.1"},
            config={"top_k": 8, "exhaustive": False},
        ),
        timings=Timings(started="2026-03-02T09:41:00+00:00", seconds={"screen": 41.2}, tiles_per_second=5.2),
    )
    report = report.model_copy(update={"narrative": narrate(report, tiles, system)})
    return Case(report, tuple(tiles), system, SimpleNamespace(grid_shape=GRID, stride=float(STRIDE)))


CASES: dict[str, Callable[[], Case]] = {
    "abnormal": build,
    "normal": lambda: build(hot=0, unread=0, failed=0),
    "indeterminate": lambda: build(hot=0, unread=60, failed=9),
    "unsatisfactory": lambda: build(empty=True),
    "counted": lambda: build(specimen="blood-smear", boxes_per_tile=9),
    "ungiven": lambda: build(specimen=None),
    "crowded": lambda: build(hot=60, boxes_per_tile=9),
}


def picture(width: int = 720, height: int = 480) -> np.ndarray:
    """A pale scan with a round, speckled deposit."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width]
    inside = ((x - width / 2) / (width * 0.46)) ** 2 + ((y - height / 2) / (height * 0.46)) ** 2 < 1
    image = np.full((height, width, 3), 244, dtype=np.uint8)
    speck = (rng.random((height, width)) < 0.18) & inside
    image[inside] = (236, 226, 236)
    image[speck] = (176, 140, 188)
    return image


@pytest.fixture(scope="session", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind of report in turn."""
    return CASES[request.param]()


@pytest.fixture(scope="session")
def abnormal() -> Case:
    return CASES["abnormal"]()


@pytest.fixture
def overview_rgb() -> np.ndarray:
    return picture()


@pytest.fixture
def make() -> Callable[..., Case]:
    """`build`, for a report with something particular."""
    return build
