"""The white-cell differential: percent of each type with Wilson intervals, and what is counted in each field beside it.

A cell is counted once, however many tiles marked it (`aggregators.merge`), and under one type. Cells that no type was
given to are named, not shared out. Immature granulocytes and nucleated red cells are flagged as seen, for review.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aggregators.intervals import proportion
from wsi_chat.schema import Differential, DifferentialRow, Finding, Interval, PerField, Remark, TileVerdict

if TYPE_CHECKING:
    from wsi_chat.terminology import System
    from wsi_chat.terminology.records import DifferentialRule

LEVEL = 0.95
IMMATURE, NUCLEATED_RED = "ig", "erythroblast"


def differential(
    findings: Sequence[Finding], tile_verdicts: Sequence[TileVerdict], system: System
) -> Differential | None:
    """The differential of a slide; None where the reporting system has none, or no tile was read closely.

    Args:
        findings: merged findings, each cell once.
        tile_verdicts: of every selected tile; those with status ``detailed`` are the fields.
    """
    rule = system.differential
    fields = [verdict for verdict in tile_verdicts if verdict.status == "detailed"]
    if rule is None or not fields:
        return None
    count = {label.code: sum(finding.label == label.code for finding in findings) for label in system.labels}
    asked = any(set(rule.types) <= set(verdict.asked) for verdict in fields)
    typed, untyped = sum(count[code] for code in rule.types), count[rule.whole]
    rows = []
    for code in rule.types if typed else ():
        share = proportion(count[code], typed, level=LEVEL)
        interval = Interval(low=share.low, high=share.high, level=LEVEL)
        name = system.label(code).name
        rows.append(DifferentialRow(label=code, name=name, n=count[code], fraction=share.value, interval=interval))
    screened = sum(verdict.p_screen is not None for verdict in tile_verdicts)
    tile = fields[0].tile
    return Differential(
        typed=typed,
        untyped=untyped,
        rows=tuple(rows),
        per_field=tuple(_per_field(code, findings, fields, system) for code in rule.per_field),
        fields=len(fields),
        field_um=tile.out_px * tile.mpp,
        seen=tuple(_seen(count)),
        notes=tuple(_notes(rule, typed, untyped, asked=asked or typed > 0, fields=len(fields), screened=screened)),
    )


def _per_field(code: str, findings: Sequence[Finding], fields: Sequence[TileVerdict], system: System) -> PerField:
    """Cells of a class that each field marked, overlaps between fields included."""
    marked = dict.fromkeys((verdict.tile.id for verdict in fields), 0)
    for finding in findings:
        for tile_id in finding.tile_ids if finding.label == code else ():
            if tile_id in marked:
                marked[tile_id] += 1
    numbers = list(marked.values())
    mean = sum(numbers) / len(numbers)
    return PerField(label=code, name=system.label(code).name, mean=mean, fewest=min(numbers), most=max(numbers))


def _seen(count: dict[str, int]) -> list[Remark]:
    flags = []
    if count.get(IMMATURE):
        flags.append(Remark("blood.immature_seen", n=count[IMMATURE]))
    if count.get(NUCLEATED_RED):
        flags.append(Remark("blood.nucleated_red_seen", n=count[NUCLEATED_RED]))
    return flags


def _notes(
    rule: DifferentialRule, typed: int, untyped: int, *, asked: bool, fields: int, screened: int
) -> list[Remark]:
    notes = []
    if not asked:
        notes.append(Remark("blood.not_asked"))
    elif not typed:
        notes.append(Remark("blood.none_typed"))
    elif typed < rule.few:
        notes.append(Remark("blood.few", n=typed, few=rule.few))
    elif typed < rule.reference:
        notes.append(Remark("blood.below_reference", n=typed, reference=rule.reference))
    if untyped and asked:
        notes.append(Remark("blood.untyped", n=untyped))
    if fields < screened:
        notes.append(Remark("blood.chosen_fields", fields=fields, screened=screened))
    return notes
