"""analyze(): the one path from a slide file to a verdict and its documents.

Nothing already computed is lost: answers are journalled as they come, and a rerun of the same command resumes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.box_precision import read_box_precision
from wsi_chat.analysis.cascade import choose, detail, screen
from wsi_chat.analysis.cell_sample import sample_cells, what_was_supplied
from wsi_chat.analysis.documents import missing_font, write_documents
from wsi_chat.analysis.feature_keeper import FeatureKeeper, open_keeper, wants_features
from wsi_chat.analysis.mechanisms import reader_of, screen_with_views, second_look
from wsi_chat.analysis.provenance import (
    config_of,
    count_funnel,
    engine_notes,
    mechanisms_on,
    provenance_of,
    run_notes,
    specimen_code,
    specimen_name,
)
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import (
    JOURNAL,
    EarlierDocuments,
    open_folder,
    row_of,
    row_of_failure,
    row_of_waiting,
    slide_id,
    write_run,
    write_summary,
)
from wsi_chat.analysis.slide_score import apply_or_pass, conditions_of, load_for, with_aggregator
from wsi_chat.engines.asker import Asker
from wsi_chat.engines.model import Model
from wsi_chat.errors import SlideNotFound, WsiChatError
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import (
    Box,
    Provenance,
    Report,
    Specimen,
    TileVerdict,
    Timings,
)
from wsi_chat.settings import Settings, check_names, resolve

if TYPE_CHECKING:
    from aggregators import TileSample
    from aggregators.features import ImageFeatures
    from aggregators.fitted import Applied
    from tilers import Foreground, Patch, Slide, TilePlan, TileStream
    from wsi_chat.dialects import Dialect
    from wsi_chat.engines import Engine
    from wsi_chat.journal import Journal
    from wsi_chat.terminology import System

log = logging.getLogger(__name__)

DEFAULT_OUT = "wsi-chat-out"


def analyze(
    slide: str | Path,
    *,
    out: str | Path = DEFAULT_OUT,
    engine: Engine | str | None = None,
    config: str | Path | None = None,
    progress: Progress = no_progress,
    **settings: Any,
) -> SlideResult:
    """Analyze one slide: tile, screen, detail, aggregate, report.

    Args:
        slide: the slide file (or OME-Zarr folder).
        out: the run folder; results go to ``out/<slide id>/``.
        engine: an engine that is already loaded; a name (``transformers``) is the setting; None loads the one that the
            settings name.
        config: a YAML file of settings.
        progress: called as ``progress(stage, done, total)``.
        **settings: any field of :class:`wsi_chat.settings.Settings`, e.g. ``specimen="cervix"``.

    Returns:
        The verdict with its report, findings and folder; draws itself in a notebook.

    Raises:
        WsiChatError: see :mod:`wsi_chat.errors`; the message names the file or setting and the way out.
    """
    if isinstance(engine, str):
        settings["engine"], engine = engine, None
    check_names(settings, "analyze()")
    effective, origin = resolve(settings, config=Path(config) if config else None)
    model = Model(effective, given=engine)
    folder = open_folder(Path(out))
    write_summary(folder, [row_of_waiting(Path(slide))])
    try:
        result = analyze_slide(Path(slide), folder, effective, model, progress=progress)
    except WsiChatError as error:
        write_summary(folder, [row_of_failure(Path(slide), error)])
        raise
    finally:
        model.close()
    write_summary(folder, [row_of(result.report)])
    write_run(
        folder,
        config=effective.model_dump(),
        origin=origin,
        slides={result.report.slide.id: str(Path(slide).resolve())},
    )
    return result


@dataclass(slots=True)
class Clock:
    """Seconds spent in each stage, and when the run began."""

    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now


@dataclass(slots=True)
class PreparedSlide:
    """A slide that is open and planned; with ``patches``, its first tiles are being read. Close it when done.

    It holds one open file, a plan, and at most what one `TileStream` reads ahead (its ``max_bytes``).
    """

    path: Path
    slide: Slide
    system: System
    foreground: Foreground
    plan: TilePlan
    seconds: float
    stream: TileStream | None = None
    patches: Iterator[Patch] | None = None

    def close(self) -> None:
        """Stop reading and close the file; calling it twice is harmless."""
        if self.stream is not None:
            self.stream.close()
        self.slide.close()


def prepare_slide(path: Path, settings: Settings, dialect: Dialect, *, read_ahead: bool = False) -> PreparedSlide:
    """Open a slide and plan its tiles: everything that comes before the first question. Needs no engine.

    Args:
        read_ahead: also begin to read tiles, on threads of their own, so that the first questions need not wait.

    Raises:
        WsiChatError: the slide or a setting cannot be used.
    """
    from tilers import TileStream, find_foreground, open_slide, plan_tiles
    from wsi_chat.terminology import load_system

    begun = time.perf_counter()
    with ExitStack() as stack:
        slide = stack.enter_context(open_slide(path, mpp=settings.mpp, reader=settings.reader))
        slide.require_mpp()
        system = load_system(settings.specimen)
        what_was_supplied(settings, system)  # a preparation that the system does not know is said before any question
        tile_px = settings.tile_px or dialect.tile_px
        tile_mpp = settings.tile_mpp or dialect.mpp_for(system)
        foreground = find_foreground(slide, mask=settings.mask)
        plan = plan_tiles(
            slide, foreground, tile_px=tile_px, mpp=tile_mpp, overlap=settings.overlap, limit=settings.limit
        )
        ready = PreparedSlide(path, slide, system, foreground, plan, 0.0)
        if read_ahead and plan.tiles:
            ready.stream = stack.enter_context(TileStream(slide, plan, workers=settings.workers))
            ready.patches = _begun(iter(ready.stream))
        ready.seconds = time.perf_counter() - begun
        stack.pop_all()
    return ready


def _begun(patches: Iterator[Patch]) -> Iterator[Patch]:
    """The same patches, the first one taken already: that is what sets a stream's threads to work."""
    return chain(list(islice(patches, 1)), patches)


def analyze_slide(
    path: Path,
    out: Path,
    settings: Settings,
    model: Model,
    *,
    progress: Progress = no_progress,
    prepared: Callable[[], PreparedSlide] | None = None,
) -> SlideResult:
    """One slide of a run whose folder, settings and model are already there. See :func:`analyze`.

    Args:
        prepared: gives the slide as `prepare_slide` left it (or raises what that raised); None prepares it now.
    """
    from aggregators.pooling import find_pool
    from tilers import TileStream
    from wsi_chat.journal import Journal

    clock = Clock()
    find_pool(settings.pool)  # a misspelt name is said now, not after the slide has been screened
    read_ancillary(settings.ancillary)
    no_pdf = missing_font(settings)
    fitted = load_for(settings)
    with_features = wants_features(settings, fitted, model)
    dialect = model.dialect
    earlier = EarlierDocuments(out / slide_id(path))
    earlier.expect("provenance", {"config": config_of(settings)})
    with ExitStack() as stack:
        try:
            ready = prepared() if prepared else prepare_slide(path, settings, dialect)
        except SlideNotFound:
            raise  # a disk that is not connected says nothing against what was found on it
        except Exception:
            earlier.set_aside()
            raise
        stack.callback(ready.close)
        slide, system, foreground, plan = ready.slide, ready.system, ready.foreground, ready.plan
        precision = read_box_precision(settings.box_precision, known=[label.code for label in system.labels])
        folder = open_folder(out / slide_id(path))
        earlier.expect("slide", {"fingerprint": slide.fingerprint, "mpp": slide.mpp})
        clock.lap("plan")
        clock.seconds["plan"] = round(ready.seconds, 3)  # also where it was spent beside the slide before
        log.info("%s: %d of %d tiles to screen", path.name, len(plan.tiles), plan.grid)

        journal = stack.enter_context(Journal(folder / JOURNAL, overwrite=settings.overwrite))
        verdicts: dict[int, TileVerdict] = {}
        asker: Asker | None = None
        keeper: FeatureKeeper | None = None
        sample: TileSample | None = None
        provenance = provenance_of(plan, settings, model, foreground, system)
        applied: Applied | None = None
        passed_over = None
        if fitted is not None and plan.tiles:
            conditions = conditions_of(provenance, system=system.code, system_version=str(system.version))
            applied, passed_over = apply_or_pass(fitted, settings, conditions)
            provenance = with_aggregator(provenance, applied) if applied else provenance
        earlier.expect("provenance", provenance.model_dump(mode="json", exclude={"versions", "generated_tokens"}))
        if plan.tiles:
            decoding = {"greedy": True, "seed": settings.seed}
            asker = Asker(model.engine, dialect, journal, decoding)
            if with_features and (settings.features or applied is not None):
                keeper = open_keeper(
                    folder, model.engine, dialect, slide=slide, plan=plan, provenance=provenance,
                    overwrite=settings.overwrite, applied=applied,
                )  # fmt: skip
                stack.callback(keeper.close)
                asker.keeper = keeper
            clock.lap("load model")
            stream = ready.stream or stack.enter_context(TileStream(slide, plan, workers=settings.workers))
            patches = ready.patches if ready.patches is not None else stream
            if settings.views == settings.contrast == "none":
                verdicts = screen(patches, asker, system, total=len(plan.tiles), progress=progress)
            else:
                verdicts = screen_with_views(
                    patches, asker, system, reader_of(slide), total=len(plan.tiles), views=settings.views,
                    contrast=settings.contrast, progress=progress,
                )  # fmt: skip
            stream.close()
            if keeper is not None:
                keeper.finish()
            clock.lap("screen")
            chosen = choose(verdicts, top_k=settings.top_k, exhaustive=settings.exhaustive)
            if chosen:
                bounds = Box(0, 0, *slide.size)
                with TileStream(slide, plan, workers=settings.workers, tiles=chosen) as chosen_patches:
                    verdicts |= detail(
                        chosen_patches, asker, system, verdicts, total=len(chosen), bounds=bounds,
                        age=settings.age, progress=progress,
                    )  # fmt: skip
                if settings.zoom > 1:
                    again = {tile.index: verdicts[tile.index] for tile in chosen}
                    verdicts |= second_look(
                        again, asker, reader_of(slide), factor=settings.zoom, bounds=bounds, progress=progress
                    )
            clock.lap("detail")
            sample = sample_cells(slide, plan, asker, system, settings, progress=progress)
            clock.lap("adequacy")

        tile_verdicts = [verdicts[index] for index in sorted(verdicts)]
        report = _judge(
            slide, path, plan, foreground, tile_verdicts, system, settings, provenance, asker, clock, sample, applied,
            precision, None if keeper is None or applied is None else keeper.read(),
        )  # fmt: skip
        more = tuple(note for note in (passed_over, no_pdf) if note)
        report = report.model_copy(update={"notes": (*report.notes, *more)}) if more else report
        if settings.narrative == "model":
            report = _written_by_model(report, tile_verdicts, slide, system, model, journal, settings)
            clock.lap("narrative")
        unwritten = write_documents(
            report,
            tile_verdicts,
            slide=slide,
            plan=plan,
            foreground=foreground,
            system=system,
            folder=folder,
            settings=settings,
            progress=progress,
        )
        earlier.forget()
        clock.lap("documents")
    return SlideResult(report=report, folder=folder, slide_path=path, unwritten=unwritten)


def _judge(
    slide: Slide,
    path: Path,
    plan: TilePlan,
    foreground: Foreground,
    tile_verdicts: list[TileVerdict],
    system: System,
    settings: Settings,
    provenance: Provenance,
    asker: Asker | None,
    clock: Clock,
    sample: TileSample | None,
    applied: Applied | None,
    precision: Mapping[str, float] | float | None,
    image: ImageFeatures | None = None,
) -> Report:
    """Aggregate the tile verdicts and say it in words: everything of the report but the documents."""
    from aggregators import aggregate
    from reports import narrate

    funnel = count_funnel(plan, tile_verdicts, sample)
    supplied = what_was_supplied(settings, system)
    verdict = aggregate(
        tile_verdicts,
        system=system,
        funnel=funnel,
        bounds=Box(0, 0, *slide.size),
        pool=settings.pool,
        k=settings.pool_k,
        threshold=settings.threshold,
        coverage_floor=settings.coverage_floor,
        sample=sample,
        supplied=supplied,
        precision=precision,
        applied=applied,
        image=image,
    )
    if asker is not None:
        provenance = provenance.model_copy(update={"generated_tokens": asker.generated_tokens})
    clock.lap("aggregate")
    asked_seconds = clock.seconds.get("screen", 0.0)
    report = Report(
        slide=slide.record(slide_id(path)),
        specimen=Specimen(
            given=settings.specimen is not None and system.kind != "generic",
            code=specimen_code(settings.specimen, system),
            name=specimen_name(settings.specimen, system),
            system=system.code,
            system_version=str(system.version),
            sources=tuple(system.sources),
            preparation=supplied.preparation or "",
            age=supplied.age,
        ),
        verdict=verdict,
        language=settings.language,
        ancillary=read_ancillary(settings.ancillary),
        funnel=funnel,
        notes=(
            *run_notes(slide, foreground, plan, settings),
            *(mechanisms_on(settings, asker) if asker else ()),
            *engine_notes(settings, asker),
        ),
        provenance=provenance,
        timings=Timings(
            started=clock.started,
            seconds=dict(clock.seconds),
            tiles_per_second=round(funnel.screened / asked_seconds, 3) if asked_seconds else None,
            answers_reused=asker.answers_reused if asker else 0,
            answers_new=asker.answers_new if asker else 0,
        ),
    )
    return report.model_copy(update={"narrative": narrate(report, tile_verdicts, system)})


def _written_by_model(
    report: Report,
    tile_verdicts: list[TileVerdict],
    slide: Slide,
    system: System,
    model: Model,
    journal: Journal,
    settings: Settings,
) -> Report:
    """``--narrative model``: the model's own words, as far as they pass the check."""
    from wsi_chat.analysis.narrator import pictures_of, write_narrative

    mute = not model.dialect.narrates or not tile_verdicts
    pictures = [] if mute else pictures_of(report, slide, tile_verdicts, px=model.dialect.tile_px)
    return write_narrative(
        report,
        tile_verdicts,
        system,
        engine=None if mute else model.engine,
        dialect=model.dialect,
        journal=journal,
        pictures=pictures,
        decoding={"greedy": True, "seed": settings.seed},
    )
