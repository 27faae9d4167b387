"""Whether the specimen could be assessed: what can be known without counting every cell, and no more.

A blank slide is unsatisfactory; abnormal cells make a specimen adequate where the system says so. Anything else
needs a cell count, which no supported model gives yet, so it is ``not_assessed`` with the rule beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat.schema import Adequacy, Funnel, VerdictStatus

if TYPE_CHECKING:
    from wsi_chat.terminology import System


def estimate(*, system: System, funnel: Funnel, status: VerdictStatus, screened: int) -> Adequacy:
    """Adequacy from the verdict's status and the funnel.

    Args:
        status: the slide's verdict; ``unsatisfactory`` and ``abnormal`` decide, the others do not.
        screened: tiles with a screening answer, for ``sampled_area_fraction`` (of the foreground's tiles; they
            are all of one size, so tiles stand for area).
    """
    rule = system.adequacy
    fraction = min(1.0, screened / funnel.foreground) if funnel.foreground else None
    if status == "unsatisfactory":
        return Adequacy(
            status="unsatisfactory",
            reason="No cells were found on the slide.",
            rule=rule.text,
            sampled_area_fraction=fraction,
        )
    if status == "abnormal" and rule.abnormal_is_adequate:
        return Adequacy(
            status="satisfactory",
            reason="Abnormal cells were called, and any abnormal cell makes the specimen adequate.",
            rule=rule.text,
            sampled_area_fraction=fraction,
        )
    reason = (
        "No adequacy rule that could be computed is held for this system."
        if rule.kind == "none"
        else "The rule needs a count of cells, and the model was not asked to count them."
    )
    return Adequacy(status="not_assessed", reason=reason, rule=rule.text, sampled_area_fraction=fraction)
