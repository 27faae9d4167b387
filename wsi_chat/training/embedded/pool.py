"""What the rendered part of the training set is made of: plain fields, fields as others take them, tiles of slides.

Plain fields are the renderer's own. Wide ones are conventional smears and stains and magnifications that few
laboratories have, so that drawings carry over to photographs. Tiles overlap by a quarter, as `wsi-chat analyze` cuts
them, and hold what slides hold: single abnormal cells among many others, cells cut by the border, hard normals.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from wsi_chat.datasets.render import ABNORMAL, Field, render_field
from wsi_chat.datasets.render.field import ABNORMAL_VISIBLE
from wsi_chat.datasets.render.scene import Scene
from wsi_chat.training.embedded.fields import POOL_MIX, SIZE

KINDS: dict[str, float] = {"plain": 0.34, "wide": 0.32, "tile": 0.34}
"""Shares of the pool."""
TILE_RECIPES: dict[str, float] = {"abnormal": 0.46, "hard_normal": 0.36, "normal": 0.1, "organism": 0.08}
SCENE_PX = 4096
STRIDE = 192
"""px from tile to tile of 256 px: an overlap of a quarter."""
BLOCK = 4
"""Tiles to a side of a region that is drawn at once."""
MPP = (0.35, 0.7)


def drawn(number: int, seed: int) -> Iterator[tuple[str, Field]]:
    """Fields without end, each with its kind; `number` seeds the choice and `seed` on are the fields' own seeds."""
    rng = np.random.default_rng([number, 31])
    tiles: list[Field] = []
    while True:
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        if kind == "tile":
            if not tiles:
                tiles = list(slide_tiles(seed, rng))
                rng.shuffle(tiles)
            yield kind, tiles.pop()
        else:
            recipe = str(rng.choice(list(POOL_MIX), p=list(POOL_MIX.values())))
            yield kind, wide(seed, recipe, rng) if kind == "wide" else render_field(seed, recipe=recipe)
        seed += 1


def wide(seed: int, recipe: str, rng: np.random.Generator) -> Field:
    """A field in a rare stain, at any magnification that is met, more often than not a conventional smear."""
    mpp = float(np.exp(rng.uniform(*np.log(MPP))))
    preparation = "conventional" if rng.random() < 0.6 else "liquid"
    return render_field(seed, recipe=recipe, mpp=mpp, preparation=preparation, variety=float(rng.uniform(1.0, 2.2)))


def slide_tiles(
    seed: int, rng: np.random.Generator, *, recipe: str | None = None, usual: bool | None = None
) -> Iterator[Field]:
    """Neighbouring tiles of one rendered slide; most slides are as `synth cohort` makes them, with `usual` all."""
    recipe = recipe or str(rng.choice(list(TILE_RECIPES), p=list(TILE_RECIPES.values())))
    usual = rng.random() < 0.6 if usual is None else usual
    scene = Scene(
        seed,
        SCENE_PX,
        SCENE_PX,
        0.5 if usual else float(np.exp(rng.uniform(*np.log(MPP)))),
        recipe,
        250.0 if usual else float(rng.uniform(120, 500)),
        int(rng.integers(90, 240)) if recipe == "abnormal" else 0,
        preparation="conventional" if not usual and rng.random() < 0.6 else "liquid",
        variety=1.0 if usual else float(rng.uniform(1.0, 2.0)),
    )
    side = STRIDE * (BLOCK - 1) + SIZE
    centre_x, centre_y, radius = scene.deposit
    reach = min(radius * 0.65, SCENE_PX / 2 - side)
    left, top = (round(c + rng.uniform(-reach, reach)) - side // 2 for c in (centre_x, centre_y))
    for row in range(BLOCK):
        for column in range(BLOCK):
            x, y = left + STRIDE * column, top + STRIDE * row
            cells = scene.seen(x, y, SIZE, SIZE)
            image = scene.block(x, y, SIZE, SIZE)
            _, packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
            image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB))
            abnormal = any(cell.label in ABNORMAL and cell.visible >= ABNORMAL_VISIBLE for cell in cells)
            yield Field(image, cells, abnormal, scene.mpp, recipe)
