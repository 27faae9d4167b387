"""ask(): one question about a picture, a region or a slide, answered with boxes in level-0 pixels.

result = wsi_chat.ask("slide.svs", "Locate all hsil.", region=(4000, 2000, 6000, 4000))
result.answer, result.boxes, result.probabilities
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilers import open_slide, slide_of
from tilers.field import FieldReader
from wsi_chat.asking.answer import POINTING, Asking, wanted
from wsi_chat.asking.drawing import draw_result
from wsi_chat.asking.intent import Guess, find_label, guess
from wsi_chat.asking.result import AskResult, FieldAnswer
from wsi_chat.engines.model import Model
from wsi_chat.errors import AnswerError, SettingError, whole_text
from wsi_chat.schema import Box, Remark, TaskName
from wsi_chat.settings import plane_of, resolve
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image

    from tilers import Slide
    from wsi_chat.dialects import Dialect
    from wsi_chat.engines import Engine
    from wsi_chat.settings import Settings
    from wsi_chat.terminology import System

__all__ = ["TASKS", "AskResult", "FieldAnswer", "as_region", "ask", "ask_with", "plan_task"]

MAX_FIELDS = 16
TASKS: tuple[TaskName, ...] = ("screen", "mcq", "ground", "refer", "describe", "vqa", "region", "phrase")
"""What can be asked of a picture. CytoChat's tasks are ground, refer, describe, vqa and mcq; EndoChat's five
paradigms are phrase, vqa, region, ground and describe."""


def ask(
    picture: str | Path | Image.Image | ArrayLike,
    question: str = "",
    *,
    task: TaskName | None = None,
    region: Sequence[float] | Box | None = None,
    choices: Iterable[str] = (),
    orders: int = 1,
    max_fields: int = MAX_FIELDS,
    draw: str | Path | None = None,
    engine: Engine | str | None = None,
    **settings: Any,
) -> AskResult:
    """Ask one question about an image or a slide.

    Args:
        picture: an image or a slide file; or a picture in memory, a Pillow image or an array (height, width, 3) in RGB.
        question: in plain words; for ``mcq`` the topic, for ``ground`` the class (or ``Locate all hsil.``).
        task: one of `TASKS`; None guesses it from the question, and ``task_reason`` says why.
        region: x0, y0, x1, y1 in level-0 pixels; None means the whole picture.
        choices: options of a multiple-choice question.
        orders: average the probabilities over so many orders of the options; from 2 on the result does not depend
            on the order in which they were given.
        max_fields: at most N fields, spread evenly, where the region is larger than one; the rest is named.
        draw: write the picture with boxes and labels here (PNG).
        engine: one that is loaded already, or the name of one as a setting.
        **settings: fields of `Settings`, e.g. ``specimen="cervix"``, ``views="quadrants"``, ``contrast="blank"``,
            ``zoom=2``, ``mpp=0.25``.

    Raises:
        WsiChatError: the file, the question or a setting cannot be used.
    """
    if isinstance(engine, str):
        settings["engine"], engine = engine, None
    effective, _ = resolve(settings)
    model = Model(effective, given=engine)
    try:
        return ask_with(
            picture,
            question,
            model,
            task=task,
            region=as_region(region),
            choices=tuple(choices),
            orders=orders,
            max_fields=max_fields,
            draw=draw,
        )
    finally:
        model.close()


def as_region(region: Sequence[float | str] | Box | None, *, given_as: str = "--region") -> Box | None:
    """Four numbers as a box; ``given_as`` is how the user names one. Raises SettingError where they are no region."""
    if region is None or isinstance(region, Box):
        return region
    try:
        x0, y0, x1, y1 = (float(value) for value in region)
        box = Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    except (TypeError, ValueError) as error:
        raise SettingError(
            Remark("ask.no_numbers", name=given_as, given=_listed(region)),
            hint=Remark("ask.give_region", name=given_as),
        ) from error
    if not 0 < box.area < math.inf:
        raise SettingError(
            Remark("ask.no_area", name=given_as, given=_listed(region)), hint=Remark("ask.give_area", name=given_as)
        )
    return box


def _listed(region: object) -> str:
    """A region as a user writes it: ``2048 2048 4096 4096``."""
    return " ".join(map(str, region)) if isinstance(region, (list, tuple)) else str(region)


def ask_with(
    picture: str | Path | Image.Image | ArrayLike,
    question: str,
    model: Model,
    *,
    task: TaskName | None = None,
    region: Box | None = None,
    choices: tuple[str, ...] = (),
    orders: int = 1,
    max_fields: int = MAX_FIELDS,
    draw: str | Path | None = None,
) -> AskResult:
    """`ask` with a model whose settings are resolved and that may answer further questions."""
    if orders < 1 or max_fields < 1:
        raise SettingError(f"orders is {orders}, max_fields {max_fields}.", hint="Give at least 1 for each.")
    question, choices = whole_text(question), tuple(map(whole_text, choices))
    settings, dialect = model.settings, model.dialect
    system = load_system(settings.specimen)
    guessed = plan_task(question, task, dialect=dialect, system=system, region=region, choices=choices)
    wanted(guessed, question, system, choices, Box(0, 0, 1, 1) if region else None)  # wrong options are refused first
    with _opened(picture, settings) as slide:
        reader = FieldReader(
            slide,
            px=settings.tile_px or dialect.tile_px,
            mpp=settings.tile_mpp or dialect.mpp_for(system),
        )
        if guessed.task in POINTING and region is not None:
            shown = [reader.around(region)]
        else:
            shown = reader.over(region, limit=max_fields, cells_only=True)
        if not shown:
            raise AnswerError(
                f"No cells were found on {slide.name}, so nothing was asked.",
                hint="Name a place with --region x0 y0 x1 y1.",
            )
        asking = Asking(model, system, reader, guessed, question, choices, region, orders)
        result = asking.answer(shown)
        if draw is not None:
            drawn = draw_result(slide, result, Path(draw), system)
            result = result.model_copy(update={"drawing": str(drawn)})
    return result


def _opened(picture: str | Path | Image.Image | ArrayLike, settings: Settings) -> Slide:
    if isinstance(picture, str | Path):
        return open_slide(
            picture, mpp=settings.mpp, reader=settings.reader, z=plane_of(settings.z), trial=settings.trial
        )
    return slide_of(picture, mpp=settings.mpp)


def plan_task(
    question: str,
    task: TaskName | None,
    *,
    dialect: Dialect,
    system: System,
    region: Box | None,
    choices: tuple[str, ...],
) -> Guess:
    """The task: the one named, or the one that the question means. Raises SettingError for what does not fit."""
    guessed = guess(question, dialect=dialect, system=system, pointed=region is not None, choices=choices)
    if task is not None:
        if task not in TASKS:
            raise SettingError(f"--task {task!r} cannot be asked.", hint=f"Choose one of: {', '.join(TASKS)}.")
        target = ""
        if task == "ground":
            target = guessed.target or find_label(question, dialect, system) or question.strip(" .?!")
        guessed = Guess(task, target, Remark("guess.as_asked"))
    if guessed.task in POINTING and region is None:
        raise SettingError(f"A {guessed.task} question needs a region.", hint="Add --region x0 y0 x1 y1.")
    if choices and guessed.task != "mcq":
        raise SettingError(f"A {guessed.task} question takes no --choices.", hint="Leave them out, or use --task mcq.")
    return guessed
