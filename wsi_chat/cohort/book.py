"""The states of a run's slides in order, on disk after every slide.

summary.csv follows at once while that is quick, index.html and the table of a very large cohort now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.summary import SUMMARY_COLUMNS, class_columns, write_summary
from wsi_chat.cohort.attempt import Outcome, failed
from wsi_chat.cohort.result import CohortResult, columns_of
from wsi_chat.cohort.state import Job, SlideState, settled, write_state
from wsi_chat.errors import WsiChatError
from wsi_chat.progress import Progress, no_progress

PAGE_SECONDS = 30.0  # between two writings of index.html; it holds every slide's picture
SUMMARY_SECONDS = 0.25  # up to so long it is written after every slide
SUMMARY_SHARE = 20  # summary.csv rests for so many times as long as its last writing took: that grows with the cohort


class Watcher(Protocol):
    """Follows a run as it goes."""

    def planned(self, total: int, settled: Sequence[SlideState]) -> None:
        """Before the first slide: how many there are, and which need not be done again."""

    def begun(self, sample: Sample) -> Progress:
        """A slide's turn has come; its progress is reported to the function that this returns."""

    def ended(self, outcome: Outcome) -> None:
        """A slide is finished; the next one may have begun, and this may be another thread. One call at a time."""


class Silent:
    """The default watcher: it does nothing."""

    def planned(self, total: int, settled: Sequence[SlideState]) -> None: ...

    def begun(self, sample: Sample) -> Progress:
        return no_progress

    def ended(self, outcome: Outcome) -> None: ...


class Book:
    """Keeps a run's states.

    Args:
        run: the run folder.
        jobs: the slides, in order.
        watcher: follows the run.
        whole: the folder belongs to these slides alone, as a cohort's does: slides that are settled are not done
            again, and summary.csv and index.html hold these slides and no others. Otherwise the slides were named one
            by one, are all done (known answers are not asked again) but for those in ``standing``, and join those of
            earlier runs in summary.csv.
        retry_failed: with ``whole``, do failed slides again, and those that lack tiles or answers.
        check: called before anything is written where slides are to be done; what it raises leaves all as it was.
        standing: slide id -> how it ended in an earlier run, of slides that were named and of which that still holds.
    """

    def __init__(
        self,
        run: RunFolder,
        jobs: Sequence[Job],
        watcher: Watcher,
        *,
        whole: bool,
        retry_failed: bool = False,
        check: Callable[[], None] | None = None,
        standing: Mapping[str, Outcome] = MappingProxyType({}),
    ) -> None:
        self.run = run
        self.interrupted = False
        self.stopped_by: WsiChatError | None = None
        self.to_do: list[Job] = []
        self._watcher = watcher
        self._whole = whole
        self._jobs = {job.slide_id: job for job in jobs}
        self._states: dict[str, SlideState] = {}
        self._page_at = self._summary_from = time.monotonic()
        self._turn = threading.Lock()  # slides begin on one thread and end on another
        done: list[SlideState] = []
        known = {job.slide_id: settled(job, run, retry_failed=retry_failed) if whole else None for job in jobs}
        known |= {slide: outcome.state for slide, outcome in standing.items()}
        if check is not None and None in known.values():
            check()
        for job in jobs:
            state = known[job.slide_id]
            if state is None:
                # a slide that was named has no folder until its turn comes
                state = write_state(run, job.state()) if whole else job.state()
                self.to_do.append(job)
            else:
                done.append(state)
            self._states[job.slide_id] = state
        watcher.planned(len(jobs), done)
        self._write_summary()
        self._write_page()
        for outcome in standing.values():
            watcher.ended(outcome)

    def begun(self, job: Job) -> Progress:
        """A slide's turn has come; gives the function that its progress is reported to."""
        with self._turn:
            self._states[job.slide_id] = job.state(status="running")
            if self._whole:
                self._write_summary_now_and_then()
            return self._watcher.begun(job.sample)

    def enter(self, outcome: Outcome) -> None:
        """A slide has ended."""
        with self._turn:
            self._states[outcome.state.slide_id] = outcome.state
            self._write_summary_now_and_then()
            if time.monotonic() - self._page_at > PAGE_SECONDS:
                self._write_page()
            self._watcher.ended(outcome)

    def close(self) -> None:
        """What was under way when the run ended is queued again; both files say how it stands.

        A slide that was named, and whose engine died, is a failed one: whoever named it is told so.
        """
        for key, state in self._states.items():
            if state.status != "running":
                continue
            job = self._jobs[key]
            if self.stopped_by is not None and not self._whole:
                self._states[key] = write_state(self.run, failed(job, self.run, self.stopped_by))
            else:
                reason = "the run ended before it was finished; its answers so far are kept"
                self._states[key] = write_state(self.run, job.state(reason=reason))
        self._write_summary()
        self._write_page()

    def result(self) -> CohortResult:
        """How the run stands."""
        return CohortResult(
            self.run.path,
            tuple(job.sample for job in self._jobs.values()),
            tuple(self._states.values()),
            interrupted=self.interrupted,
            stopped_by=self.stopped_by,
        )

    def _write_summary_now_and_then(self) -> None:
        """A slide's own state is on disk at once; the table of all of them as often as its size allows."""
        if time.monotonic() >= self._summary_from:
            self._write_summary()

    def _write_summary(self) -> None:
        began = time.monotonic()
        self._write_rows()
        now = time.monotonic()
        self._summary_from = now + SUMMARY_SHARE * (now - began) if now - began > SUMMARY_SECONDS else now

    def _write_rows(self) -> None:
        result = self.result()
        if self._whole:
            write_summary(self.run, result.rows, columns=columns_of(result.samples), keep_earlier=False)
            return
        rows = [
            {name: row[name] for name in (*SUMMARY_COLUMNS, *class_columns([row])) if name in row}
            for row in result.rows
        ]
        write_summary(self.run, rows)

    def _write_page(self) -> None:
        if self._whole:
            from wsi_chat.cohort.page import write_index

            write_index(self.result())
        self._page_at = time.monotonic()
