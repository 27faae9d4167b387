"""Micrometres per pixel: which statement of a file is believed, and what is said when none can be.

Order: flag > vendor property > TIFF resolution tags > objective power (derived, and marked so).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilers.readers import Resolution
from wsi_chat.errors import SettingError
from wsi_chat.schema import Remark

# A 100x oil objective on a fine sensor gives about 0.05, a 2x overview about 5. Tags left at 72 or 96 dpi
# read as 352.8 and 264.6 um/px.
PLAUSIBLE_MPP = (0.05, 5.0)
ANISOTROPY_NOTED = 0.02
# A 10x objective scans at about 1 um/px on the usual sensors: mpp = 10 / power.
MPP_TIMES_POWER = 10.0


@dataclass(frozen=True, slots=True)
class Mpp:
    """The scale that is used (None where unknown), who said so, and what was seen on the way."""

    value: float | None
    source: str
    seen: tuple[str, ...] = ()
    notes: tuple[Remark, ...] = ()


def plausible(mpp: float) -> bool:
    """Whether a microscope scan can have this many um/px."""
    return math.isfinite(mpp) and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def resolve_mpp(stated: Sequence[Resolution], *, objective_power: float | None, flag: float | None) -> Mpp:
    """Settle the mpp of a slide.

    Args:
        stated: what the file says, most trusted first.
        objective_power: nominal magnification, or None.
        flag: what the user says, or None.

    Raises:
        SettingError: ``flag`` is outside 0.05..5 um/px.
    """
    if flag is not None:
        if not plausible(flag):
            raise SettingError(
                f"--mpp is {flag:g} um/px; a microscope scan has {PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}.",
                hint="Give micrometres per level-0 pixel, for instance --mpp 0.25 for a 40x scan.",
            )
        return Mpp(flag, "flag")
    seen: list[str] = []
    for said in stated:
        if plausible(said.x) and plausible(said.y):
            notes: tuple[Remark, ...] = ()
            if abs(said.x / said.y - 1) > ANISOTROPY_NOTED:
                notes = (Remark("slide.not_square", x=said.x, y=said.y),)
            return Mpp((said.x + said.y) / 2, said.source, tuple(seen), notes)
        seen.append(f"{said.x:.4g} um/px from {said.source}")
    if objective_power is not None and plausible(MPP_TIMES_POWER / objective_power):
        note = Remark("slide.derived_mpp", power=objective_power)
        return Mpp(MPP_TIMES_POWER / objective_power, "objective power (derived)", tuple(seen), (note,))
    return Mpp(None, "unknown", tuple(seen))
