"""Runs: one slide or many in, one run folder and one summary out, on this machine or on Ray.

One bad slide never stops the others, whatever it raises; each slide's state is on disk, so a run that was killed at
any instant is resumed where it was and asks nothing twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_chat.analysis.manifest import Sample, read_manifest
    from wsi_chat.cohort.result import CohortResult
    from wsi_chat.cohort.run import analyze_cohort, analyze_slides
    from wsi_chat.cohort.search import find_slides
    from wsi_chat.cohort.state import SlideState

__all__ = ["CohortResult", "Sample", "SlideState", "analyze_cohort", "analyze_slides", "find_slides", "read_manifest"]

_HOMES = {
    "CohortResult": "wsi_chat.cohort.result",
    "Sample": "wsi_chat.analysis.manifest",
    "SlideState": "wsi_chat.cohort.state",
    "analyze_cohort": "wsi_chat.cohort.run",
    "analyze_slides": "wsi_chat.cohort.run",
    "find_slides": "wsi_chat.cohort.search",
    "read_manifest": "wsi_chat.analysis.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wsi_chat.cohort' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
