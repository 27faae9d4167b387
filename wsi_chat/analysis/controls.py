"""Control questions: a few tiles whose answer is known, and a few of the slide's own with the options swapped.

They are asked beside the slide's own questions, at most `aggregators.controls.MOST` of them, through the journal like
any other; what they say of the model is judged in `aggregators.controls`. No answer changes a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from wsi_chat import tasks
from wsi_chat.analysis.cascade import picture_of
from wsi_chat.analysis.scope import answering_folder
from wsi_chat.dialects.reading import why_no_choice
from wsi_chat.engines.asker import Answered, Asked
from wsi_chat.errors import SettingError
from wsi_chat.names import from_home
from wsi_chat.schema import ControlAnswer, Controls, Tile, TileVerdict

if TYPE_CHECKING:
    from wsi_chat.analysis.stages import SlideRun
    from wsi_chat.engines.asker import Asker
    from wsi_chat.settings import Settings
    from wsi_chat.tasks import Ask
    from wsi_chat.terminology import System

PREFIX = "control/"
"""Start of the names under which control questions are asked: ``control/glass/glass``, and for a tile that is asked
again ``control/swapped/t000024/0.023``, with its answer in the usual order."""

FOLDER = "controls"
"""Folder inside a checkpoint with its positive controls: pictures named after the specimen, ``cervix-1.png``."""

SWAPPED = 4
"""Tiles that are asked again with the options swapped."""
POSITIVES = 4
"""Positive controls that are asked, at most."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
BLUR = 8
"""A tile is blurred by a Gaussian of this fraction of its side: no cell is left of it."""


class ControlQuestions:
    """The control questions of a slide: an `Inquiry`.

    Glass, noise and the positive controls can be asked at once; tiles of the slide's own once it is screened.
    """

    def __init__(self, run: SlideRun, asker: Asker, screened: Callable[[], Mapping[int, TileVerdict] | None]) -> None:
        """Args:
            screened: gives the screened tiles; None before every one of them was answered.

        Raises:
            SettingError: a positive control cannot be used.
        """
        system = run.prepared.system
        self._run = run
        self._dialect = asker.dialect
        self._positive = system.screen.positive
        self._question = tasks.screen(system)
        self._screened = screened
        self._answers: list[ControlAnswer] = []
        self._known = _known_beforehand(
            run,
            self._question,
            positive_controls(run.settings, system, folder=answering_folder(run.settings, run.model)),
        )
        self._own: Iterator[Asked[_Control]] | None = None

    def questions(self) -> Iterator[Asked[_Control]]:
        yield from self._known
        tiles = self._screened()
        if tiles is not None:
            if self._own is None:
                self._own = _of_the_slide(self._run, self._question, tiles)
            yield from self._own

    def take(self, given: Answered[_Control]) -> None:
        chances = self._dialect.read_choice(given.answer, given.ask)
        self._answers.append(_answered(given, None if chances is None else chances[self._positive]))

    def result(self, screened: Mapping[int, TileVerdict]) -> Controls:
        """What the answers say of the model, beside the screened tiles."""
        from aggregators.controls import as_expected, judge_controls

        answers = [as_expected(answer) for answer in _with_plain(self._answers)]
        answers.sort(key=lambda answer: (ORDER.index(answer.kind), answer.name))
        return judge_controls(answers, [v.p_screen for v in screened.values() if v.p_screen is not None])


ORDER = ("glass", "blurred", "noise", "positive", "swapped")


@dataclass(frozen=True, slots=True)
class _Control:
    """What one control question expects; ``plain``: a swapped tile in the usual order, to compare with."""

    answer: ControlAnswer
    plain: bool = False


def positive_controls(settings: Settings, system: System, *, folder: Path | None = None) -> list[Path]:
    """The pictures that the model must call positive: the user's, else those of the checkpoint for the specimen.

    Raises:
        SettingError: the user's folder is none, or holds no picture.
    """
    if settings.positive_controls is not None:
        own = from_home(settings.positive_controls)
        found = sorted(path for path in own.glob("*") if path.suffix.lower() in SUFFIXES) if own.is_dir() else []
        if not found:
            why = "no picture in it" if own.is_dir() else "no folder"
            raise SettingError(
                f"positive_controls {settings.positive_controls}: {why}.",
                hint="Name a folder of PNG, JPEG or TIFF pictures, each as large as the model's tiles.",
            )
        return found[:POSITIVES]
    if folder is None or not (folder / FOLDER).is_dir():
        return []
    names = {name.casefold() for name in system.specimens}
    found = sorted(path for path in (folder / FOLDER).glob("*") if path.suffix.lower() in SUFFIXES)
    return [path for path in found if path.stem.rpartition("-")[0].casefold() in names][:POSITIVES]


def _control(
    kind: str, name: str, image: Image.Image, expected: str, ask: Ask, *, plain: bool = False, **more: object
) -> Asked[_Control]:
    answer = ControlAnswer.model_validate({"kind": kind, "name": name, "expected": expected, **more})
    before = "" if answer.p_before is None else f"/{answer.p_before:.6f}"
    return Asked(ask, image, _Control(answer, plain), name=f"{PREFIX}{kind}/{name}{before}")


def _known_beforehand(run: SlideRun, question: Ask, positives: Sequence[Path]) -> Iterator[Asked[_Control]]:
    """The controls that are none of the slide's tiles."""
    side = run.prepared.plan.tile_px
    glass = run.prepared.foreground.background_rgb
    noise = np.random.default_rng(run.settings.seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    yield _control("glass", "glass", Image.new("RGB", (side, side), glass), "negative", question)
    yield _control("noise", "noise", Image.fromarray(noise), "negative", question)
    for path in positives:
        yield _control("positive", path.name, _read(path), "positive", question)


def _of_the_slide(run: SlideRun, question: Ask, screened: Mapping[int, TileVerdict]) -> Iterator[Asked[_Control]]:
    """Tiles of the slide that are asked again: blurred, and with the options swapped."""
    from tilers import TileStream

    side = run.prepared.plan.tile_px
    swapped = replace(question, options=question.options[::-1])
    again, lowest = _tiles(screened)
    straight = run.settings.views == run.settings.contrast == "none"
    known = {tile.index: screened[tile.index].p_screen for tile in again}
    if not straight:
        again = again[: SWAPPED // 2]
    chosen = list({tile.index: tile for tile in (*again, *lowest)}.values())
    if not chosen:
        return
    with TileStream(run.prepared.slide, run.prepared.plan, workers=run.settings.workers, tiles=chosen) as patches:
        for patch in patches:
            if patch.pixels is None:
                continue
            image, name = picture_of(patch), patch.tile.id
            if any(tile.index == patch.tile.index for tile in lowest):
                blurred = image.filter(ImageFilter.GaussianBlur(side / BLUR))
                yield _control("blurred", name, blurred, "negative", question)
            if any(tile.index == patch.tile.index for tile in again):
                before = known[patch.tile.index] if straight else None
                if not straight:
                    yield _control("swapped", name, image, "same", question, plain=True)
                yield _control("swapped", name, image, "same", swapped, p_before=before)


def _tiles(screened: Mapping[int, TileVerdict]) -> tuple[list[Tile], list[Tile]]:
    """The tiles to ask again, spread over the ranks from the highest to the lowest, and the lowest, to be blurred."""
    rows = [verdict for verdict in screened.values() if verdict.p_screen is not None]
    ranked = [row.tile for row in sorted(rows, key=lambda row: (-(row.p_screen or 0.0), row.tile.index))]
    if not ranked:
        return [], []
    places = sorted({round(place * (len(ranked) - 1) / (SWAPPED - 1)) for place in range(SWAPPED)})
    return [ranked[place] for place in places], [ranked[-1]]


def _answered(given: Answered[_Control], p: float | None) -> ControlAnswer:
    """The control with its answer; of the usual order, the probability stands in ``p_before``."""
    control = given.context
    if control.plain:
        return control.answer.model_copy(update={"p_before": p})
    error = why_no_choice(given.answer) if p is None else ""
    return control.answer.model_copy(update={"p": None if p is None else min(1.0, max(0.0, p)), "error": error})


def _with_plain(answers: Sequence[ControlAnswer]) -> list[ControlAnswer]:
    """Swapped answers with that in the usual order, where it was asked beside them."""
    plain = {a.name: a.p_before for a in answers if a.kind == "swapped" and a.p is None and not a.error}
    merged = []
    for answer in answers:
        if answer.kind == "swapped" and answer.p_before is None and answer.p is not None:
            answer = answer.model_copy(update={"p_before": plain.get(answer.name)})
        elif answer.kind == "swapped" and answer.p is None and not answer.error:
            continue
        merged.append(answer)
    return merged


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise SettingError(
            f"The positive control {path} cannot be read: {error}.", hint="Name a folder of readable pictures."
        ) from error


__all__ = ["ControlQuestions", "positive_controls"]
