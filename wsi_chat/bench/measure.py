"""Measures one slide with one model on this machine: read, screen, detail, documents, each beside its limit.

Rates of the pipeline come from the run's own clock (`analysis.stages.Clock`). Limits are measured on other tiles of the
same slide, so that no cache answers for the engine or the reader.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat import tasks
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.bench.result import Bench, Stage, advise
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.names import shown_names
from wsi_chat.progress import Progress, no_progress
from wsi_chat.remarks import counted

if TYPE_CHECKING:
    from PIL import Image

    from tilers import Slide
    from wsi_chat.analysis.preparation import Prepared
    from wsi_chat.engines.model import Model
    from wsi_chat.schema import Query, Tile
    from wsi_chat.settings import Settings
    from wsi_chat.tasks import Ask

TILES, CLOSER = 64, 4
READ = 256
"""Tiles that are read to measure reading: it is fast, and starting its threads takes a moment."""
RENDERED_PX = 4096
ROUNDS = 2


def measure(
    slide: Path | None,
    settings: Settings,
    model: Model,
    *,
    tiles: int = TILES,
    progress: Progress = no_progress,
) -> Bench:
    """Measure a slide, or one rendered for it (cervix, 4,096 px at 0.5 µm/px) where none is given.

    Args:
        tiles: so many are screened, and as many others asked about from memory; at most half of the slide's.

    Raises:
        SettingError: the slide has fewer than two tiles, or ``tiles`` is below 1.
        WsiChatError: the slide cannot be read or the model not be loaded, as in an analysis.
    """
    if tiles < 1:
        raise SettingError(f"--tiles is {tiles}.", hint="Give at least 1.")
    with tempfile.TemporaryDirectory(prefix="wsi-chat-bench-") as scratch:
        path = slide if slide is not None else _rendered(Path(scratch), progress)
        if slide is None and settings.specimen is None:
            settings = settings.model_copy(update={"specimen": "cervix"})
        return _measured(path, Path(scratch), settings, model, tiles, progress)


def _rendered(folder: Path, progress: Progress) -> Path:
    from wsi_chat.datasets.render import render_slide

    progress("rendering a slide", 0, 1)
    path = folder / "rendered.tiff"
    render_slide(path, seed=1, width_px=RENDERED_PX, height_px=RENDERED_PX, recipe="abnormal")
    progress("rendering a slide", 1, 1)
    return path


def _measured(path: Path, scratch: Path, settings: Settings, model: Model, wanted: int, progress: Progress) -> Bench:
    from wsi_chat.analysis.pipeline import ask_slide
    from wsi_chat.analysis.preparation import prepare_slide

    busy = round(os.getloadavg()[0], 2)
    began = time.perf_counter()
    engine = model.engine
    load = time.perf_counter() - began
    prepared = prepare_slide(path, settings, model.dialect)
    try:
        planned = prepared.plan.tiles
        count = min(wanted, len(planned) // 2)
        if not count:
            raise SettingError(
                f"{path.name} has {counted(len(planned), 'tile')} to screen.",
                hint="Choose a larger slide, or leave SLIDE out.",
            )
        limited = settings.model_copy(
            update={
                "limit": count, "top_k": min(CLOSER, settings.top_k), "exhaustive": False, "controls": False,
                "adequacy_tiles": 0, "narrative": "template", "overwrite": True,
            }
        )  # fmt: skip
        reading = min(READ, len(planned))
        read, bare = _read(prepared, settings, reading, progress)
        used = {tile.index for tile in _limited(prepared, limited, model)}
        others = [tile for tile in planned if tile.index not in used][: count + CLOSER + 1]
        pictures = _pictures(prepared, others)
        screening = tasks.screen(prepared.system)
        closer = [
            *(
                tasks.ground(label.code)
                for label in prepared.system.labels_to_ask(model.dialect.labels, age=settings.age)
            ),
            tasks.describe(),
        ]
        began = time.perf_counter()
        _ask(model, [screening], pictures[-1:])  # what is compiled or allocated once is part of the load
        load += time.perf_counter() - began
        progress("engine alone", 0, 2)
        few, many = pictures[:CLOSER], pictures[CLOSER:-1] or pictures[:1]
        from_memory = len(many) / _ask(model, [screening], many)
        progress("engine alone", 1, 2)
        closer_from_memory = len(few) * len(closer) / _ask(model, closer, few)
        progress("engine alone", 2, 2)
    finally:
        prepared.close()
    run, names = RunFolder(scratch / "out").open(), shown_names(path, path.name)
    asked = ask_slide(path, run, limited, model, name=slide_id(path), names=names, progress=progress)
    clock, report = asked.judged.run.clock, asked.judged.report
    asked.document()
    seconds = clock.seconds
    looked = report.funnel.detailed + report.funnel.detail_failed
    whole = len(planned) / max(1, report.funnel.selected)
    stages = (
        Stage("load", load, settings="--model, --engine, --base-url"),
        Stage("plan", prepared.seconds, settings="--mask, --reader"),
        Stage("read", read, reading, "tiles", bare, "the reader alone, one thread a core", None, "--workers, --reader"),
        Stage(
            "screen", seconds.get("screen", 0.0), report.funnel.selected, "tiles", from_memory,
            "the engine fed from memory", seconds.get("screen", 0.0) * whole,
            "--engine, --batch-size, --gpus, --tile-mpp, --overlap",
        ),
        Stage(
            "detail", seconds.get("detail", 0.0), looked * len(closer), "questions", closer_from_memory,
            "the engine fed from memory", seconds.get("detail", 0.0) * settings.top_k / looked if looked else 0.0,
            "--top-k",
        ),
        Stage("documents", seconds.get("documents", 0.0), settings="--format, --gallery"),
    )  # fmt: skip
    machine = {**_machine(settings), "load": busy}
    return Bench(
        slide=path.name,
        model=engine.model_name,
        engine=f"{engine.name} ({model.choice.reason})",
        machine=machine,
        tiles=report.funnel.selected,
        planned=len(planned),
        stages=stages,
        advice=advise(
            stages,
            workers=settings.workers,
            cores=machine["cores"],
            engine=engine.name,
            gpu=bool(machine["gpu"]),
            load=machine["load"],
        ),
    )


def _limited(prepared: Prepared, limited: Settings, model: Model) -> Sequence[Tile]:
    """The tiles that the run will screen."""
    from tilers import plan_tiles

    plan = prepared.plan
    return plan_tiles(
        prepared.slide, prepared.foreground, tile_px=plan.tile_px, mpp=plan.mpp, overlap=plan.overlap,
        limit=limited.limit, leave_out=plan.left_out, allow_upsample=plan.upsampled,
    ).tiles  # fmt: skip


def _read(prepared: Prepared, settings: Settings, count: int, progress: Progress) -> tuple[float, float]:
    """Seconds in which a stream reads ``count`` tiles, and tiles/s that the reader alone gives. In turns, best of each.

    The reader alone: the same ground without overlap, one read a tile, one thread a core; nothing is resampled and
    nothing kept. Overlapping tiles share their pixels, so a plan with overlap can be read that much faster.
    """
    from tilers import TileStream, plan_tiles
    from tilers.thread_pool import in_order

    slide, plan = prepared.slide, prepared.plan
    cores = os.cpu_count() or 1
    bare = plan_tiles(
        slide, prepared.foreground, tile_px=plan.tile_px, mpp=plan.mpp, overlap=0.0, leave_out=plan.left_out,
        allow_upsample=plan.upsampled,
    ).tiles[:count]  # fmt: skip

    def only_read(own: Slide, tile: Tile) -> int:
        return int(own.read_region(tile.x, tile.y, tile.level, *tile.read_px).shape[0])

    def lost(tile: Tile, error: Exception) -> int:
        return 0

    streamed, alone = [], []
    for number in range(ROUNDS):
        progress("reading", number, ROUNDS)
        began = time.perf_counter()
        with TileStream(slide, plan, workers=settings.workers, tiles=plan.tiles[:count]) as stream:
            for _ in stream:
                pass
        streamed.append(time.perf_counter() - began)
        # a piece is decoded once, as in the stream, and not found again in the second round
        slide.expect([(t.x, t.y, t.level, *t.read_px)] for t in bare)
        began = time.perf_counter()
        for _ in in_order(slide, only_read, bare, broken=lost, workers=cores, ahead=2 * cores):
            pass
        alone.append(time.perf_counter() - began)
    progress("reading", ROUNDS, ROUNDS)
    return min(streamed), len(bare) / min(alone) / (1 - plan.overlap) ** 2


def _pictures(prepared: Prepared, tiles: Sequence[Tile]) -> list[Image.Image]:
    from tilers import TileStream
    from wsi_chat.analysis.cascade import picture_of

    with TileStream(prepared.slide, prepared.plan, tiles=tiles) as stream:
        pictures = [picture_of(patch) for patch in stream if patch.pixels is not None]
    if not pictures:
        raise SettingError(
            f"None of {len(tiles)} tiles of {prepared.path.name} can be read.", hint="Try another slide."
        )
    return pictures


def _ask(model: Model, asks: Sequence[Ask], pictures: Sequence[Image.Image]) -> float:
    """Seconds in which the engine answers every question about every picture, all built beforehand."""
    dialect, engine = model.dialect, model.engine
    queries: list[Query] = [
        dialect.build(ask, picture, tile_id="bench", model_id=engine.model_id, decoding={})[0]
        for picture in pictures
        for ask in asks
    ]
    began = time.perf_counter()
    answers = list(engine.answer(queries))
    seconds = time.perf_counter() - began
    failed = [answer.error for answer in answers if answer.status == "failed"]
    if failed:
        raise EngineError(
            f"{len(failed)} of {len(queries)} questions failed, the first: {failed[0]}", hint="Try wsi-chat doctor."
        )
    return seconds


def _machine(settings: Settings) -> dict[str, Any]:
    """What the figures hold for: processor, cores, graphics card (None where there is none or no torch)."""
    gpu = None
    try:
        import torch

        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_name(0)
    except ImportError:
        pass
    return {
        "system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count() or 1, "gpu": gpu,
        "python": platform.python_version(), "workers": settings.workers,
    }  # fmt: skip
