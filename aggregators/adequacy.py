"""Whether the specimen could be assessed: the system's rule, on a count extrapolated from a random sample of tiles.

What decides, in this order: a slide without cells is unsatisfactory; abnormal cells make a specimen adequate
where the system says so; a share of obscured fields beyond the rule's limit is unsatisfactory; then the count. It
is compared by its interval: satisfactory where the lower end reaches the minimum (or the sampled tiles alone hold
that many), unsatisfactory where the upper end stays below, else ``not_assessed``, with the reason. Cells that the
model does not mark are not counted, and answers that were cut off give a lower bound, on which nothing is called
unsatisfactory. Tiles without an answer are missing, never empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aggregators.intervals import proportion
from aggregators.sampling import LEVEL, Frame, Total, total
from wsi_chat.schema import Adequacy, CellSample, Funnel, Interval, VerdictStatus

if TYPE_CHECKING:
    from wsi_chat.terminology import Minimum, System

METHOD = "stratified random tiles, combined ratio estimator, log-scale t interval"


@dataclass(frozen=True, slots=True)
class Supplied:
    """What the user said of the specimen beyond its type.

    Attributes:
        preparation: as the system's minima name it (``liquid-based``), or None.
        reduced_minimum: the laboratory accepts the lower bound after therapy or with atrophy.
        age: of the patient in years.
    """

    preparation: str | None = None
    reduced_minimum: bool = False
    age: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """The sampled tiles and the frame that they were drawn from."""

    tiles: tuple[CellSample, ...]
    frame: Frame


def estimate(
    *,
    system: System,
    funnel: Funnel,
    status: VerdictStatus,
    screened: int,
    sample: Sample | None = None,
    supplied: Supplied | None = None,
    floor: float = 0.9,
) -> Adequacy:
    """Adequacy from the verdict's status, the funnel and the cells counted in sampled tiles.

    Args:
        status: the slide's verdict; ``unsatisfactory`` and ``abnormal`` decide, the others do not.
        screened: tiles with a screening answer, for ``sampled_area_fraction`` where no cells were counted (of the
            foreground's tiles; they are all of one size, so tiles stand for area).
        sample: the sampled tiles; None where none were asked.
        floor: share of the sampled tiles that must have been counted, 0..1.
    """
    rule = system.adequacy
    supplied = supplied or Supplied()
    fraction = min(1.0, screened / funnel.foreground) if funnel.foreground else None
    seen = _Counted.of(system, sample) if sample is not None and sample.tiles else None
    fields = seen.fields(rule.text) if seen else {"rule": rule.text, "sampled_area_fraction": fraction}

    def say(verdict: str, reason: str, **more: object) -> Adequacy:
        return Adequacy.model_validate({**fields, "status": verdict, "reason": reason, **more})

    if status == "unsatisfactory":
        return say("unsatisfactory", "No cells were found on the slide.")
    if status == "abnormal" and rule.abnormal_is_adequate:
        return say(
            "satisfactory", "Abnormal cells were called, and any abnormal cell makes the specimen adequate.",
            preparation=supplied.preparation or "",
        )  # fmt: skip
    if rule.kind not in ("cells", "groups"):
        return say("not_assessed", "No adequacy rule that could be computed is held for this system.")
    if seen is not None and rule.obscuring is not None and seen.obscured is not None:
        share, interval = seen.obscured
        if interval.low > rule.obscuring.maximum:
            return say(
                "unsatisfactory",
                f"In an estimated {share:.0%} of the fields most cells are obscured, beyond the"
                f" {rule.obscuring.maximum:.0%} of the rule.",
            )
    if seen is None or not rule.counted_labels:
        return say("not_assessed", _why_not_counted(rule.counted_labels))
    if seen.answered < max(1.0, floor * seen.drawn):
        return say(
            "not_assessed",
            f"Cells were counted in only {seen.answered} of {seen.drawn} sampled tiles, below the coverage floor of"
            f" {floor:.0%}.",
        )
    verdict, reason, used = _compare(seen, rule.minima, supplied)
    return say(verdict, reason, minimum=used, preparation=supplied.preparation or "")


def _why_not_counted(labels: Sequence[str]) -> str:
    if not labels:
        return "The rule needs a count of cells, and no class of a model means them."
    return "The rule needs a count of cells, and the model was not asked to count them."


def _compare(seen: _Counted, minima: Sequence[Minimum], supplied: Supplied) -> tuple[str, str, int | None]:
    """Status, reason and the minimum that was used."""
    assert seen.total is not None
    value, interval, unit = seen.total.value, seen.total.interval, seen.unit
    text = (
        f"An estimated {_round(value)} {unit} ({interval.level:.0%} interval {_round(interval.low)} to"
        f" {_round(interval.high)}) as the model marks them"
    )
    fitting = [m for m in minima if m.preparation in (supplied.preparation, "any")] or list(minima)
    enough = max(_enough(minimum, supplied) for minimum in fitting)
    least = min(_least(minimum, supplied) for minimum in fitting)
    lenient = " at the laboratory's discretion" if supplied.reduced_minimum else ""
    if interval.low >= enough or seen.observed >= enough:
        return "satisfactory", f"{text}: at least the {enough:,} that the rule asks for{lenient}.", enough
    if seen.truncated and interval.high < least:
        return "not_assessed", f"{text}, below {least:,}; but {seen.cut_off()}, so there may be more.", least
    if interval.high < least:
        return "unsatisfactory", f"{text}: fewer than the {least:,} that the rule asks for{lenient}.", least
    if len(fitting) > 1 and any(interval.low >= _enough(m, supplied) for m in fitting):
        named = " or ".join(m.preparation for m in fitting)
        return (
            "not_assessed",
            f"{text}; whether that is enough depends on the preparation ({named}: --preparation).",
            None,
        )
    line = f"{least:,}" if least == enough else f"{least:,} to {enough:,}"
    return "not_assessed", f"{text}; the interval does not settle whether the rule's {line} are reached.", least


def _enough(minimum: Minimum, supplied: Supplied) -> int:
    if supplied.reduced_minimum and minimum.discretion is not None:
        return minimum.discretion
    return minimum.upper or minimum.count


def _least(minimum: Minimum, supplied: Supplied) -> int:
    if supplied.reduced_minimum and minimum.discretion is not None:
        return minimum.discretion
    return minimum.count


def _round(value: float) -> str:
    """A count to two significant digits: an estimate claims no more."""
    if value < 100:
        return f"{value:.0f}"
    digits = math.floor(math.log10(value)) - 1
    return f"{round(value, -digits):,.0f}"


@dataclass(frozen=True, slots=True)
class _Counted:
    """What the sampled tiles hold, in their cores, and what that makes for the whole."""

    drawn: int
    answered: int
    truncated: int
    observed: int
    by_label: dict[str, int]
    total: Total | None
    obscured: tuple[float, Interval] | None
    notes: tuple[str, ...]
    unit: str

    @classmethod
    def of(cls, system: System, sample: Sample) -> _Counted:
        rule, frame = system.adequacy, sample.frame
        counted = [tile for tile in sample.tiles if tile.status == "counted"]
        cells: dict[int, dict[str, int]] = {tile.tile.index: _in_core(tile, frame, system) for tile in counted}
        by_label = {
            label: sum(row.get(label, 0) for row in cells.values())
            for label in rule.asked_labels
            if any(label in tile.asked for tile in counted)
        }
        wanted = rule.counted_labels
        whole = {
            tile.tile.index: float(sum(cells[tile.tile.index].get(label, 0) for label in wanted))
            for tile in counted
            if wanted and set(wanted) <= set(tile.asked)
        }
        drawn = len(sample.tiles)
        return cls(
            drawn=drawn,
            answered=len(whole),
            truncated=sum(tile.truncated for tile in counted),
            observed=int(sum(whole.values())),
            by_label=by_label,
            total=total(whole, frame, drawn=drawn) if whole else None,
            obscured=_obscured(counted),
            notes=tuple(_components(system, counted, cells, frame, drawn)),
            unit=rule.kind,
        )

    def fields(self, rule: str) -> dict[str, object]:
        estimated = self.total
        share, interval = self.obscured or (None, None)
        notes = self.notes
        if self.truncated:
            notes = (*notes, f"{self.cut_off()[:1].upper()}{self.cut_off()[1:]}: the count is a lower bound.")
        return {
            "rule": rule,
            "cells_estimate": None if estimated is None else round(estimated.value, 1),
            "cells_interval": None if estimated is None else estimated.interval,
            "sampled_area_fraction": None if estimated is None else estimated.area_fraction,
            "unit": self.unit if self.unit in ("cells", "groups") else "cells",
            "tiles_drawn": self.drawn,
            "tiles_counted": self.answered,
            "counted": self.by_label,
            "obscured_fraction": share,
            "obscured_interval": interval,
            "method": METHOD if estimated is not None else "",
            "notes": notes,
        }

    def cut_off(self) -> str:
        return f"in {self.truncated} of {self.drawn} sampled tiles an answer was cut off"


def _in_core(tile: CellSample, frame: Frame, system: System) -> dict[str, int]:
    core = frame.core(tile.tile)
    seen: dict[str, int] = {}
    for item in tile.boxes:
        x, y = item.box.center
        label = system.read_label(item.label)
        if label and core.x0 <= x < core.x1 and core.y0 <= y < core.y1:
            seen[label] = seen.get(label, 0) + 1
    return seen


def _components(
    system: System, counted: Sequence[CellSample], cells: dict[int, dict[str, int]], frame: Frame, drawn: int
) -> Iterable[str]:
    """A sentence on each component (transformation zone): there, absent, or not settled."""
    for component in system.adequacy.components:
        usable = [tile for tile in counted if set(component.labels) <= set(tile.asked)]
        if not usable:
            yield f"{component.name}: not assessed, its cells were not asked for."
            continue
        counts = {
            tile.tile.index: float(sum(cells[tile.tile.index].get(label, 0) for label in component.labels))
            for tile in usable
        }
        seen, whole = int(sum(counts.values())), total(counts, frame, drawn=drawn)
        names = " or ".join(system.label(code).plural for code in component.labels)
        if seen >= component.count:
            yield f"{component.name}: present ({seen} {names} in the sampled tiles; at least {component.count} needed)."
        elif whole.interval.low >= component.count:
            yield f"{component.name}: present, as extrapolated from {seen} {names} in the sampled tiles."
        elif whole.interval.high < component.count and not any(tile.truncated for tile in usable):
            yield f"{component.name}: absent or insufficient (fewer than {component.count} {names} estimated)."
        else:
            yield f"{component.name}: not settled ({seen} {names} in the sampled tiles)."


def _obscured(counted: Sequence[CellSample]) -> tuple[float, Interval] | None:
    """The share of sampled fields in which most cells are obscured, with Wilson's interval."""
    known = [tile.p_obscured for tile in counted if tile.p_obscured is not None]
    if not known:
        return None
    share = proportion(sum(p >= 0.5 for p in known), len(known), level=LEVEL)
    return share.value, Interval(low=share.low, high=share.high, level=LEVEL)
