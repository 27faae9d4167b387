"""Micrometres per pixel: which statement of a file is believed, and what is reported when none can be.

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
# read as 352.8 and 264.6 µm/px.
PLAUSIBLE_MPP = (0.05, 5.0)
ANISOTROPY_NOTED = 0.02
# A 10x objective scans at about 1 µm/px on the usual sensors: mpp = 10 / power.
MPP_TIMES_POWER = 10.0


@dataclass(frozen=True, slots=True)
class Mpp:
    """The scale that is used (None where unknown), its source, and the implausible statements that were passed over.

    ``stated`` is what the file says where the user's value takes its place, in µm/px, or None.
    """

    value: float | None
    source: str
    implausible: tuple[str, ...] = ()
    notes: tuple[Remark, ...] = ()
    stated: float | None = None


def plausible(mpp: float) -> bool:
    """Whether a microscope scan can have this many µm/px."""
    return math.isfinite(mpp) and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def resolve_mpp(stated: Sequence[Resolution], *, objective_power: float | None, flag: float | None) -> Mpp:
    """Settle the mpp of a slide.

    Args:
        stated: what the file says, most trusted first.
        objective_power: nominal magnification, or None.
        flag: the user's value, or None.

    Raises:
        SettingError: ``flag`` is outside 0.05..5 µm/px.
    """
    if flag is not None:
        if not plausible(flag):
            raise SettingError(
                f"--mpp is {flag:g} µm/px; a microscope scan has {PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}.",
                hint="Give micrometres per level-0 pixel, for instance --mpp 0.25 for a 40x scan.",
            )
        return Mpp(flag, "flag", stated=resolve_mpp(stated, objective_power=objective_power, flag=None).value)
    implausible: list[str] = []
    for resolution in stated:
        if plausible(resolution.x) and plausible(resolution.y):
            notes: tuple[Remark, ...] = ()
            if abs(resolution.x / resolution.y - 1) > ANISOTROPY_NOTED:
                notes = (Remark("slide.not_square", x=resolution.x, y=resolution.y),)
            return Mpp((resolution.x + resolution.y) / 2, resolution.source, tuple(implausible), notes)
        implausible.append(f"{resolution.x:.4g} µm/px from {resolution.source}")
    if objective_power is not None and plausible(MPP_TIMES_POWER / objective_power):
        note = Remark("slide.derived_mpp", power=objective_power)
        return Mpp(MPP_TIMES_POWER / objective_power, "objective power (derived)", tuple(implausible), (note,))
    return Mpp(None, "unknown", tuple(implausible))
