"""analyze_cohort(): the one path from a manifest or a folder to a run folder with every slide's documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from wsi_chat.analysis.manifest import Sample, read_manifest
from wsi_chat.analysis.pipeline import DEFAULT_OUT
from wsi_chat.analysis.run_folder import open_folder, write_run, write_summary
from wsi_chat.cohort.local import AHEAD, run_local
from wsi_chat.cohort.page import write_index
from wsi_chat.cohort.result import CohortResult, columns_of
from wsi_chat.cohort.search import find_slides
from wsi_chat.cohort.state import Job, SlideState, make_job, settled, write_state
from wsi_chat.engines.model import Model
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.progress import Progress, no_progress
from wsi_chat.settings import Settings, check_names, resolve

if TYPE_CHECKING:
    from wsi_chat.engines import Engine

Executor = Literal["local", "ray"]
PAGE_SECONDS = 30.0  # between two writings of index.html; it holds every slide's picture
LOCK = ".cohort.lock"


class Watcher(Protocol):
    """Who is told how the cohort goes."""

    def planned(self, total: int, settled: Sequence[SlideState]) -> None:
        """Before the first slide: how many there are, and which need not be done again."""

    def begun(self, sample: Sample) -> Progress:
        """A slide's turn has come; the function returned is told its progress."""

    def ended(self, state: SlideState) -> None:
        """A slide is finished."""


class Silent:
    """The default watcher: nobody is told."""

    def planned(self, total: int, settled: Sequence[SlideState]) -> None: ...

    def begun(self, sample: Sample) -> Progress:
        return no_progress

    def ended(self, state: SlideState) -> None: ...


def analyze_cohort(
    source: str | Path | Sequence[str | Path],
    *,
    out: str | Path = DEFAULT_OUT,
    engine: Engine | Callable[[], Engine] | str | None = None,
    config: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    retry_failed: bool = False,
    executor: Executor = "local",
    actors: int | None = None,
    ray_address: str | None = None,
    ahead: int = AHEAD,
    watcher: Watcher | None = None,
    **settings: Any,
) -> CohortResult:
    """Analyze many slides into one run folder. Slides that are done already are not done again.

    Args:
        source: a manifest (CSV), a folder that is searched for slides, or paths of slides.
        out: the run folder; ``out/<slide id>/`` per slide, ``summary.csv`` and ``index.html`` above them.
        engine: an engine that is loaded already (one for all slides), or a function that loads one: each Ray worker
            calls it for its own. A name (``transformers``) is the setting; None loads the one that the settings name.
        config: a YAML file of settings. ``environ``: an environment to look for ``WSI_CHAT_*`` in.
        retry_failed: do failed slides, and those indeterminate by error, again though their files are the same.
        executor: ``local``, or ``ray``: see `wsi_chat.cohort.on_ray`.
        actors, ray_address: Ray workers (default: one per GPU) and the cluster (default: one on this machine).
        ahead: slides that are opened, planned and begun to be read while another is asked about (local only).
        watcher: told how it goes.
        **settings: any field of `wsi_chat.settings.Settings`; a row's own mpp and specimen go before them.

    Returns:
        One state per slide; ``.table`` for notebooks, ``.failures`` for what went wrong. After an interrupt
        (Ctrl-C), what there is, with ``interrupted`` set.

    Raises:
        SettingError: the manifest, a setting or the executor cannot be used; before anything runs.
        OutputError: the run folder cannot be written, or another cohort is writing it.
        EngineError: the engine cannot be loaded, or died; everything so far is kept.
    """
    if isinstance(engine, str):
        settings["engine"], engine = engine, None
    check_names(settings, "analyze_cohort()")
    if executor not in ("local", "ray"):
        raise SettingError(f"--executor {executor!r} is not known.", hint="Choose local or ray.")
    effective, origin = resolve(settings, config=Path(config) if config else None, environ=environ)
    samples = _samples(source, Path(out))
    model = _model(effective, engine, executor)
    _check_settings(effective, model)
    folder = open_folder(Path(out))
    with _only_writer(folder):
        try:
            jobs = _jobs(samples, effective, model)
            known = {job.slide_id: str(job.sample.path) for job in jobs}
            write_run(folder, config=effective.model_dump(mode="json"), origin=origin, slides=known)
            book = _Book(folder, jobs, watcher or Silent(), retry_failed=retry_failed)
            try:
                if executor == "ray":
                    from wsi_chat.cohort.on_ray import run_on_ray

                    ended = run_on_ray(book.to_do, folder, model, actors=actors, address=ray_address, begun=book.begun)
                else:
                    ended = run_local(book.to_do, folder, model, ahead=ahead, begun=book.begun)
                for state in ended:
                    book.enter(state)
            except KeyboardInterrupt:
                book.interrupted = True
            finally:
                book.close()
        finally:
            model.close()
    return book.result()


def _samples(source: str | Path | Sequence[str | Path], out: Path) -> tuple[Sample, ...]:
    if not isinstance(source, str | Path):
        paths = [Path(path).expanduser().absolute() for path in source]
        twice = [path for path in paths if paths.count(path) > 1]
        if twice or not paths:
            raise SettingError(f"{twice[0]} is named twice." if twice else "No slide is named.", hint="Name each once.")
        return tuple(replace(Sample("", path), sample_id=Sample("", path).slide_id) for path in paths)
    source = Path(source).expanduser()
    if source.is_dir():
        return find_slides(source, skip=out)
    if not source.exists():
        raise SettingError(f"There is no manifest or folder {source}.", hint="Check the path and its spelling.")
    return read_manifest(source)


def _check_settings(settings: Settings, model: Model) -> None:
    """What would be wrong with every slide is said before the first."""
    from aggregators.pooling import find_pool
    from wsi_chat.analysis.ancillary import read_ancillary
    from wsi_chat.analysis.box_precision import read_box_precision
    from wsi_chat.analysis.feature_keeper import wants_features
    from wsi_chat.analysis.slide_score import load_for
    from wsi_chat.terminology import load_system

    find_pool(settings.pool)
    read_ancillary(settings.ancillary)
    wants_features(settings, load_for(settings), model)
    system = load_system(settings.specimen)
    read_box_precision(settings.box_precision, known=[label.code for label in system.labels])


def _model(settings: Settings, engine: Engine | Callable[[], Engine] | None, executor: Executor) -> Model:
    from wsi_chat.engines import Engine as AnyEngine

    if engine is None:
        return Model(settings)
    if isinstance(engine, AnyEngine):
        if executor == "ray":
            raise SettingError(
                "A loaded engine cannot be sent to Ray workers.", hint="Give a function that loads one: engine=load."
            )
        return Model(settings, given=engine)
    return Model(settings, start=engine)


def _jobs(samples: Sequence[Sample], settings: Settings, model: Model) -> list[Job]:
    model_id = _model_id(settings, model)
    return [make_job(sample, settings, model, model_id=model_id) for sample in samples]


def _model_id(settings: Settings, model: Model) -> str:
    """What tells one model (and aggregator) from another without loading it; one replaced under its name is another."""
    from wsi_chat.analysis.slide_score import folder_of_aggregator
    from wsi_chat.engines import find_checkpoint
    from wsi_chat.engines.checkpoint import revision

    adapter = None if settings.adapter is None else Path(settings.adapter)
    parts = [revision(folder) for folder in (adapter, folder_of_aggregator(settings)) if folder and folder.is_dir()]
    if model.given is not None:
        parts.append(model.given.model_id)
    elif model.start is not None:
        parts.append("loaded by the caller")
    elif settings.base_url is not None:
        parts.append(f"{settings.model} at {settings.base_url}")
    else:
        folder = find_checkpoint(settings.model)
        parts.append(revision(folder) if folder.is_dir() else str(settings.model))
    return " ".join(parts)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Two cohorts in one folder would take each other's slides for their own dead ones."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"-o {out}: another cohort is being written there.", hint="Wait for it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


class _Book:
    """The states of a cohort in order, on disk after every slide: summary.csv always, index.html now and then."""

    def __init__(self, out: Path, jobs: Sequence[Job], watcher: Watcher, *, retry_failed: bool) -> None:
        self.out = out
        self.interrupted = False
        self._watcher = watcher
        self._jobs = {job.slide_id: job for job in jobs}
        self._states: dict[str, SlideState] = {}
        self._page_at = time.monotonic()
        done: list[SlideState] = []
        self.to_do: list[Job] = []
        for job in jobs:
            state = settled(job, out, retry_failed=retry_failed)
            if state is None:
                state = write_state(out, job.state())
                self.to_do.append(job)
            else:
                done.append(state)
            self._states[job.slide_id] = state
        watcher.planned(len(jobs), done)
        self._write_summary()
        self._write_page()

    def begun(self, job: Job) -> Progress:
        self._states[job.slide_id] = job.state(status="running")
        self._write_summary()
        return self._watcher.begun(job.sample)

    def enter(self, state: SlideState) -> None:
        self._states[state.slide_id] = state
        self._write_summary()
        if time.monotonic() - self._page_at > PAGE_SECONDS:
            self._write_page()
        self._watcher.ended(state)

    def close(self) -> None:
        """What was under way when the run ended is queued again; both files say how it stands."""
        for key, state in self._states.items():
            if state.status == "running":
                reason = "the run ended before it was finished; its answers so far are kept"
                self._states[key] = write_state(self.out, self._jobs[key].state(reason=reason))
        self._write_summary()
        self._write_page()

    def result(self) -> CohortResult:
        samples = tuple(job.sample for job in self._jobs.values())
        return CohortResult(self.out, samples, tuple(self._states.values()), interrupted=self.interrupted)

    def _write_summary(self) -> None:
        result = self.result()
        write_summary(self.out, result.rows, columns=columns_of(result.samples), keep_earlier=False)

    def _write_page(self) -> None:
        write_index(self.result())
        self._page_at = time.monotonic()
