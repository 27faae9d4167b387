"""Runs: one slide or many in, one run folder and one summary out, on this machine or on Ray.

One bad slide never stops the others, whatever it raises; each slide's state is on disk, so a run that was killed at
any instant is resumed where it was and asks nothing twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat.lazy import on_first_use

if TYPE_CHECKING:
    from wsi_chat.analysis.manifest import read_manifest
    from wsi_chat.analysis.sample import Sample
    from wsi_chat.cohort.result import CohortResult
    from wsi_chat.cohort.run import analyze_cohort, analyze_slides
    from wsi_chat.cohort.search import find_slides
    from wsi_chat.cohort.state import SlideState

__all__ = ["CohortResult", "Sample", "SlideState", "analyze_cohort", "analyze_slides", "find_slides", "read_manifest"]

__getattr__, __dir__ = on_first_use(
    __name__,
    __all__,
    {
        ".result": ("CohortResult",),
        ".run": ("analyze_cohort", "analyze_slides"),
        ".search": ("find_slides",),
        ".state": ("SlideState",),
        "wsi_chat.analysis.manifest": ("read_manifest",),
        "wsi_chat.analysis.sample": ("Sample",),
    },
)
