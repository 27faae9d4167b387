"""What speaks for each category: findings at least as grave, and the probability that enough of them are right.

**Support.** A finding supports the gravest category that its label belongs to, and every lower one of the same axis:
a cell that is at least as grave counts towards each. So evidence never lowers a category.

**Confidence.** Each finding is right with a probability q, the mean of a beta distribution: of ``seen`` tiles that
showed the whole cell and were asked for its class, ``votes`` gave it this label, and a box alone is right as often as
boxes of a released cervical checkpoint are (precision `PRECISION`, weighing as much as `WEIGHT` tiles)::

    q = (votes + WEIGHT * precision) / (seen + WEIGHT)

The confidence in a category is the probability that at least ``min_findings`` of its supporting findings are
right, if they err independently (the upper tail of the Poisson binomial distribution). It says how well the
category stands on its findings by the category's own rule. It is no probability of disease, it is calibrated only
as far as the precision is (give one measured on labelled slides), and tiles that share pixels err less than
independently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wsi_chat.errors import SettingError
from wsi_chat.schema import CategorySupport, Finding, TileVerdict
from wsi_chat.terminology import Category, System

#: Precision of a cervical checkpoint's released answers at IoU 0.5, the class named in the prompt (measured: 0.188).
PRECISION = 0.19
#: How many tiles the precision weighs against; a choice of this project.
WEIGHT = 2.0


class Evidence(NamedTuple):
    """The findings behind a category, by id, and the confidence in it."""

    category: Category
    findings: tuple[Finding, ...]
    confidence: float

    @property
    def enough(self) -> bool:
        return len(self.findings) >= self.category.min_findings

    def record(self, *, chosen: bool = False, left_open: bool = False) -> CategorySupport:
        return CategorySupport(
            code=self.category.code,
            name=self.category.name,
            axis=self.category.axis,
            findings=len(self.findings),
            own=sum(finding.label in self.category.from_labels for finding in self.findings),
            needed=self.category.min_findings,
            confidence=self.confidence,
            chosen=chosen,
            open=left_open,
            finding_ids=tuple(finding.id for finding in self.findings),
        )


def gather(
    findings: Iterable[Finding],
    categories: Sequence[Category],
    system: System,
    tile_verdicts: Sequence[TileVerdict] = (),
    *,
    precision: Mapping[str, float] | float = PRECISION,
) -> dict[str, list[Evidence]]:
    """Axis -> its categories with their evidence, the gravest first; categories without labels are left out.

    Args:
        tile_verdicts: to know which tiles showed a cell and were silent about it; without them only the votes count.
        precision: of a box, by label or for all; 0..1.

    Raises:
        SettingError: a precision outside 0..1.
    """
    found = sorted(findings, key=lambda finding: finding.id)
    axes: dict[str, list[Evidence]] = {}
    for axis in dict.fromkeys(category.axis for category in categories):
        graded = sorted((c for c in categories if c.axis == axis and c.from_labels), key=lambda c: -c.order)
        for category in graded:
            labels = {label for c in graded if c.order >= category.order for label in c.from_labels}
            support = tuple(finding for finding in found if finding.label in labels)
            chances = [chance(finding, tile_verdicts, _precision(finding.label, precision)) for finding in support]
            tail = at_least(category.min_findings, chances)
            axes.setdefault(axis, []).append(Evidence(category, support, tail))
    return axes


def chance(finding: Finding, tile_verdicts: Sequence[TileVerdict], precision: float = PRECISION) -> float:
    """The probability that a finding is what it is called, as this module defines it."""
    box = finding.box
    seen = sum(
        finding.label in verdict.asked
        and verdict.tile.x <= box.x0
        and verdict.tile.y <= box.y0
        and box.x1 <= verdict.tile.x + verdict.tile.width
        and box.y1 <= verdict.tile.y + verdict.tile.height
        for verdict in tile_verdicts
    )
    return (finding.votes + WEIGHT * precision) / (max(seen, finding.votes, len(finding.tile_ids)) + WEIGHT)


def at_least(needed: int, chances: Iterable[float]) -> float:
    """The probability that at least ``needed`` of independent events happen, each with its own chance."""
    few = [1.0] + [0.0] * (needed - 1)  # probability of exactly 0 .. needed - 1
    for p in sorted(chances, reverse=True):
        for n in range(needed - 1, 0, -1):
            few[n] = few[n] * (1 - p) + few[n - 1] * p
        few[0] *= 1 - p
    return min(1.0, max(0.0, 1.0 - sum(few)))


def _precision(label: str, precision: Mapping[str, float] | float) -> float:
    value = precision.get(label, PRECISION) if isinstance(precision, Mapping) else precision
    if not 0.0 <= value <= 1.0:
        raise SettingError(f"The precision of {label} is {value}.", hint="Set it between 0 and 1.")
    return value
