"""Whether the specimen could be assessed: the system's rule, on a count extrapolated from a random sample of tiles.

What decides, in this order: a slide without cells is unsatisfactory; an abnormal verdict with a marked cell of an
abnormal class makes a specimen adequate where the system says so (``abnormal_is_adequate``: Bethesda 2014 and TBSRTC
2023); a share of obscured fields beyond the rule's limit is unsatisfactory; then the count. An abnormal score alone
shows no cell that the system's rule could rest on: it makes nothing satisfactory, and leaves open (``not_assessed``)
what the count would call unsatisfactory, for the cells behind the score may be found. Where either would make a
specimen unsatisfactory in which cells of abnormal classes were marked, such a system's rule holds all the same: it is
satisfactory, and `aggregators.rules` sees to it that nobody takes that for a negative specimen. The count is compared
by its interval: satisfactory where the lower end reaches the minimum (or the sampled tiles alone hold that many),
unsatisfactory where the upper end stays below, else ``not_assessed``, with the reason. Cells that the model does not
mark are not counted, and answers that were cut off give a lower bound, on which nothing is called unsatisfactory. Tiles
without an answer are missing, never empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aggregators.intervals import proportion
from aggregators.sampling import LEVEL, Frame, Total, total
from wsi_chat.schema import Adequacy, CellSample, Funnel, Interval, Remark, VerdictStatus
from wsi_chat.terminology import Minimum, System

ABNORMAL_MARKED = "adequacy.abnormal_marked"
"""Code of the reason where marked abnormal cells alone keep a specimen from being unsatisfactory."""
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
class TileSample:
    """The sampled tiles and the frame that they were drawn from."""

    tiles: tuple[CellSample, ...]
    frame: Frame


def estimate(
    *,
    system: System,
    funnel: Funnel,
    status: VerdictStatus,
    screened: int,
    sample: TileSample | None = None,
    supplied: Supplied | None = None,
    floor: float = 0.9,
    marked: int = 0,
) -> Adequacy:
    """Adequacy from the verdict's status, the funnel and the cells counted in sampled tiles.

    Args:
        status: the slide's verdict; ``unsatisfactory`` and ``abnormal`` decide, the others do not.
        screened: tiles with a screening answer, for ``sampled_area_fraction`` where no cells were counted (of the
            foreground's tiles; they are all of one size, so tiles stand for area).
        sample: the sampled tiles; None where none were asked.
        floor: share of the sampled tiles that must have been counted, 0..1.
        marked: merged findings of abnormal classes.
    """
    rule = system.adequacy
    supplied = supplied or Supplied()
    fraction = min(1.0, screened / funnel.foreground) if funnel.foreground else None
    seen = _Counted.of(system, sample) if sample is not None and sample.tiles else None
    fields = seen.fields(rule.text) if seen else {"rule": rule.text, "sampled_area_fraction": fraction}
    few = seen is not None and seen.answered < max(1.0, floor * seen.drawn)
    if few:  # too few for an estimate: what was counted stays
        fields |= {"cells_estimate": None, "cells_interval": None, "sampled_area_fraction": None, "method": ""}

    def conclude(verdict: str, reason: Remark, **more: object) -> Adequacy:
        if verdict == "unsatisfactory" and marked and rule.abnormal_is_adequate and status != "unsatisfactory":
            of = Remark("name.system", code=system.code, name=system.name)
            verdict, reason = "satisfactory", Remark(ABNORMAL_MARKED, n=marked, system=of, reason=reason)
        elif verdict == "unsatisfactory" and status == "abnormal" and rule.abnormal_is_adequate:
            verdict, reason = "not_assessed", Remark("adequacy.score_alone", reason=reason)
        return Adequacy.model_validate({**fields, "status": verdict, "reason": reason, **more})

    if status == "unsatisfactory":
        return conclude("unsatisfactory", Remark("adequacy.no_cells"))
    if status == "abnormal" and marked and rule.abnormal_is_adequate:
        return conclude(
            "satisfactory", Remark("adequacy.abnormal_cells"),
            preparation=supplied.preparation or "",
        )  # fmt: skip
    if rule.kind not in ("cells", "groups"):
        return conclude("not_assessed", Remark("adequacy.no_rule"))
    if seen is not None and rule.obscuring is not None and seen.obscured is not None:
        share, interval = seen.obscured
        if interval.low > rule.obscuring.maximum:
            return conclude(
                "unsatisfactory",
                Remark("adequacy.obscured", share=share, maximum=rule.obscuring.maximum),
            )
    if seen is None or not rule.counted_labels:
        return conclude("not_assessed", _why_not_counted(rule.counted_labels))
    if few:
        return conclude(
            "not_assessed",
            Remark("adequacy.few_tiles", answered=seen.answered, drawn=seen.drawn, floor=floor),
        )
    verdict, reason, used = _compare(seen, rule.minima, supplied)
    return conclude(verdict, reason, minimum=used, preparation=supplied.preparation or "")


def _why_not_counted(labels: Sequence[str]) -> Remark:
    return Remark("adequacy.not_asked") if labels else Remark("adequacy.no_class")


def _compare(seen: _Counted, minima: Sequence[Minimum], supplied: Supplied) -> tuple[str, Remark, int | None]:
    """Status, reason and the minimum that was used."""
    assert seen.total is not None
    value, interval = seen.total.value, seen.total.interval
    text = Remark(
        "adequacy.estimate", n=_rounded(value), unit=Remark("unit.groups" if seen.unit == "groups" else "unit.cells"),
        level=interval.level, low=_rounded(interval.low), high=_rounded(interval.high),
    )  # fmt: skip
    fitting = [m for m in minima if m.preparation in (supplied.preparation, "any")] or list(minima)
    enough = max(_enough(minimum, supplied) for minimum in fitting)
    least = min(_least(minimum, supplied) for minimum in fitting)
    lenient = supplied.reduced_minimum
    if interval.low >= enough or seen.observed >= enough:
        code = "adequacy.enough_discretion" if lenient else "adequacy.enough"
        return "satisfactory", Remark(code, estimate=text, minimum=enough), enough
    if seen.truncated and interval.high < least:
        reason = Remark("adequacy.below_but_cut_off", estimate=text, minimum=least, n=seen.truncated, drawn=seen.drawn)
        return "not_assessed", reason, least
    if interval.high < least:
        code = "adequacy.fewer_discretion" if lenient else "adequacy.fewer"
        return "unsatisfactory", Remark(code, estimate=text, minimum=least), least
    if len(fitting) > 1 and any(interval.low >= _enough(m, supplied) for m in fitting):
        named = [Remark("name.preparation", code=m.preparation, name=m.preparation) for m in fitting]
        return "not_assessed", Remark("adequacy.depends", estimate=text, preparations=named), None
    if least == enough:
        return "not_assessed", Remark("adequacy.unsettled", estimate=text, minimum=least), least
    return "not_assessed", Remark("adequacy.unsettled_range", estimate=text, minimum=least, enough=enough), least


def _enough(minimum: Minimum, supplied: Supplied) -> int:
    if supplied.reduced_minimum and minimum.discretion is not None:
        return minimum.discretion
    return minimum.upper or minimum.count


def _least(minimum: Minimum, supplied: Supplied) -> int:
    if supplied.reduced_minimum and minimum.discretion is not None:
        return minimum.discretion
    return minimum.count


def _rounded(value: float) -> int:
    """A count to two significant digits: an estimate claims no more."""
    if value < 100:
        return round(value)
    digits = math.floor(math.log10(value)) - 1
    return round(round(value, -digits))


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
    notes: tuple[Remark, ...]
    unit: str

    @classmethod
    def of(cls, system: System, sample: TileSample) -> _Counted:
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
            notes = (*notes, Remark("adequacy.lower_bound", n=self.truncated, drawn=self.drawn))
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
) -> Iterable[Remark]:
    """A sentence on each component (transformation zone): there, absent, or not settled."""
    for component in system.adequacy.components:
        usable = [tile for tile in counted if set(component.labels) <= set(tile.asked)]
        name = Remark("name.component", code=component.code, name=component.name)
        if not usable:
            yield Remark("adequacy.component_not_asked", component=name)
            continue
        counts = {
            tile.tile.index: float(sum(cells[tile.tile.index].get(label, 0) for label in component.labels))
            for tile in usable
        }
        seen, whole = int(sum(counts.values())), total(counts, frame, drawn=drawn)
        cells_named = [Remark("name.cells", code=code, name=system.label(code).plural) for code in component.labels]
        known: dict[str, Any] = {"component": name, "cells": cells_named}
        if seen >= component.count:
            yield Remark("adequacy.component_present", n=seen, needed=component.count, **known)
        elif whole.interval.low >= component.count:
            yield Remark("adequacy.component_extrapolated", n=seen, **known)
        elif whole.interval.high < component.count and not any(tile.truncated for tile in usable):
            yield Remark("adequacy.component_absent", needed=component.count, **known)
        else:
            yield Remark("adequacy.component_unsettled", n=seen, **known)


def _obscured(counted: Sequence[CellSample]) -> tuple[float, Interval] | None:
    """The share of sampled fields in which most cells are obscured, with Wilson's interval."""
    known = [tile.p_obscured for tile in counted if tile.p_obscured is not None]
    if not known:
        return None
    share = proportion(sum(p >= 0.5 for p in known), len(known), level=LEVEL)
    return share.value, Interval(low=share.low, high=share.high, level=LEVEL)
