"""The slides one after another on one engine: while one is asked about, the next one is being read, and the documents
of the one before are written.

A slide with which a process died comes last and alone; see `wsi_chat.cohort.deaths`. At most `AHEAD` slides are open
and read ahead, each bounded by its stream's own limit, and at most two wait for their documents: memory does not grow
with the cohort.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.cohort.attempt import Outcome, ask, failed
from wsi_chat.cohort.deaths import Deaths
from wsi_chat.cohort.state import Job, write_state
from wsi_chat.engines.model import Model
from wsi_chat.progress import Progress

if TYPE_CHECKING:
    from wsi_chat.analysis.preparation import Prepared

AHEAD = 1


def run_local(
    jobs: Iterable[Job],
    run: RunFolder,
    model: Model,
    *,
    ahead: int = AHEAD,
    forgive: bool = False,
    begun: Callable[[Job], Progress],
    ended: Callable[[Outcome], None],
) -> None:
    """Do the slides in order, but for those with which a process died.

    Args:
        forgive: take no notice of processes that died.
        ahead: slides prepared beside the one that is asked about; 0 prepares each when its turn comes.
        begun: called when a slide's turn comes; gives the function that its progress is reported to.
        ended: called with how each slide ended, in order, on the thread that wrote its documents: the next slide is
            under way by then.

    Raises:
        EngineError, OutputError, KeyboardInterrupt: the run ended early; slides that were not asked about to the end
            are queued.
    """
    with Deaths(run) as deaths:
        calm, alone, refused = deaths.tell_apart(jobs, forgive=forgive)
        for job in refused:
            begun(job)
            error = deaths.refusal(job)
            ended(Outcome(write_state(run, failed(job, run, error)), error=error))
        for group in (calm, *([job] for job in alone)):
            _do(group, run, model, deaths, ahead=ahead, begun=begun, ended=ended)


def _do(
    jobs: Iterable[Job],
    run: RunFolder,
    model: Model,
    deaths: Deaths,
    *,
    ahead: int,
    begun: Callable[[Job], Progress],
    ended: Callable[[Outcome], None],
) -> None:
    def finish(job: Job, document: Callable[[], Outcome]) -> None:
        outcome = document()
        deaths.end(job)
        ended(outcome)

    with (
        Ahead(jobs, model, ahead=ahead, begin=deaths.begin) as queue,
        ThreadPoolExecutor(1, thread_name_prefix="documents") as writer,
    ):
        before: Future[None] | None = None
        for job, prepared in queue:
            document = ask(job, run, model, prepared=prepared, progress=begun(job))
            after = writer.submit(finish, job, document)
            if before is not None:  # no more than one slide waits for its documents
                before.result()
            before = after
        if before is not None:
            before.result()


class Ahead:
    """Iterate over (job, function that gives its prepared slide); prepares up to ``ahead`` jobs on one thread.

    A context manager: at its end, slides that were prepared are closed. ``begin`` is called before each is opened.
    """

    def __init__(
        self, jobs: Iterable[Job], model: Model, *, ahead: int, begin: Callable[[Job], None] = lambda job: None
    ) -> None:
        self._jobs = iter(jobs)
        self._model = model
        self._ahead = ahead
        self._begin = begin
        self._waiting: deque[tuple[Job, Future[Prepared]]] = deque(maxlen=max(1, ahead))
        self._taken: Future[Prepared] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-slide")

    def __iter__(self) -> Iterator[tuple[Job, Callable[[], Prepared]]]:
        while True:
            self._fill(1)
            if not self._waiting:
                return
            job, self._taken = self._waiting.popleft()
            self._fill(self._ahead)
            yield job, self._taken.result

    def _fill(self, count: int) -> None:
        while len(self._waiting) < count:
            job = next(self._jobs, None)
            if job is None:
                return
            self._waiting.append((job, self._thread.submit(self._prepare, job)))

    def _prepare(self, job: Job) -> Prepared:
        from wsi_chat.analysis.preparation import prepare_slide

        self._begin(job)
        return prepare_slide(job.sample.path, job.settings, self._model.dialect, names=job.names, read_ahead=True)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        open_still = [future for _, future in self._waiting] + ([self._taken] if self._taken else [])
        for future in open_still:
            with contextlib.suppress(CancelledError, Exception):
                future.result().close()
