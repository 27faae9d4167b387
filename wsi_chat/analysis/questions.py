"""All questions about a slide's tiles as one stream: screening, a closer look, counts, controls.

A question is asked as soon as nothing more needs to be known for it. A tile that will be looked at closely whatever
the others say (every one of an exhaustive run, every positive one where cells are counted) is asked about while the
next ones are screened, from the picture at hand; the cell sample and the controls that are no tiles of the slide
fill the time until the last screening answers are there. Which questions are asked does not depend on that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from wsi_chat.analysis.cascade import POSITIVE, Detailing, Screening, choose, on_one_scale
from wsi_chat.analysis.cell_sample import CellCounting, draw_sample, tile_sample
from wsi_chat.analysis.controls import ControlQuestions
from wsi_chat.analysis.fields import within_fields
from wsi_chat.analysis.inquiry import Inquiry, ask_all
from wsi_chat.analysis.mechanisms import ViewedScreening, reader_of, second_look
from wsi_chat.analysis.stages import Detailed, Screened, SlideRun

if TYPE_CHECKING:
    from PIL import Image

    from tilers import Patch
    from wsi_chat.engines.asker import Asker
    from wsi_chat.schema import Tile, TileVerdict


def ask_about_tiles(run: SlideRun) -> Detailed:
    """Screen every planned tile, look closely at those that scored highest, count normal cells in a random sample of
    the plan, and ask the control questions.

    Raises:
        EngineError: the engine died; what was answered is kept.
        SettingError: a positive control cannot be read.
    """
    return Detailed(Screened(run, {}), {}) if run.asker is None else _Questions(run, run.asker).ask()


class _Questions:
    """The inquiries about one slide, and what each must know of the others."""

    def __init__(self, run: SlideRun, asker: Asker) -> None:
        self._run = run
        self._asker = asker
        self._counting = not run.prepared.system.screen.about_abnormality
        self._taken: set[int] = set()  # tiles that are looked at closely from the picture they were screened by
        self._done: Mapping[int, TileVerdict] | None = None
        self._screening = self._screened_by()
        self._detailing = Detailing(
            asker,
            run.prepared.system,
            self._screening.verdicts,
            bounds=run.prepared.bounds,
            patches=self._chosen,
            age=run.settings.age,
            progress=run.progress,
        )

    def ask(self) -> Detailed:
        run, prepared, settings = self._run, self._run.prepared, self._run.settings
        drawn = draw_sample(prepared.plan, self._asker, prepared.system, settings)
        counting = CellCounting(
            self._read(drawn) if drawn else (), self._asker, prepared.system, total=len(drawn), bounds=prepared.bounds,
            progress=run.progress,
        )  # fmt: skip
        controls = ControlQuestions(run, self._asker, self._when_screened) if settings.controls else None
        inquiries: dict[str, Inquiry] = {"detail": self._detailing, "screen": self._screening, "adequacy": counting}
        if controls is not None:
            inquiries["controls"] = controls
        try:
            moments = ask_all(self._asker, *inquiries.values())
        finally:
            if prepared.stream is not None:
                prepared.stream.close()
        for moment, name in sorted(zip(moments, inquiries, strict=True)):
            run.clock.lap(name, at=moment)
        screened = self._when_screened()
        assert screened is not None  # every question was answered
        tiles = {**screened, **self._closer(self._detailing.finished)}
        tiles = within_fields(tiles, prepared.slide.fields)
        run.clock.lap("detail")
        return Detailed(
            Screened(run, screened),
            tiles,
            tile_sample(counting.counted, prepared.plan, prepared.bounds),
            None if controls is None else controls.result(screened),
        )

    def _screened_by(self) -> Screening:
        from tilers import TileStream

        run, prepared, settings = self._run, self._run.prepared, self._run.settings
        patches = prepared.patches
        if patches is None:
            patches = iter(TileStream(prepared.slide, prepared.plan, workers=settings.workers))
        total = len(prepared.plan.tiles)
        if settings.views == settings.contrast == "none":
            return Screening(
                patches, self._asker, prepared.system, total=total, sure=self._sure, progress=run.progress
            )  # fmt: skip
        return ViewedScreening(
            patches, self._asker, prepared.system, reader_of(prepared.slide), total=total, views=settings.views,
            contrast=settings.contrast, progress=run.progress,
        )  # fmt: skip

    def _sure(self, verdict: TileVerdict, image: Image.Image) -> None:
        """A tile is screened for good: it is looked at closely now where it will be in any case."""
        settings = self._run.settings
        everyone = settings.exhaustive or settings.top_k >= len(self._run.prepared.plan.tiles)
        positive = self._counting and settings.top_k > 0 and (verdict.p_screen or 0.0) >= POSITIVE
        if everyone or positive:
            self._taken.add(verdict.tile.index)
            self._detailing.look_at(verdict.tile, image)

    def _when_screened(self) -> Mapping[int, TileVerdict] | None:
        """The screened tiles once every one was answered, before that None."""
        if self._done is None and self._screening.complete:
            self._done = on_one_scale(self._screening.verdicts, self._asker)
            if self._run.keeper is not None:
                self._run.keeper.finish()
        return self._done

    def _chosen(self) -> Iterator[Patch]:
        """The chosen tiles whose pictures were not at hand, read again, once it is known which they are."""
        settings = self._run.settings
        if (screened := self._when_screened()) is None:
            return
        chosen = choose(
            screened, top_k=settings.top_k, exhaustive=settings.exhaustive,
            positive=self._counting and settings.top_k > 0,
        )  # fmt: skip
        left = [tile for tile in chosen if tile.index not in self._taken]
        self._taken.update(tile.index for tile in left)
        if left:
            self._detailing.expect(len(left))
            yield from self._read(left)

    def _read(self, tiles: list[Tile]) -> Iterator[Patch]:
        from tilers import TileStream

        prepared = self._run.prepared
        with TileStream(prepared.slide, prepared.plan, workers=self._run.settings.workers, tiles=tiles) as patches:
            yield from patches

    def _closer(self, detailed: Mapping[int, TileVerdict]) -> dict[int, TileVerdict]:
        """The detailed tiles after the second look, where there is one, in plan order."""
        tiles = {index: detailed[index] for index in sorted(detailed)}
        if self._run.settings.zoom > 1 and tiles:
            prepared = self._run.prepared
            tiles |= second_look(
                tiles, self._asker, reader_of(prepared.slide), factor=self._run.settings.zoom,
                bounds=prepared.bounds, progress=self._run.progress,
            )  # fmt: skip
        return tiles
