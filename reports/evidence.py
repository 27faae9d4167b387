"""What a sentence may cite, and the check that it exists: findings, tiles and fields of the report itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from wsi_chat.errors import AnswerError
from wsi_chat.schema import Report, TileVerdict


def check_evidence(report: Report, tile_verdicts: Sequence[TileVerdict]) -> None:
    """Check that everything the report cites exists.

    A sentence cites finding ids (``f0001``), tile ids (``t000042``) or dotted fields of the report
    (``funnel.screened``) that have a value. The verdict's own references (carrying ids, the tiles of each
    finding, the findings of each count) are checked as well.

    Raises:
        AnswerError: naming the sentence or field and the id that does not exist.
    """
    findings = {finding.id for finding in report.verdict.findings}
    tiles = {verdict.tile.id for verdict in tile_verdicts}
    for sentence in report.narrative:
        for name in sentence.evidence:
            if name not in findings and name not in tiles and not has_field(report, name):
                _missing(f"the sentence {sentence.text!r}", name)
    for name in report.verdict.carrying:
        if name not in findings and name not in tiles:
            _missing("verdict.carrying", name)
    for finding in report.verdict.findings:
        for name in finding.tile_ids:
            if name not in tiles:
                _missing(f"finding {finding.id}", name)
    for count in report.verdict.counts:
        for name in count.finding_ids:
            if name not in findings:
                _missing(f"the count of {count.label}", name)


def has_field(report: Report, name: str) -> bool:
    """Whether ``name`` is a dotted path of fields of the report that ends at a value: not None, '' or an empty list."""
    value: Any = report
    for step in name.split("."):
        if not isinstance(value, BaseModel):
            return False
        if step in type(value).model_fields:
            value = getattr(value, step)
        elif isinstance(getattr(type(value), step, None), property):
            value = getattr(value, step)  # a derived value, such as funnel.coverage
        else:
            return False
    return value is not None and value not in ("", ())


def _missing(where: str, name: str) -> None:
    raise AnswerError(
        f"Evidence {name!r} of {where} does not exist.",
        hint="Cite finding ids, tile ids or fields of the report that have a value.",
    )
