"""Tiles per second of another package, run with that package's own Python by ``reading.py``; prints one JSON object.

    PEER_PYTHON benchmarks/peer_reading.py {hs2p,lazyslide,tiatoolbox} SLIDE --tile-px 256 --mpp 0.5 --overlap 0

Each is used as its documentation shows, on level-0 tiles of the same side and stride, without a tissue mask.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any


def hs2p(path: str, tile_px: int, mpp: float, overlap: float, limit: int) -> Iterator[Any]:
    from hs2p.wsi.reader import open_slide
    from hs2p.wsi.streaming.stream import iter_tile_arrays_from_result

    with open_slide(path, backend="openslide") as slide:
        width, height = slide.dimensions
    step = round(tile_px * (1 - overlap))
    at = [(x, y) for y in range(0, height - tile_px + 1, step) for x in range(0, width - tile_px + 1, step)][:limit]
    result = SimpleNamespace(
        image_path=path, backend="openslide", base_spacing_um=mpp, read_level=0, read_tile_size_px=tile_px,
        tile_size_lv0=tile_px, overlap=overlap, step_px_lv0=step, x=[x for x, _ in at], y=[y for _, y in at],
        level_downsamples=[1.0],
    )  # fmt: skip
    return iter_tile_arrays_from_result(result=result, num_workers=2)


def lazyslide(path: str, tile_px: int, mpp: float, overlap: float, limit: int) -> Iterator[Any]:
    import lazyslide as zs
    from torch.utils.data import DataLoader, Subset
    from wsidata import open_wsi

    slide = open_wsi(path, store=None)
    zs.pp.tile_tissues(slide, tile_px, overlap=overlap or None, mpp=mpp, background_filter=False)
    tiles = slide.ds.tile_images("tiles")
    batches = DataLoader(Subset(tiles, range(min(limit, len(tiles)))), batch_size=32, num_workers=2)
    return (image for batch in batches for image in batch["image"])


def tiatoolbox(path: str, tile_px: int, mpp: float, overlap: float, limit: int) -> Iterator[Any]:
    from tiatoolbox.tools.patchextraction import get_patch_extractor

    step = round(tile_px * (1 - overlap))
    patches = get_patch_extractor(
        "slidingwindow", input_img=path, patch_size=(tile_px, tile_px), stride=(step, step), resolution=mpp, units="mpp"
    )
    return islice(iter(patches), limit)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["hs2p", "lazyslide", "tiatoolbox"])
    parser.add_argument("slide")
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--overlap", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=2000)
    given = parser.parse_args()
    peer = {"hs2p": hs2p, "lazyslide": lazyslide, "tiatoolbox": tiatoolbox}[given.peer]
    tiles = peer(given.slide, given.tile_px, given.mpp, given.overlap, given.limit)
    next(tiles)  # opening, imports and the workers' start are not counted
    begun, processor = time.perf_counter(), time.process_time()
    count = sum(1 for _ in tiles)
    seconds = time.perf_counter() - begun
    print(
        json.dumps(
            {"tiles": count, "per_s": count / seconds, "cpu_ms": (time.process_time() - processor) / count * 1e3}
        )
    )


if __name__ == "__main__":
    main()
