"""One slide of a run, from queued to its end: the same on this machine and in a Ray worker.

Whatever a slide raises is that slide's failure, kept with its traceback; only what concerns every slide (an engine
that is dead or cannot be loaded, an interrupt) goes further, and leaves the slide queued.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import RunFolder, SlideFolder
from wsi_chat.analysis.summary import indeterminate_by_error, reason_of, row_of, row_of_failure
from wsi_chat.atomic import replacing
from wsi_chat.cohort.state import Job, SlideState, write_state
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineError, WsiChatError
from wsi_chat.progress import Progress, no_progress

if TYPE_CHECKING:
    from wsi_chat.analysis.preparation import Prepared

log = logging.getLogger(__name__)

THUMBNAIL_PX = 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a slide ended: its state, and on this machine also its result or the exception that it raised.

    ``earlier``: an earlier run finished it, and nothing has changed since.
    """

    state: SlideState
    result: SlideResult | None = None
    error: Exception | None = None
    earlier: bool = False


def attempt(
    job: Job,
    run: RunFolder,
    model: Model,
    *,
    prepared: Callable[[], Prepared] | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Analyze one slide and write down how it ended: `ask` and what it gives, one after the other."""
    return ask(job, run, model, prepared=prepared, progress=progress)()


def ask(
    job: Job,
    run: RunFolder,
    model: Model,
    *,
    prepared: Callable[[], Prepared] | None = None,
    progress: Progress = no_progress,
) -> Callable[[], Outcome]:
    """Ask everything about one slide.

    Returns:
        A function that writes its documents and how it ended, to be called once, on any thread: it needs no engine.

    Raises:
        EngineError: the run cannot go on; the slide is queued again, its answers kept.
        KeyboardInterrupt: the same, here and in what is returned.
        OutputError: not even the state can be written; likewise.
    """
    from wsi_chat.analysis.pipeline import ask_slide

    began = time.perf_counter()
    write_state(run, job.state(status="running"))
    with _queued_again(job, run):
        try:
            asked = ask_slide(
                job.sample.path,
                run,
                job.settings,
                model,
                name=job.slide_id,
                names=job.names,
                progress=progress,
                prepared=prepared,
            )
        except EngineError:
            raise
        except Exception as error:
            raised = Outcome(write_state(run, failed(job, run, error, time.perf_counter() - began)), error=error)
            return lambda: raised

    def document() -> Outcome:
        with _queued_again(job, run):
            try:
                result = asked.document()
                _write_thumbnail(result.files)
            except Exception as error:
                return Outcome(write_state(run, failed(job, run, error, time.perf_counter() - began)), error=error)
            return Outcome(write_state(run, _finished(job, result, time.perf_counter() - began)), result=result)

    return document


@contextmanager
def _queued_again(job: Job, run: RunFolder) -> Iterator[None]:
    """What ends the run leaves the slide queued."""
    try:
        yield
    except (EngineError, KeyboardInterrupt) as error:
        reason = job.names.hide(error.message) if isinstance(error, WsiChatError) else "interrupted"
        write_state(run, job.state(reason=f"{reason}; its answers so far are kept"))
        raise


def _finished(job: Job, result: SlideResult, seconds: float) -> SlideState:
    report = result.report
    return job.state(
        status="indeterminate" if indeterminate_by_error(report) else "done",
        reason=" ".join([report.verdict.reason, *(f"Not written: {line}" for line in result.unwritten)]),
        unwritten=result.unwritten,
        seconds=round(seconds, 3),
        fingerprint=report.slide.fingerprint,
        row=row_of(report),
        documents=tuple(path.name for path in result.files.documents),
    )


def failed(job: Job, run: RunFolder, error: Exception, seconds: float | None = None) -> SlideState:
    """The state of a slide that raised an exception; the traceback of one that nobody foresaw is kept."""
    reason = reason_of(error)
    if not isinstance(error, WsiChatError):
        # a command prints what became of each slide
        log.warning("%s failed: %s", job.sample.file_name, reason, exc_info=error, extra={"printed": True})
        trace = run.slide(job.slide_id).keep_traceback(error, job.names)
        reason = f"{reason}. Please report it, with the traceback in {job.slide_id}/{trace.name}."
    else:
        log.info("%s failed: %s", job.sample.file_name, error, exc_info=error)
    folder = run.slide(job.slide_id)
    if folder.has_superseded_report:
        log.warning("%s: what an earlier run wrote is in %s", job.sample.file_name, folder.superseded_path)
    reason = job.names.hide(reason)
    return job.state(
        status="failed",
        reason=reason,
        error=type(error).__name__,
        seconds=None if seconds is None else round(seconds, 3),
        row=row_of_failure(job.slide_id, job.sample.file_name, reason, error),
    )


def failed_outside(job: Job, run: RunFolder, reason: str, *, error: str) -> SlideState:
    """The state of a slide whose worker did not live to write one."""
    reason = job.names.hide(reason)
    row = {"slide_id": job.slide_id, "file": job.sample.file_name, "state": "failed", "reason": reason, "error": error}
    return write_state(run, job.state(status="failed", reason=reason, error=error, row=row))


def _write_thumbnail(folder: SlideFolder) -> None:
    """A small overview for the cohort's page; where it cannot be made, the page says so."""
    from PIL import Image

    try:
        with Image.open(folder.overview_path) as picture:
            picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            with replacing(folder.thumbnail_path) as scratch:
                picture.convert("RGB").save(scratch, format="JPEG", quality=70)
    except (OSError, SyntaxError, ValueError, WsiChatError) as error:
        log.info("%s: no thumbnail: %s", folder.id, error)
