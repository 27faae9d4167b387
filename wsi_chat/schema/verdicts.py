"""What is found on a slide: tiles, cells, adequacy, controls, and the verdict with its grounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wsi_chat.remarks import Remark
from wsi_chat.schema.asking import LabelledBox
from wsi_chat.schema.geometry import Box, Tile
from wsi_chat.schema.record import NOTHING, Probability, Record

TileStatus = Literal["planned", "unreadable", "screened", "screen_failed", "detailed", "detail_failed"]
VerdictStatus = Literal["normal", "abnormal", "indeterminate", "unsatisfactory", "counted"]


class TileVerdict(Record):
    """What is known of one tile. Missing values stay None: nothing missing is ever counted as normal.

    ``p_screen`` is the probability of the screen question's positive option; ``p_abnormal`` is the same
    number where that question is about abnormality, else None. ``boxes`` are level-0 pixels, before merging
    across tiles. ``focus`` is the variance of the Laplacian of luminance (arbitrary units, higher is sharper).
    ``z`` is the focal plane that was shown, counted from 0; None where the slide has only one.
    """

    tile: Tile
    status: TileStatus
    p_screen: Probability | None = None
    p_abnormal: Probability | None = None
    boxes: tuple[LabelledBox, ...] = ()
    asked: tuple[str, ...] = ()
    description: str = ""
    truncated: bool = False
    dropped_boxes: int = 0
    focus: float | None = None
    z: int | None = None
    error: str = ""


class Finding(Record):
    """One cell (or organism), merged from every tile that saw it. ``box`` is level-0 pixels.

    ``score`` is the highest ``p_screen`` among its tiles: evidence for ranking, not a probability of disease.
    ``confidence`` is the highest that the model gave the cell itself under this label, None where it gave none.
    ``field`` names the photograph that it lies in and ``field_box`` is its box in pixels of that photograph, where the
    specimen is several photographs; ``box`` is then on the canvas that shows them side by side.
    ``abnormal`` says whether the reporting system counts the label as abnormal. ``votes`` is the number of
    tiles that gave it this label, ``other_labels`` what else they called it.
    """

    id: str
    label: str
    name: str
    box: Box
    abnormal: bool
    score: Probability | None = None
    confidence: Probability | None = None
    tile_ids: tuple[str, ...]
    votes: int = Field(ge=1)
    other_labels: tuple[str, ...] = ()
    field: str = ""
    field_box: Box | None = None


class Interval(Record):
    low: float
    high: float
    level: Probability = 0.95


class CellSample(Record):
    """A tile of the random sample in which normal cells are counted to judge adequacy.

    ``boxes`` are level-0 pixels. ``p_obscured`` is the probability that most of its cells are obscured, where
    that was asked. ``failed`` tiles count as missing, never as empty; a ``truncated`` one gives a lower bound.
    """

    tile: Tile
    status: Literal["counted", "unreadable", "failed"]
    boxes: tuple[LabelledBox, ...] = ()
    asked: tuple[str, ...] = ()
    truncated: bool = False
    p_obscured: Probability | None = None
    error: str = ""


class Adequacy(Record):
    """Whether the specimen could be assessed. Estimated counts are extrapolated from the sampled area.

    ``cells_estimate`` counts what the model marks, in ``unit``; its interval covers the error of sampling, not the
    model's own. ``sampled_area_fraction`` is the share of the foreground in which cells were counted (where
    nothing was counted: the share that was screened). ``minimum`` is what the estimate was compared with,
    ``tiles_counted`` of ``tiles_drawn`` sampled tiles gave a count, and ``counted`` is what was seen in them by class.
    """

    status: Literal["satisfactory", "unsatisfactory", "not_assessed"]
    reason: Remark
    rule: str = ""
    cells_estimate: float | None = None
    cells_interval: Interval | None = None
    sampled_area_fraction: Probability | None = None
    unit: Literal["cells", "groups"] = "cells"
    minimum: int | None = None
    preparation: str = ""
    tiles_drawn: int = Field(default=0, ge=0)
    tiles_counted: int = Field(default=0, ge=0)
    counted: dict[str, int] = Field(default_factory=dict)
    obscured_fraction: float | None = None
    obscured_interval: Interval | None = None
    method: str = ""
    notes: tuple[Remark, ...] = ()


class Count(Record):
    """A row of the findings table: merged cells of one class seen in the detailed tiles."""

    label: str
    name: str
    abnormal: bool
    seen: int = Field(ge=0)
    asked: bool
    finding_ids: tuple[str, ...] = ()


class DifferentialRow(Record):
    """One type of the differential: cells, and their share of the typed ones with its Wilson interval, 0..1."""

    label: str
    name: str
    n: int = Field(ge=0)
    fraction: Probability
    interval: Interval


class PerField(Record):
    """Cells of one class in each field (tile) that was read closely: their mean, fewest and most."""

    label: str
    name: str
    mean: float = Field(ge=0)
    fewest: int = Field(ge=0)
    most: int = Field(ge=0)


class Differential(Record):
    """White cells by type. ``rows`` share out the ``typed`` cells; ``untyped`` ones were given no type.

    ``seen`` are flags for review (immature granulocytes, nucleated red cells), never a diagnosis; ``notes`` say how far
    the figures can be trusted. ``fields`` were read closely, each ``field_um`` µm wide.
    """

    typed: int = Field(ge=0)
    untyped: int = Field(ge=0)
    rows: tuple[DifferentialRow, ...] = ()
    per_field: tuple[PerField, ...] = ()
    fields: int = Field(ge=0)
    field_um: float | None = None
    seen: tuple[Remark, ...] = ()
    notes: tuple[Remark, ...] = ()


class Funnel(Record):
    """How many tiles came through each step; the steps of an honest denominator.

    ``grid = foreground + empty + outside``, as far as a mask was used.
    """

    grid: int = Field(ge=0, description="tiles of the full grid over the scan")
    foreground: int = Field(ge=0, description="tiles kept by the foreground mask")
    selected: int = Field(ge=0, description="tiles kept after --limit")
    read: int = Field(ge=0)
    unreadable: int = Field(ge=0)
    screened: int = Field(ge=0)
    screen_failed: int = Field(ge=0)
    detailed: int = Field(ge=0)
    detail_failed: int = Field(ge=0)
    truncated_answers: int = Field(ge=0)
    dropped_boxes: int = Field(ge=0, description="boxes in answers that could not be used")
    unsure: int = Field(default=0, ge=0, description="of the foreground, tiles of which the mask is not sure")
    empty: int = Field(default=0, ge=0, description="tiles left out by the mask as empty glass")
    outside: int = Field(default=0, ge=0, description="tiles left out because nothing was scanned there")
    adequacy_drawn: int = Field(default=0, ge=0, description="tiles drawn at random to count normal cells")
    adequacy_counted: int = Field(default=0, ge=0, description="of those, tiles that gave a count")

    @property
    def coverage(self) -> float:
        """Fraction of the selected tiles that have a screening answer, 0..1; 0 where there are none."""
        return self.screened / self.selected if self.selected else 0.0

    @property
    def coverage_foreground(self) -> float:
        """Fraction of the tiles that may hold cells that have a screening answer, 0..1, those left out by ``--limit``
        among them; 0 where there are none."""
        return min(1.0, self.screened / self.foreground) if self.foreground else 0.0


class Fitted(Record):
    """How a fitted aggregator read the slide. ``score`` of the verdict is then a calibrated probability.

    ``classes`` are its classes with their probabilities, the negative one among them. Scores below
    ``low`` are normal, at or above the verdict's ``threshold`` abnormal, and those between indeterminate.
    ``guarantee`` says what the thresholds promise, empty where they promise nothing.
    """

    head: str
    aggregator: str = Field(description="SHA-256 of the aggregator")
    calibration: str
    classes: dict[str, Probability]
    low: float
    guarantee: Remark = NOTHING
    forced: tuple[Remark, ...] = Field(default=(), description="differences to the fit that --force passed over")


class CategorySupport(Record):
    """What speaks for one category: findings of its labels or of graver ones on its axis, of which ``own`` are its own.

    ``confidence`` is the probability that at least ``needed`` of them are right (see `aggregators.category`);
    ``chosen`` marks the categories that were given, ``open`` those that could not be excluded beside them.
    """

    code: str
    name: str
    axis: str
    findings: int = Field(ge=0, description="of its labels or of graver ones")
    own: int | None = Field(default=None, ge=0, description="of its own labels; None in reports of schema 1.1")
    needed: int = Field(ge=1)
    confidence: Probability
    chosen: bool = False
    open: bool = False
    finding_ids: tuple[str, ...] = ()


class Ground(Record):
    """Why a slide is not called normal: a rule of `aggregators.rules` that it does not meet.

    ``rule`` is the rule's code, ``headline`` a few words for a heading (``sampled: 4 of 101 tiles``), ``reason`` the
    sentence, with its numbers. ``by_error``: the run, and not the slide, is why there is no verdict.
    """

    rule: str
    headline: Remark
    reason: Remark
    by_error: bool = False


ControlKind = Literal["glass", "blurred", "noise", "positive", "swapped"]


class ControlAnswer(Record):
    """One control question and its answer.

    ``p`` is the probability of the screening question's positive option, None where no usable answer came;
    ``expected`` what it should be: ``negative`` (nothing can be seen), ``positive``, or ``same`` as ``p_before``, the
    answer to the same tile with the options in the usual order. ``as_expected`` is None without an answer.
    """

    kind: ControlKind
    name: str
    expected: Literal["negative", "positive", "same"]
    p: Probability | None = None
    p_before: Probability | None = None
    as_expected: bool | None = None
    error: str = ""


class Controls(Record):
    """How the model answered questions whose answer is known.

    ``failures`` are codes of `aggregators.controls` with their sentences; ``missing`` counts the questions without a
    usable answer. ``passed``: every question was answered and nothing failed.
    """

    answers: tuple[ControlAnswer, ...]
    failures: tuple[Remark, ...] = ()
    missing: int = Field(default=0, ge=0)

    @property
    def passed(self) -> bool:
        return not self.failures and not self.missing


class Scope(Record):
    """What the model was trained for, as its maker says, and whether this slide is of that kind.

    ``specimens``: specimen type -> ``real``, ``rendered`` or ``any``. ``outside`` says why the slide is not within it;
    empty where it is.
    """

    statement: str = Field(max_length=400)
    specimens: dict[str, Literal["real", "rendered", "any"]] = Field(default_factory=dict)
    outside: Remark = NOTHING


class SlideVerdict(Record):
    """The slide's verdict. ``score`` is on the scale that ``score_kind`` names, and no probability of disease."""

    status: VerdictStatus
    reason: Remark
    score: float | None = None
    score_kind: Remark
    threshold: float | None = None
    category: str | None = None
    category_name: Remark | None = None
    category_reason: Remark = NOTHING
    category_confidence: Probability | None = None
    category_confidence_kind: Remark = NOTHING
    category_support: tuple[CategorySupport, ...] = ()
    fitted: Fitted | None = None
    coverage: Probability = Field(description="of the tiles selected, the share with a screening answer; see funnel")
    coverage_floor: Probability
    adequacy: Adequacy
    grounds: tuple[Ground, ...] = Field(default=(), description="why it is not called normal, the deciding one first")
    counts: tuple[Count, ...] = ()
    differential: Differential | None = Field(default=None, description="where the reporting system counts by type")
    findings: tuple[Finding, ...] = ()
    carrying: tuple[str, ...] = Field(default=(), description="ids of the findings and tiles that carry the verdict")
