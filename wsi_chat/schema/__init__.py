"""The vocabulary that every package speaks: boxes, tiles, questions, answers, findings, verdicts, the report.

Coordinates of a stored box are level-0 slide pixels, floats, top-left origin; only a dialect knows model
coordinates. Nothing here imports numpy, torch or a reader.
"""

from __future__ import annotations

from wsi_chat.remarks import Language, Remark
from wsi_chat.schema.asking import Answer, AnswerStatus, LabelledBox, Query, Sampling, TaskName, Turn
from wsi_chat.schema.constants import ASSUMED_SCALE, DISCLAIMER, ORIGIN, RENDERED_NOTE, SCHEMA_VERSION
from wsi_chat.schema.geometry import Box, Tile
from wsi_chat.schema.record import CUT_AT, NOTHING, Probability, Record
from wsi_chat.schema.report import (
    FieldRecord,
    ModelRecord,
    Narrator,
    Provenance,
    RemarkRecord,
    Report,
    Sentence,
    SlideRecord,
    Specimen,
    Timings,
    field_at,
)
from wsi_chat.schema.verdicts import (
    Adequacy,
    CategorySupport,
    CellSample,
    ControlAnswer,
    ControlKind,
    Controls,
    Count,
    Differential,
    DifferentialRow,
    Finding,
    Fitted,
    Funnel,
    Ground,
    Interval,
    PerField,
    Scope,
    SlideVerdict,
    TileStatus,
    TileVerdict,
    VerdictStatus,
)

__all__ = [
    "ASSUMED_SCALE",
    "CUT_AT",
    "DISCLAIMER",
    "NOTHING",
    "ORIGIN",
    "RENDERED_NOTE",
    "SCHEMA_VERSION",
    "Adequacy",
    "Answer",
    "AnswerStatus",
    "Box",
    "CategorySupport",
    "CellSample",
    "ControlAnswer",
    "ControlKind",
    "Controls",
    "Count",
    "Differential",
    "DifferentialRow",
    "FieldRecord",
    "Finding",
    "Fitted",
    "Funnel",
    "Ground",
    "Interval",
    "LabelledBox",
    "Language",
    "ModelRecord",
    "Narrator",
    "PerField",
    "Probability",
    "Provenance",
    "Query",
    "Record",
    "Remark",
    "RemarkRecord",
    "Report",
    "Sampling",
    "Scope",
    "Sentence",
    "SlideRecord",
    "SlideVerdict",
    "Specimen",
    "TaskName",
    "Tile",
    "TileStatus",
    "TileVerdict",
    "Timings",
    "Turn",
    "VerdictStatus",
    "field_at",
]
