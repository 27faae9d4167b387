"""The findings table: one row per class that was asked about, zeros included.

A class that was never answered for keeps its row with ``asked`` False, so that "none seen" and "not looked for"
stay apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from wsi_chat.schema import Count, Finding, TileVerdict
from wsi_chat.terminology import System


def count_findings(
    findings: Iterable[Finding], tile_verdicts: Iterable[TileVerdict], system: System
) -> tuple[Count, ...]:
    """Rows in the order of the system's labels: those asked by default, asked of any tile, or found.

    A cell counts in the row of its own label and in that of the label that it is a kind of (a neutrophil as a WBC).

    Args:
        findings: merged findings, each cell once.
        tile_verdicts: whose ``asked`` names the labels that were answered for.
    """
    ids: dict[str, list[str]] = {}
    for finding in findings:
        ids.setdefault(finding.label, []).append(finding.id)
    own = dict(ids)
    for label in system.labels:
        kinds = [code for code in system.kinds_of(label.code) if code in own]
        if kinds:
            ids[label.code] = sorted(name for code in kinds for name in own[code])
    asked = {label for verdict in tile_verdicts for label in verdict.asked}
    return tuple(
        Count(
            label=label.code,
            name=label.name,
            abnormal=label.abnormal,
            seen=len(ids.get(label.code, ())),
            asked=label.code in asked,
            finding_ids=tuple(ids.get(label.code, ())),
        )
        for label in system.labels
        if label.ask or label.code in asked or label.code in ids
    )
