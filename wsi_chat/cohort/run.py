"""One lifecycle for every run: one slide, slides named one by one, or a cohort, into one run folder.

`analyze` is the run over one path, `analyze_slides` over several, `analyze_cohort` over a manifest or a folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tilers.trial import needs_trial, trial
from wsi_chat.analysis.outputs import tell_missing_font
from wsi_chat.analysis.pseudonyms import everything_hidden, paths_in, pseudonyms_of
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import DEFAULT_OUT, RunFolder
from wsi_chat.analysis.run_log import hide_in_log
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.supplied import check_preparation
from wsi_chat.atomic import sweep
from wsi_chat.cohort.attempt import Outcome
from wsi_chat.cohort.book import Book, Silent, Watcher
from wsi_chat.cohort.jobs import as_shown, jobs_of, jobs_of_named, sample_of, samples_of
from wsi_chat.cohort.local import AHEAD, run_local
from wsi_chat.cohort.result import CohortResult
from wsi_chat.cohort.state import Job, read_state, stands
from wsi_chat.engines import Engine
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineError, OutputError, SettingError
from wsi_chat.locks import lock_file
from wsi_chat.names import without_folder
from wsi_chat.progress import Progress, no_progress
from wsi_chat.settings import Settings, check_names, resolve
from wsi_chat.terminology import load_system

log = logging.getLogger(__name__)

Executor = Literal["local", "ray"]


def analyze(
    slide: str | Path,
    *,
    out: str | Path = DEFAULT_OUT,
    engine: Engine | str | None = None,
    config: str | Path | None = None,
    progress: Progress = no_progress,
    **settings: Any,
) -> SlideResult:
    """Analyze one slide: tile, screen, detail, aggregate, report.

    Args:
        slide: the slide file (or OME-Zarr folder), or a folder of photographs, which are one specimen.
        out: the run folder; results go to ``out/<slide id>/``.
        engine: an engine that is already loaded; a name (``transformers``) is the setting; None loads the one that the
            settings name.
        config: a YAML file of settings.
        progress: called as ``progress(stage, done, total)``.
        **settings: any field of :class:`wsi_chat.settings.Settings`, e.g. ``specimen="cervix"``.

    Returns:
        The verdict with its report, findings and folder; draws itself in a notebook.

    Raises:
        WsiChatError: see :mod:`wsi_chat.errors`; the message names the file or setting and the way out.
        KeyboardInterrupt: every answer so far is saved, and the same call resumes.
    """
    watcher = _Single(progress)
    result = analyze_slides([slide], out=out, engine=engine, config=config, watcher=watcher, **settings)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.stopped_by is not None:
        raise result.stopped_by
    assert watcher.outcome is not None  # a run that was not stopped has ended every slide
    if watcher.outcome.error is not None:
        raise watcher.outcome.error
    assert watcher.outcome.result is not None
    return watcher.outcome.result


class _Single(Silent):
    """Follows the run of one slide."""

    def __init__(self, progress: Progress) -> None:
        self.outcome: Outcome | None = None
        self._progress = progress

    def begun(self, sample: Sample) -> Progress:
        return self._progress

    def ended(self, outcome: Outcome) -> None:
        self.outcome = outcome


def analyze_slides(
    slides: Sequence[str | Path],
    *,
    out: str | Path = DEFAULT_OUT,
    engine: Engine | Callable[[], Engine] | str | None = None,
    config: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    watcher: Watcher | None = None,
    **settings: Any,
) -> CohortResult:
    """Analyze slides that are named one by one. Each is done, also where it has a verdict; known answers are kept.

    Where an earlier run of the same model, settings and versions finished a slide and every document is still there,
    that result is given at once. They join those of earlier runs in ``run.json`` and ``summary.csv``. A slide that
    fails never stops the others.

    Args:
        slides: their files; one that is named twice is done once.
        out, engine, config, environ, watcher, settings: as in `analyze_cohort`.

    Returns:
        One state per slide. An engine that died or cannot be loaded ends the run: it is in ``stopped_by``. After an
        interrupt (Ctrl-C), what there is, with ``interrupted`` set.

    Raises:
        SettingError: a setting cannot be used; before anything runs.
        OutputError: the run folder cannot be written.
    """
    effective, origin, model = _resolved(settings, engine, config, environ)
    model.several = len(slides) > 1
    run = RunFolder(Path(out))
    fresh = not run.is_run  # nothing of it can be finished
    if fresh:
        _check(effective, model)
    run.open()
    samples = as_shown(map(sample_of, slides), pseudonyms_of(run, effective))
    jobs = jobs_of_named(samples, run, effective, model)
    hide_in_log(everything_hidden(job.names for job in jobs))
    standing = _standing(jobs, run)
    _start_trial(job for job in jobs if job.slide_id not in standing)
    if not fresh and len(standing) < len(jobs):
        _check(effective, model)
        check_preparation(effective, load_system(effective.specimen))
        model.check()
    book = Book(run, jobs, watcher or Silent(), whole=False, standing=standing)
    return _work_through(
        book,
        jobs,
        lambda: run_local(book.to_do, run, model, begun=book.begun, ended=book.enter),
        config=effective,
        origin=origin,
        model=model,
    )


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
        retry_failed: do failed slides, and those that lack tiles or answers, again though their files are the same.
        executor: ``local``, or ``ray``: see `wsi_chat.cohort.on_ray`.
        actors, ray_address: Ray workers (default: one per GPU) and the cluster (default: one on this machine).
        ahead: slides that are opened, planned and begun to be read while another is asked about (local only).
        watcher: follows the run as it goes.
        **settings: any field of `wsi_chat.settings.Settings`; a row's own mpp and specimen take precedence.

    Returns:
        One state per slide; ``.table`` for notebooks, ``.failures`` for what went wrong. After an interrupt
        (Ctrl-C), what there is, with ``interrupted`` set.

    Raises:
        SettingError: the manifest, a setting or the executor cannot be used; before anything runs.
        OutputError: the run folder cannot be written, or another cohort is writing it.
        EngineError: the engine cannot be loaded, or died; everything so far is kept.
    """
    if executor not in ("local", "ray"):
        raise SettingError(f"--executor {executor!r} is not known.", hint="Choose local or ray.")
    effective, origin, model = _resolved(settings, engine, config, environ, executor=executor)
    samples = samples_of(source, Path(out))
    model.several = True
    _check(effective, model)
    run = RunFolder(Path(out)).open()
    with _only_writer(run):
        samples = as_shown(samples, pseudonyms_of(run, effective), listings=run.listings_path)
        jobs = jobs_of(samples, run, effective, model)
        hide_in_log(everything_hidden(job.names for job in jobs))
        # Ray's workers have machines of their own, with other GPUs and packages than this one
        check = model.check if run.is_run and executor == "local" else None
        book = Book(run, jobs, watcher or Silent(), whole=True, retry_failed=retry_failed, check=check)

        def work() -> None:
            if executor == "local":
                _start_trial(book.to_do)
                run_local(
                    book.to_do,
                    run,
                    model,
                    ahead=ahead,
                    forgive=retry_failed,
                    begun=book.begun,
                    ended=book.enter,
                )
                return
            from wsi_chat.cohort.on_ray import run_on_ray

            for outcome in run_on_ray(
                book.to_do, run, model, actors=actors, address=ray_address, forgive=retry_failed, begun=book.begun
            ):
                book.enter(outcome)

        result = _work_through(book, jobs, work, config=effective, origin=origin, model=model)
    if result.stopped_by is not None:
        raise result.stopped_by
    return result


def _work_through(
    book: Book,
    jobs: Sequence[Job],
    work: Callable[[], None],
    *,
    config: Settings,
    origin: Mapping[str, str],
    model: Model,
) -> CohortResult:
    """Write run.json, do the slides, and leave every file as the run stands, however it ends."""
    sweep(book.run.path)
    try:
        slides = {job.slide_id: job.sample.path.resolve() for job in jobs if not job.sample.alias}
        files = {without_folder(path): path for job in jobs for path in paths_in(job.settings)}
        if config.base_url is not None:
            files[without_folder(config.base_url)] = config.base_url
        book.run.write_record(config=config.model_dump(mode="json"), origin=origin, slides=slides, files=files)
        if book.to_do:
            tell_missing_font(config)
        try:
            work()
        except KeyboardInterrupt:
            book.interrupted = True
        except EngineError as error:
            book.stopped_by = error
        finally:
            book.close()
    finally:
        model.close()
    return book.result()


def _resolved(
    settings: Mapping[str, Any],
    engine: Engine | Callable[[], Engine] | str | None,
    config: str | Path | None,
    environ: Mapping[str, str] | None,
    *,
    executor: Executor = "local",
) -> tuple[Settings, dict[str, str], Model]:
    """The effective settings, where each came from, and the model that they or the caller give."""
    named = {"engine": engine} if isinstance(engine, str) else {}
    check_names(settings, "analyze()")
    effective, origin = resolve({**settings, **named}, config=Path(config) if config else None, environ=environ)
    return effective, origin, _model(effective, None if isinstance(engine, str) else engine, executor)


def _check(settings: Settings, model: Model) -> None:
    from wsi_chat.analysis.pipeline import check_settings

    check_settings(settings, model)


def _standing(jobs: Sequence[Job], run: RunFolder) -> dict[str, Outcome]:
    """Slide id -> how it ended earlier, of the slides of which a rerun would find and write nothing new."""
    found = {}
    for job in jobs:
        result, state = stands(job, run), read_state(run, job.slide_id)
        if result is not None and state is not None:
            found[job.slide_id] = Outcome(state, result, earlier=True)
    return found


def _start_trial(jobs: Iterable[Job]) -> None:
    """The process that opens slides on trial comes up while this one still imports."""
    first = next(iter(jobs), None)
    if first is not None and first.settings.trial and needs_trial(first.sample.path):
        trial.start()


def _model(settings: Settings, engine: Engine | Callable[[], Engine] | None, executor: Executor) -> Model:

    if engine is None:
        return Model(settings)
    if isinstance(engine, Engine):
        if executor == "ray":
            raise SettingError(
                "A loaded engine cannot be sent to Ray workers.", hint="Give a function that loads one: engine=load."
            )
        return Model(settings, given=engine)
    return Model(settings, start=engine)


@contextmanager
def _only_writer(run: RunFolder) -> Iterator[None]:
    """Two cohorts in one folder would take each other's slides for their own dead ones."""
    with run.lock_path.open("ab") as file:
        try:
            lock_file(file)
        except OSError as error:
            raise OutputError(
                f"-o {run.path}: another cohort is being written there.", hint="Wait for it, or choose another folder."
            ) from error
        yield
