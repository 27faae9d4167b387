"""One slide of a cohort, from queued to its end: the same on this machine and in a Ray worker.

Whatever a slide raises is that slide's failure, kept with its traceback; only what concerns every slide (an engine
that is dead or cannot be loaded, an interrupt) goes further, and leaves the slide queued.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from wsi_chat.analysis.pipeline import PreparedSlide, analyze_slide
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import indeterminate_by_error, reason_of, row_of, row_of_failure, write_traceback
from wsi_chat.cohort.state import Job, SlideState, write_state
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineError, WsiChatError
from wsi_chat.progress import Progress, no_progress

log = logging.getLogger(__name__)

THUMBNAIL = "thumbnail.jpg"
THUMBNAIL_PX = 120


def attempt(
    job: Job,
    out: Path,
    model: Model,
    *,
    prepared: Callable[[], PreparedSlide] | None = None,
    progress: Progress = no_progress,
) -> SlideState:
    """Analyze one slide and write down how it ended.

    Raises:
        EngineError: the run cannot go on; the slide is queued again, its answers kept.
        KeyboardInterrupt: the same.
        OutputError: not even the state can be written.
    """
    begun = time.perf_counter()
    write_state(out, job.state(status="running"))
    try:
        result = analyze_slide(job.sample.path, out, job.settings, model, progress=progress, prepared=prepared)
        _write_thumbnail(result.folder)
    except (EngineError, KeyboardInterrupt) as error:
        why = error.message if isinstance(error, WsiChatError) else "interrupted"
        write_state(out, job.state(reason=f"{why}; its answers so far are kept"))
        raise
    except Exception as error:
        return write_state(out, _failed(job, out, error, time.perf_counter() - begun))
    return write_state(out, _finished(job, result, time.perf_counter() - begun))


def _finished(job: Job, result: SlideResult, seconds: float) -> SlideState:
    report = result.report
    return job.state(
        status="indeterminate" if indeterminate_by_error(report) else "done",
        reason=" ".join([report.verdict.reason, *(f"Not written: {line}" for line in result.unwritten)]),
        unwritten=result.unwritten,
        seconds=round(seconds, 3),
        fingerprint=report.slide.fingerprint,
        row=row_of(report),
    )


def _failed(job: Job, out: Path, error: Exception, seconds: float) -> SlideState:
    if not isinstance(error, WsiChatError):
        log.warning("%s: %s", job.sample.path.name, reason_of(error))
        write_traceback(out / job.slide_id, error)
    else:
        log.info("%s failed: %s", job.sample.path.name, error, exc_info=error)
    return job.state(
        status="failed",
        reason=reason_of(error),
        error=type(error).__name__,
        seconds=round(seconds, 3),
        row=row_of_failure(job.sample.path, error),
    )


def failed_outside(job: Job, out: Path, reason: str, *, error: str) -> SlideState:
    """The state of a slide whose worker did not live to write one."""
    row = {"slide_id": job.slide_id, "file": job.sample.path.name, "state": "failed", "reason": reason, "error": error}
    return write_state(out, job.state(status="failed", reason=reason, error=error, row=row))


def _write_thumbnail(folder: Path) -> None:
    """A small overview for the cohort's page; where it cannot be made, the page says so."""
    from PIL import Image

    try:
        with Image.open(folder / "overview.png") as picture:
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            picture.convert("RGB").save(folder / THUMBNAIL, quality=70)
    except (OSError, SyntaxError, ValueError) as error:
        log.info("%s: no thumbnail: %s", folder.name, error)
