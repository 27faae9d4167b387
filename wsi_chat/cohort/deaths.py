"""Which slides were open when a process died, from one run to the next: a mark in the run folder while each is open.

A library that aborts in the middle of a slide takes the process with it, and no state can be written any more. The
mark stays then. The next run does such a slide last and alone, so that no other one shares its end, and after `TRIES`
deaths in a row without a new answer it is failed instead. Whatever Python survives (an error, Ctrl-C, an engine that
died) removes the mark. Whoever writes a mark holds its lock, which the operating system releases when the process ends:
a mark whose lock is taken is that of a run that lives, and says nothing of deaths. On Ray the driver writes the marks,
for the slides that are at work: see `wsi_chat.cohort.on_ray`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from typing import IO, Self

from pydantic import ValidationError

from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.cohort.state import Job, stamp_of
from wsi_chat.errors import SlideUnreadable, WsiChatError
from wsi_chat.journal import Journal
from wsi_chat.locks import take_lock
from wsi_chat.schema import Record

log = logging.getLogger(__name__)

TRIES = 3


class Mark(Record):
    """A slide that is open, or was when the process died.

    ``deaths``: processes that had died with it, one after another, when it was opened; ``answers``: how many answers
    its journal held then; ``stamp``: the file's, see `wsi_chat.cohort.state.SlideState`.
    """

    deaths: int = 0
    answers: int = 0
    stamp: tuple[int, int] | None = None


class Deaths:
    """The marks of a run's slides. A context manager: at its end, the process lives, and no mark of its own stays."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._open: dict[str, IO[bytes]] = {}
        self._written: dict[str, Mark] = {}
        self._deaths: dict[str, int] = {}

    def tell_apart(self, jobs: Iterable[Job], *, forgive: bool = False) -> tuple[list[Job], list[Job], list[Job]]:
        """The slides that no process died with; those to be done last; and those that are failed.

        Args:
            forgive: forget what happened, as for slides that are done anew.
        """
        left = {path.name for path in self._run.marks()}
        calm: list[Job] = []
        marked: list[Job] = []
        for job in jobs:
            if self._run.mark_path(job.slide_id).name not in left:
                calm.append(job)
            elif self._is_another_runs(job):
                calm.append(job)  # its journal is that run's too, which is said when its turn comes
            elif forgive or job.settings.overwrite or not (deaths := self._died(job)):
                self._run.mark_path(job.slide_id).unlink(missing_ok=True)
                calm.append(job)
            else:
                self._deaths[job.slide_id] = deaths
                marked.append(job)
                log.warning(
                    "%s was being read when a process died (%d time%s in a row): it is done last",
                    job.names.slide, deaths, "" if deaths == 1 else "s",
                )  # fmt: skip
        marked.sort(key=lambda job: self._deaths[job.slide_id])
        alone = [job for job in marked if self._deaths[job.slide_id] < TRIES]
        return calm, alone, marked[len(alone) :]

    def refusal(self, job: Job) -> SlideUnreadable:
        """Why a slide with which processes died is failed."""
        return SlideUnreadable(
            f"{job.names.slide} is refused: {self._deaths[job.slide_id]} processes in a row died while it was being "
            "read or asked about, without a new answer.",
            hint="Copy the file again from its source, or convert it; --overwrite (in a cohort also --retry-failed) "
            "tries it again. Where the model ended them (too little memory, a driver), mend that first.",
        )

    def begin(self, job: Job) -> None:
        """Mark a slide, before it is opened, unless another run that lives has."""
        mark = Mark(
            deaths=self._deaths.get(job.slide_id, 0), answers=self._answers(job), stamp=stamp_of(job.sample.path)
        )
        self._close(job.slide_id)
        try:
            file = self._run.mark_path(job.slide_id).open("ab")
            if not _locked(file):
                file.close()
                return
            self._open[job.slide_id], self._written[job.slide_id] = file, mark
            file.truncate(0)
            file.write(mark.model_dump_json().encode())
            file.flush()
        except OSError as error:  # whatever comes next says that nothing can be written
            log.warning("no mark can be left that %s is being read: %s", job.names.slide, error.strerror)

    def of(self, job: Job) -> int:
        """How many processes died in a row with a slide, as far as it is known."""
        return self._deaths.get(job.slide_id, 0)

    def again(self, job: Job) -> int:
        """A process died with a slide that is marked, and this one lives: how many did in a row now."""
        self._deaths[job.slide_id] = self._died(job)
        return self._deaths[job.slide_id]

    def end(self, job: Job) -> None:
        """The slide is closed, and the process lives."""
        self._remove(job.slide_id)

    def _remove(self, slide: str) -> None:
        if self._close(slide):
            with contextlib.suppress(OSError):
                self._run.mark_path(slide).unlink(missing_ok=True)

    def _close(self, slide: str) -> bool:
        """Give the lock of a mark back; whether it was held."""
        file = self._open.pop(slide, None)
        if file is not None:
            file.close()
        return file is not None

    def _is_another_runs(self, job: Job) -> bool:
        """Whether the mark of a slide is that of a run which lives."""
        try:
            with self._run.mark_path(job.slide_id).open("rb") as file:
                return not _locked(file)
        except OSError:
            return False

    def _died(self, job: Job) -> int:
        """How many processes died in a row with the slide open, since it last gave an answer; 0 for another file."""
        path = self._run.mark_path(job.slide_id)
        try:
            mark = self._written.get(job.slide_id) or Mark.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, ValidationError):
            return 1  # the process died while it wrote it
        if mark.stamp != stamp_of(job.sample.path):
            return 0
        return 1 if self._answers(job) > mark.answers else mark.deaths + 1

    def _answers(self, job: Job) -> int:
        path = self._run.slide(job.slide_id).journal_path
        if not path.is_file():
            return 0
        with contextlib.suppress(WsiChatError), Journal(path, read_only=True) as journal:
            return len(journal)
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for slide in tuple(self._open):
            self._remove(slide)


def _locked(file: IO[bytes]) -> bool:
    """Take the lock of a mark; False where another run has it. A file system without locks tells nobody apart."""
    try:
        take_lock(file)
    except OSError:
        return False
    return True
