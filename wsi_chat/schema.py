"""The vocabulary that every package speaks: boxes, tiles, questions, answers, findings, verdicts, the report.

Coordinates of a stored box are level-0 slide pixels, floats, top-left origin; only a dialect knows model
coordinates. Nothing here imports numpy, torch or a reader.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from wsi_chat.remarks import VERBATIM, plain_fields, put_back, remarks_in
from wsi_chat.remarks import Language as Language
from wsi_chat.remarks import Remark as Remark

if TYPE_CHECKING:
    from PIL import Image

SCHEMA_VERSION = "1.3"
ASSUMED_SCALE = "assumed"
"""Source of an mpp that nobody stated: a photograph was read pixel for pixel at the scale that suits the model."""
DISCLAIMER = "Research use only. Not a diagnosis; not for clinical decisions."
"""Stands on every answer, report and conversation."""

ORIGIN = "wsi-chat.origin"
"""The slide property that says where its pixels come from: ``rendered``, or absent."""
RENDERED_NOTE = "wsi-chat: rendered, not a specimen"
"""What the renderer writes into a file's description (TIFF ImageDescription, OME-Zarr attribute, PNG Description)."""

# ---------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned rectangle, ``x0 <= x1`` and ``y0 <= y1``; the one box type and the one IoU.

    In stored results the unit is level-0 slide pixels; inside a dialect it is pixels of the image as sent.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not (self.x0 <= self.x1 and self.y0 <= self.y1):
            raise ValueError(f"box corners out of order or not numbers: {self.x0, self.y0, self.x1, self.y1}")

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def scaled(self, sx: float, sy: float | None = None) -> Box:
        """The box with both axes multiplied (``sy`` defaults to ``sx``)."""
        sy = sx if sy is None else sy
        return Box(self.x0 * sx, self.y0 * sy, self.x1 * sx, self.y1 * sy)

    def shifted(self, dx: float, dy: float) -> Box:
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)

    def clipped(self, bounds: Box) -> Box | None:
        """The part inside ``bounds``, or None where nothing (or only an edge) is left."""
        x0, y0 = max(self.x0, bounds.x0), max(self.y0, bounds.y0)
        x1, y1 = min(self.x1, bounds.x1), min(self.y1, bounds.y1)
        return Box(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def intersection(self, other: Box) -> float:
        """Shared area; 0 for disjoint boxes."""
        w = min(self.x1, other.x1) - max(self.x0, other.x0)
        h = min(self.y1, other.y1) - max(self.y0, other.y0)
        return w * h if w > 0 and h > 0 else 0.0

    def iou(self, other: Box) -> float:
        """Intersection over union, 0..1; 0 for disjoint boxes and for two empty ones."""
        shared = self.intersection(other)
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    def union(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))


@dataclass(frozen=True, slots=True)
class Tile:
    """One rectangle of a slide, as planned: where it lies at level 0 and how it is to be read.

    ``x, y, width, height`` are level-0 pixels; ``read_px`` is (width, height) read from ``level``;
    ``out_px`` is the side in pixels of the square that the model sees; ``mpp`` is its effective µm/px.
    ``cellularity`` (0..1, foreground area fraction from the overview) is what the plan knew of it.
    """

    index: int
    x: int
    y: int
    width: int
    height: int
    level: int
    read_px: tuple[int, int]
    out_px: int
    mpp: float
    cellularity: float | None = None

    @property
    def id(self) -> str:
        """Stable name within a plan, e.g. ``t000042``; cited as evidence in reports."""
        return f"t{self.index:06d}"

    @property
    def box(self) -> Box:
        return Box(self.x, self.y, self.x + self.width, self.y + self.height)

    def to_level0(self, box: Box) -> Box:
        """From pixels of the tile's ``out_px`` x ``out_px`` image to level-0 slide pixels."""
        return box.scaled(self.width / self.out_px, self.height / self.out_px).shifted(self.x, self.y)


# ---------------------------------------------------------------------------------------------- asking

TaskName = Literal["screen", "mcq", "ground", "refer", "describe", "vqa", "region", "phrase", "narrative"]
AnswerStatus = Literal["ok", "truncated", "failed"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. Each ``<image>`` in ``text`` stands for the next of the query's images."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the words of an answer are drawn, where they are not the most probable ones (greedy decoding, the default).

    ``top_p`` 1 and ``top_k`` 0 rule out no word. The same question to the same batch gives the same answer.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Query:
    """One question for an engine: everything that determines the answer, and a key made from all of it.

    ``choices`` non-empty asks for one token out of these strings (letters of the options) with their
    probabilities. ``target`` is the class asked for (ground) or empty. ``sampling`` None decodes greedily.
    """

    key: str
    task: TaskName
    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = field(default=(), compare=False)
    choices: tuple[str, ...] = ()
    max_tokens: int = 256
    target: str = ""
    tile_id: str = ""
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine said to the query with the same key.

    ``probabilities``: option -> probability over the query's choices (sums to 1), from log-probabilities;
    None where the engine gives none. ``finish_reason``: ``stop``, ``length`` (then status is ``truncated``)
    or ``error``.
    """

    key: str
    task: TaskName
    text: str
    status: AnswerStatus = "ok"
    finish_reason: str = "stop"
    probabilities: Mapping[str, float] | None = None
    logprob: float | None = None
    error: str = ""
    seconds: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A box with the class the model gave it. ``score`` is a probability where the engine offers one."""

    label: str
    box: Box
    score: float | None = None


# ---------------------------------------------------------------------------------------------- verdicts


class Record(BaseModel):
    """Base of everything that is written down: immutable, no unknown keys, NaN refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _repr_html_(self) -> str:
        """Its fields as a table, for notebooks; long values are cut, and every text is escaped."""
        rows = "".join(
            f"<tr><td style='text-align:left;vertical-align:top;color:#5c6a70;padding:0 12px 0 0'>{name}</td>"
            f"<td style='text-align:left'>{html.escape(_in_short(value))}</td></tr>"
            for name, value in self
        )
        return (
            f"<div style='font:13px/1.45 system-ui,sans-serif'><b>{type(self).__name__}</b>"
            f"<table style='border-collapse:collapse'>{rows}</table></div>"
        )


CUT_AT = 160


def _in_short(value: Any) -> str:
    """A field's value on one line."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Box):
        return f"{value.x0:.0f} {value.y0:.0f} {value.x1:.0f} {value.y1:.0f} (level-0 px)"
    if isinstance(value, tuple) and value and isinstance(value[0], Record):
        return f"{len(value)} × {type(value[0]).__name__}"
    text = " ".join(", ".join(map(str, value)).split()) if isinstance(value, tuple) else " ".join(str(value).split())
    return text if len(text) <= CUT_AT else f"{text[:CUT_AT]}…"


NOTHING = Remark(VERBATIM, text="")
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
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
    coverage: Probability
    coverage_floor: Probability
    adequacy: Adequacy
    grounds: tuple[Ground, ...] = Field(default=(), description="why it is not called normal, the deciding one first")
    counts: tuple[Count, ...] = ()
    differential: Differential | None = Field(default=None, description="where the reporting system counts by type")
    findings: tuple[Finding, ...] = ()
    carrying: tuple[str, ...] = Field(default=(), description="ids of the findings and tiles that carry the verdict")


# ---------------------------------------------------------------------------------------------- the report


class Sentence(Record):
    """One sentence of the narrative, with the ids of the tiles and findings (or fields) that support it."""

    text: str
    evidence: tuple[str, ...] = Field(min_length=1)
    source: Literal["template", "model", "template_after_check"] = "template"
    replaced: str = Field(default="", description="why the model's sentence gave way to this one of the template")


class Narrator(Record):
    """Who was asked to write the narrative, and what became of it. ``note`` says why the template was used."""

    model: str
    revision: str
    prompt_sha256: str = ""
    kept: int = Field(default=0, ge=0)
    replaced: int = Field(default=0, ge=0)
    note: Remark = NOTHING


class FieldRecord(Record):
    """One photograph of a specimen of several: which, and where it lies on the canvas that shows them side by side.

    ``x, y`` is its top left corner on the canvas, in pixels of the canvas, as are its ``width`` and ``height``.
    ``scale`` is how many of these one of its own pixels is wide: 1 where all photographs have one resolution, else its
    own µm/px over that of the finest. ``error`` says why it is missing: then its size is that of the others.
    """

    number: int = Field(ge=1)
    name: str
    x: int
    y: int
    width: int
    height: int
    scale: float = Field(default=1.0, gt=0)
    error: str = ""

    @property
    def box(self) -> Box:
        """Its place on the canvas."""
        return Box(self.x, self.y, self.x + self.width, self.y + self.height)

    @property
    def own_size(self) -> tuple[int, int]:
        """(width, height) of the photograph as it is, in its own pixels."""
        return round(self.width / self.scale), round(self.height / self.scale)

    def own(self, box: Box) -> Box:
        """A box on the canvas in the field's own pixels."""
        return box.shifted(-self.x, -self.y).scaled(1 / self.scale)


class SlideRecord(Record):
    """The slide as a file: identity without anything personal. Sizes in level-0 pixels, mpp in µm/px.

    ``fields`` are the photographs of a specimen of several, in order; empty for a slide, which is one picture. What is
    said in level-0 pixels is then in pixels of the canvas on which they lie side by side.
    """

    id: str
    file_name: str
    fingerprint: str
    reader: str
    width: int
    height: int
    levels: int
    mpp: float
    mpp_source: str
    objective_power: float | None = None
    vendor: str = ""
    bounds: Box | None = None
    properties: dict[str, str] = Field(default_factory=dict)
    fields: tuple[FieldRecord, ...] = ()

    @property
    def scale_known(self) -> bool:
        """Whether the mpp is a statement about the specimen, so that lengths in µm mean something."""
        return self.mpp_source != ASSUMED_SCALE

    def field_at(self, box: Box) -> FieldRecord | None:
        """The field that a box on the canvas belongs to; None for a slide."""
        return field_at(self.fields, box)


def field_at(fields: Sequence[FieldRecord], box: Box) -> FieldRecord | None:
    """The field that a box on the canvas belongs to: the one that holds its top left corner, else its middle.

    A tile that is larger than its field begins in it, and may reach over others.
    """
    for x, y in ((box.x0, box.y0), box.center):
        for one in fields:
            if one.x <= x <= one.x + one.width and one.y <= y <= one.y + one.height:
                return one
    return None


class ModelRecord(Record):
    """The model that answered, and how it was asked."""

    name: str
    revision: str
    engine: str
    engine_reason: str = Field(default="", description="why this engine: asked for, or what auto went by")
    dialect: str
    prompts_sha256: str
    decoding: dict[str, Any] = Field(default_factory=dict)


class Provenance(Record):
    model: ModelRecord
    tile_px: int
    tile_mpp: float
    overlap: float
    mask: Remark
    masked: bool | None = Field(default=None, description="whether tiles were left out by the mask")
    aggregation: dict[str, Any] = Field(default_factory=dict)
    generated_tokens: int | None = Field(default=None, description="tokens of all answers that the report stands on")
    seed: int
    versions: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)


class Specimen(Record):
    """What was examined, as the user said it. ``given`` is False where the specimen type was not supplied."""

    given: bool
    code: str
    name: str
    system: str
    system_version: str
    sources: tuple[str, ...] = ()
    preparation: str = ""
    age: int | None = None


class Timings(Record):
    """The only block that differs between two runs of the same slide with the same settings."""

    started: str
    seconds: dict[str, float] = Field(default_factory=dict)
    tiles_per_second: float | None = None
    answers_reused: int = 0
    answers_new: int = 0


class RemarkRecord(Record):
    """Where a text of the report stands (``verdict.reason``, ``notes.0``), and what it was put into words from."""

    at: str
    code: str
    fields: dict[str, Any] = Field(default_factory=dict)


class Report(Record):
    """report.json: the whole result for one slide."""

    schema_version: str = SCHEMA_VERSION
    disclaimer: str = DISCLAIMER
    slide: SlideRecord
    specimen: Specimen
    verdict: SlideVerdict
    narrative: tuple[Sentence, ...] = ()
    language: Language = Field(default="en", description="of the narrative and of the documents")
    narrator: Narrator | None = Field(default=None, description="None where no model was asked to write it")
    ancillary: tuple[str, ...] = Field(default=(), description="other tests' results, as the user supplied them")
    funnel: Funnel
    scope: Scope | None = Field(default=None, description="None where the model's maker states none")
    controls: Controls | None = Field(default=None, description="None where no control question was asked")
    notes: tuple[Remark, ...] = ()
    provenance: Provenance
    timings: Timings

    @computed_field(description="code and fields of every text above that the program wrote itself")  # type: ignore[prop-decorator]
    @property
    def remarks(self) -> tuple[RemarkRecord, ...]:
        """The code and fields of the report's own sentences, so that another language can be written from them."""
        return tuple(
            RemarkRecord(at=at, code=remark.code, fields=plain_fields(remark))
            for at, remark in remarks_in(self)
            if remark.code != VERBATIM
        )

    @model_validator(mode="before")
    @classmethod
    def _with_remarks(cls, data: Any) -> Any:
        """Put code and fields back to their texts. A report without them (schema 1.1) keeps its texts as they are."""
        if not isinstance(data, dict) or "remarks" not in data:
            return data
        report = {key: value for key, value in data.items() if key != "remarks"}
        for entry in data["remarks"]:
            record = entry if isinstance(entry, RemarkRecord) else RemarkRecord.model_validate(entry)
            put_back(report, record.at, {"code": record.code, "fields": record.fields})
        return report
