"""Tiles, verdicts and funnels for tests, built from the few numbers that matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from wsi_chat.schema import Box, Funnel, LabelledBox, Tile, TileVerdict
from wsi_chat.terminology import System, load_system


def _tile(index: int = 0, x: int = 0, y: int = 0, side: int = 512, cellularity: float | None = 0.3) -> Tile:
    return Tile(index, x, y, side, side, 0, (side, side), side, 0.5, cellularity)


def _verdict(
    tile: Tile,
    p: float | None = 0.5,
    boxes: Sequence[tuple[str, Box]] = (),
    *,
    status: str | None = None,
    asked: tuple[str, ...] = (),
    about_abnormality: bool = True,
) -> TileVerdict:
    default = "screen_failed" if p is None else "detailed" if boxes or asked else "screened"
    return TileVerdict(
        tile=tile,
        status=status or default,  # type: ignore[arg-type]
        p_screen=p,
        p_abnormal=p if about_abnormality else None,
        boxes=tuple(LabelledBox(label, box) for label, box in boxes),
        asked=asked,
    )


def _funnel(verdicts: Sequence[TileVerdict], *, foreground: int | None = None, **counts: Any) -> Funnel:
    n = len(verdicts)
    unreadable = sum(v.status == "unreadable" for v in verdicts)
    fields: dict[str, Any] = {
        "grid": 4 * max(n, foreground or 0),
        "foreground": n if foreground is None else foreground,
        "selected": n,
        "read": n - unreadable,
        "unreadable": unreadable,
        "screened": sum(v.p_screen is not None for v in verdicts),
        "screen_failed": sum(v.status == "screen_failed" for v in verdicts),
        "detailed": sum(v.status == "detailed" for v in verdicts),
        "detail_failed": 0,
        "truncated_answers": 0,
        "dropped_boxes": 0,
    }
    return Funnel(**{**fields, **counts})


@pytest.fixture(scope="session")
def make_tile() -> Callable[..., Tile]:
    return _tile


@pytest.fixture(scope="session")
def make_verdict() -> Callable[..., TileVerdict]:
    return _verdict


@pytest.fixture(scope="session")
def make_funnel() -> Callable[..., Funnel]:
    return _funnel


@pytest.fixture(scope="session")
def cervix() -> System:
    return load_system("cervix")


@pytest.fixture(scope="session")
def blood() -> System:
    return load_system("blood-smear")
