"""The stages of one slide as records: Prepared -> Screened -> Detailed -> Judged, each made from the one before.

A record is frozen and holds the one before it, so that whatever comes later (a rule that looks at control tiles, a
document that shows the plan) finds everything without its being handed on. What must be open or counted while
questions are asked is in `SlideRun`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.box_precision import read_box_precision
from wsi_chat.analysis.feature_keeper import FeatureKeeper, open_keeper
from wsi_chat.analysis.fields import in_fields
from wsi_chat.analysis.moved import take_over_answers
from wsi_chat.analysis.narrator import pictures_of, write_narrative
from wsi_chat.analysis.preparation import Prepared
from wsi_chat.analysis.provenance import (
    count_funnel,
    engine_notes,
    mechanisms_on,
    provenance_of,
    run_notes,
    specimen_code,
    specimen_name,
)
from wsi_chat.analysis.scope import answering_folder, on_slide, read_scope
from wsi_chat.analysis.slide_score import SlideScore, conditions_of
from wsi_chat.analysis.supplied import what_was_supplied
from wsi_chat.atomic import sweep
from wsi_chat.engines.asker import Asker
from wsi_chat.journal import Journal
from wsi_chat.progress import Progress
from wsi_chat.schema import (
    ASSUMED_SCALE,
    Controls,
    Provenance,
    Remark,
    Report,
    Scope,
    Specimen,
    TileVerdict,
    Timings,
)

if TYPE_CHECKING:
    from aggregators import TileSample
    from aggregators.features import ImageFeatures
    from wsi_chat.analysis.earlier_documents import EarlierDocuments
    from wsi_chat.analysis.run_folder import SlideFolder
    from wsi_chat.engines.model import Model
    from wsi_chat.settings import Settings

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Clock:
    """Seconds spent in each stage, and when the run began."""

    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str, *, at: float | None = None) -> None:
        """Add the time since the last lap to a stage: until now, or until ``at`` (`time.perf_counter`)."""
        now = time.perf_counter() if at is None else max(at, self._last)
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now


# ---------------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True)
class SlideRun:
    """What is there from a prepared slide's first question to its report: the folder, who is asked, how it is scored.

    ``asker`` is None where the plan has no tile, so that there is nothing to ask; ``keeper`` where no image features
    are kept.
    """

    prepared: Prepared
    folder: SlideFolder
    settings: Settings
    model: Model
    journal: Journal
    score: SlideScore
    provenance: Provenance
    clock: Clock
    progress: Progress
    precision: Mapping[str, float] | float | None
    asker: Asker | None
    keeper: FeatureKeeper | None
    scope: Scope | None = None

    @property
    def image_features(self) -> ImageFeatures | None:
        """The tiles' image features, for a score that reads them."""
        return None if self.keeper is None or self.score.applied is None else self.keeper.read()


@dataclass(frozen=True, slots=True)
class Screened:
    """A slide of which every planned tile was asked the screening question. ``tiles``: tile index -> verdict."""

    run: SlideRun
    tiles: Mapping[int, TileVerdict]


@dataclass(frozen=True, slots=True)
class Detailed:
    """A screened slide whose chosen tiles were looked at closely, and normal cells counted in a random sample.

    ``tiles`` holds every planned tile; ``cells`` is None where no cells were counted, ``controls`` where no control
    question was asked.
    """

    screened: Screened
    tiles: Mapping[int, TileVerdict]
    cells: TileSample | None = None
    controls: Controls | None = None

    @property
    def run(self) -> SlideRun:
        return self.screened.run

    @property
    def tile_verdicts(self) -> list[TileVerdict]:
        """In plan order."""
        return [self.tiles[index] for index in sorted(self.tiles)]


@dataclass(frozen=True, slots=True)
class Judged:
    """A slide with its verdict, as the report that its documents are made from."""

    detailed: Detailed
    report: Report

    @property
    def run(self) -> SlideRun:
        return self.detailed.run

    @property
    def tile_verdicts(self) -> list[TileVerdict]:
        """In plan order."""
        return self.detailed.tile_verdicts


@contextmanager
def ready_to_ask(
    prepared: Prepared,
    folder: SlideFolder,
    settings: Settings,
    model: Model,
    score: SlideScore,
    *,
    earlier: EarlierDocuments,
    clock: Clock,
    progress: Progress,
) -> Iterator[SlideRun]:
    """Open the slide's journal and load the model, and then set aside documents of a run that differs from this one.

    Raises:
        OutputError: the folder or the journal cannot be written.
        SettingError: a setting does not go with the slide's reporting system, or the score's conditions are not met.
        EngineError: the model cannot be loaded.
    """
    slide, system, plan = prepared.slide, prepared.system, prepared.plan
    precision = read_box_precision(settings.box_precision, known=[label.code for label in system.labels])
    folder.open()
    sweep(folder.path)
    earlier.expect("slide", {"fingerprint": slide.fingerprint, "mpp": slide.mpp})
    clock.lap("plan")
    clock.seconds["plan"] = round(prepared.seconds, 3)  # also where it was spent beside the slide before
    log.info("%s: %d of %d tiles to screen", slide.name, len(plan.tiles), plan.grid)
    with ExitStack() as stack:
        if not folder.journal_path.exists():
            take_over_answers(folder, slide.fingerprint)
        model.expect(len(plan.tiles))
        if settings.overwrite and plan.tiles:
            _ = model.engine  # nothing is forgotten for a model that cannot be loaded
        journal = stack.enter_context(Journal(folder.journal_path, overwrite=settings.overwrite))
        provenance = provenance_of(plan, settings, model, prepared.foreground, system)
        if plan.tiles:
            score = score.under(conditions_of(provenance, system=system.code, system_version=str(system.version)))
            provenance = score.described_in(provenance)
        earlier.expect("provenance", provenance.model_dump(mode="json", exclude={"versions", "generated_tokens"}))
        asker, keeper = None, None
        if plan.tiles:
            asker = Asker(model.engine, model.dialect, journal, {"greedy": True, "seed": settings.seed})
        earlier.make_way()
        if asker is not None:
            if score.keeps_features:
                keeper = open_keeper(
                    folder, model.engine, model.dialect, slide=slide, plan=plan, provenance=provenance, score=score
                )
                stack.callback(keeper.close)
                asker.keeper = keeper
            clock.lap("load model")
        yield SlideRun(
            prepared, folder, settings, model, journal, score, provenance, clock, progress, precision, asker, keeper,
            read_scope(settings, answering_folder(settings, model)) if plan.tiles else None,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- judge


def judge(detailed: Detailed, *, notes: tuple[Remark, ...] = ()) -> Judged:
    """Draw the slide's verdict from its tiles, and put it into words.

    Args:
        notes: for the reader, besides those that the slide, its plan, its model and its score give.
    """
    from aggregators import aggregate
    from aggregators.rules import Circumstances
    from reports import narrate

    run = detailed.run
    prepared, settings, asker = run.prepared, run.settings, run.asker
    tiles = detailed.tile_verdicts
    funnel = count_funnel(prepared.plan, tiles, detailed.cells)
    supplied = what_was_supplied(settings, prepared.system)
    scope = on_slide(run.scope, prepared.system, prepared.slide.properties, given=settings.specimen is not None)
    verdict = aggregate(
        tiles,
        system=prepared.system,
        funnel=funnel,
        bounds=prepared.bounds,
        pool=settings.pool,
        k=settings.pool_k,
        threshold=settings.threshold,
        coverage_floor=settings.coverage_floor,
        sample=detailed.cells,
        supplied=supplied,
        precision=run.precision,
        applied=run.score.applied,
        image=run.image_features,
        circumstances=Circumstances(
            controls=detailed.controls,
            scope=scope,
            other_settings=run.score.not_applied,
            dark=prepared.foreground.kind == "dark",
            mpp=prepared.slide.mpp,
            mpp_stated=prepared.slide.mpp_stated,
            scale_assumed=prepared.slide.mpp_source == ASSUMED_SCALE,
        ),
    )
    verdict = in_fields(verdict, prepared.slide.fields)
    run.clock.lap("aggregate")
    generated = {} if asker is None else {"generated_tokens": asker.generated_tokens}
    report = Report(
        slide=prepared.slide.record(run.folder.id),
        specimen=_specimen(run, preparation=supplied.preparation or "", age=supplied.age),
        verdict=verdict,
        language=settings.language,
        ancillary=read_ancillary(settings.ancillary),
        funnel=funnel,
        scope=scope,
        controls=detailed.controls,
        notes=(
            *run_notes(prepared.slide, prepared.foreground, prepared.plan, settings),
            *(mechanisms_on(settings, asker) if asker else ()),
            *engine_notes(settings, asker),
            *((run.score.not_applied,) if run.score.not_applied else ()),
            *(() if settings.controls or asker is None else (Remark("controls.off"),)),
            *notes,
        ),
        provenance=run.provenance.model_copy(update=generated),
        timings=_timings(run, screened=funnel.screened),
    )
    report = report.model_copy(update={"narrative": narrate(report, tiles, prepared.system)})
    return Judged(detailed, report)


def _specimen(run: SlideRun, *, preparation: str, age: int | None) -> Specimen:
    system, given = run.prepared.system, run.settings.specimen
    return Specimen(
        given=given is not None and system.kind != "generic",
        code=specimen_code(given, system),
        name=specimen_name(given, system),
        system=system.code,
        system_version=str(system.version),
        sources=tuple(system.sources),
        preparation=preparation,
        age=age,
    )


def _timings(run: SlideRun, *, screened: int) -> Timings:
    seconds = run.clock.seconds.get("screen", 0.0)
    return Timings(
        started=run.clock.started,
        seconds=dict(run.clock.seconds),
        tiles_per_second=round(screened / seconds, 3) if seconds else None,
        answers_reused=run.asker.answers_reused if run.asker else 0,
        answers_new=run.asker.answers_new if run.asker else 0,
    )


def narrate_by_model(judged: Judged) -> Judged:
    """The same verdict in the model's own words, as far as they pass the check (``--narrative model``)."""

    run, tiles = judged.run, judged.tile_verdicts
    dialect = run.model.dialect
    mute = not dialect.narrates or not tiles
    pictures = [] if mute else pictures_of(judged.report, run.prepared.slide, tiles, px=dialect.tile_px)
    report = write_narrative(
        judged.report,
        tiles,
        system=run.prepared.system,
        engine=None if mute else run.model.engine,
        dialect=dialect,
        journal=run.journal,
        pictures=pictures,
        decoding={"greedy": True, "seed": run.settings.seed},
    )
    run.clock.lap("narrative")
    return Judged(judged.detailed, report)
