"""Findings and boxes of a specimen of several photographs: which field each lies in, and where in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsi_chat.schema import FieldRecord, LabelledBox, SlideVerdict, TileVerdict, field_at


def within_fields(tiles: Mapping[int, TileVerdict], fields: Sequence[FieldRecord]) -> dict[int, TileVerdict]:
    """The tiles with their boxes cut to the field that each tile shows; those in the empty rest of a tile go."""
    if not fields:
        return dict(tiles)
    return {index: _within(verdict, fields) for index, verdict in tiles.items()}


def _within(verdict: TileVerdict, fields: Sequence[FieldRecord]) -> TileVerdict:
    own = field_at(fields, verdict.tile.box)
    if own is None or not verdict.boxes:
        return verdict
    cut = [(found, found.box.clipped(own.box)) for found in verdict.boxes]
    kept = tuple(LabelledBox(found.label, box, found.score) for found, box in cut if box is not None)
    return verdict.model_copy(
        update={"boxes": kept, "dropped_boxes": verdict.dropped_boxes + len(verdict.boxes) - len(kept)}
    )


def in_fields(verdict: SlideVerdict, fields: Sequence[FieldRecord]) -> SlideVerdict:
    """The verdict with each finding's field and its box in that field's own pixels."""
    if not fields:
        return verdict
    findings = []
    for finding in verdict.findings:
        own = field_at(fields, finding.box)
        named = {} if own is None else {"field": own.name, "field_box": own.own(finding.box)}
        findings.append(finding.model_copy(update=named))
    return verdict.model_copy(update={"findings": tuple(findings)})
