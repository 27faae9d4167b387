"""The report: the slide, the specimen, who answered how, the verdict and its narrative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, computed_field, model_validator

from wsi_chat.remarks import VERBATIM, Language, Remark, plain_fields, put_back, remarks_in
from wsi_chat.schema.constants import ASSUMED_SCALE, DISCLAIMER, SCHEMA_VERSION
from wsi_chat.schema.geometry import Box
from wsi_chat.schema.record import NOTHING, Record
from wsi_chat.schema.verdicts import Controls, Funnel, Scope, SlideVerdict


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
