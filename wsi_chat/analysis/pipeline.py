"""ask_slide() and what it gives: the one path from a slide file to a verdict and its documents.

Nothing already computed is lost: answers are journalled as they come, and a rerun of the same command resumes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.box_precision import read_box_precision
from wsi_chat.analysis.causes import causes_of_failure
from wsi_chat.analysis.controls import positive_controls
from wsi_chat.analysis.earlier_documents import EarlierDocuments
from wsi_chat.analysis.outputs import missing_font, write_documents
from wsi_chat.analysis.preparation import Prepared, prepare_slide
from wsi_chat.analysis.provenance import config_of
from wsi_chat.analysis.questions import ask_about_tiles
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.scope import checkpoint_folder, read_scope
from wsi_chat.analysis.slide_score import SlideScore
from wsi_chat.analysis.stages import Clock, Judged, judge, narrate_by_model, ready_to_ask
from wsi_chat.errors import SettingError, SlideNotFound
from wsi_chat.names import Names
from wsi_chat.progress import Progress, no_progress
from wsi_chat.settings import Settings
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from wsi_chat.engines.model import Model


log = logging.getLogger(__name__)


def check_settings(settings: Settings, model: Model) -> SlideScore:
    """Find what would be wrong with every slide before the first is opened; gives the score that the settings name.

    Raises:
        SettingError: a pool, an aggregator, a scope, a control, a precision of boxes or a result of another test
            cannot be used.
    """
    from aggregators.pooling import find_pool

    find_pool(settings.pool)
    system = load_system(settings.specimen)
    read_box_precision(settings.box_precision, known=[label.code for label in system.labels])
    read_ancillary(settings.ancillary)
    folder = checkpoint_folder(settings, model)
    read_scope(settings, folder)
    if settings.controls:
        positive_controls(settings, system, folder=folder)
    score = SlideScore.load(settings)
    score.require_features(model)
    return score


@dataclass(frozen=True, slots=True)
class AskedSlide:
    """A slide whose verdict is drawn and whose documents are still to be written; another may be asked about meanwhile.

    It holds the open slide and the journal's lock: `document` or `close` it.
    """

    judged: Judged
    path: Path
    earlier: EarlierDocuments
    resources: ExitStack

    def document(self) -> SlideResult:
        """Write the documents; needs no engine, and may be called on another thread than the one that asked."""
        with self.resources:
            unwritten = write_documents(self.judged)
            self.earlier.forget()
        return SlideResult(
            report=self.judged.report,
            folder=self.judged.run.folder.path,
            slide_path=self.path,
            unwritten=tuple(unwritten.lines),
            notes=tuple(unwritten.notes),
        )

    def close(self) -> None:
        """Leave it as it is, without documents; every answer is kept."""
        self.resources.close()


def ask_slide(
    path: Path,
    run: RunFolder,
    settings: Settings,
    model: Model,
    *,
    name: str,
    names: Names,
    progress: Progress = no_progress,
    prepared: Callable[[], Prepared] | None = None,
) -> AskedSlide:
    """One slide of a run whose folder, settings and model are already there, up to its verdict.

    Args:
        name: the slide's id.
        names: what it is called in documents, and what must not show there.
        prepared: gives the slide as `prepare_slide` left it (or raises what that raised); None prepares it now.
    """
    clock = Clock()
    score = check_settings(settings, model)
    no_pdf = missing_font(settings)
    folder = run.slide(name)
    earlier = EarlierDocuments(folder)
    earlier.expect("provenance", {"config": config_of(settings)})

    def prepare() -> Prepared:
        return prepare_slide(path, settings, model.dialect, names=names, progress=progress)

    with ExitStack() as stack:
        slide = stack.enter_context(_opened(prepared or prepare, earlier, path))
        asking = stack.enter_context(
            ready_to_ask(slide, folder, settings, model, score, earlier=earlier, clock=clock, progress=progress)
        )
        detailed = ask_about_tiles(asking)
        for cause in causes_of_failure(detailed.tile_verdicts):
            log.warning("%s: %s", slide.slide.name, cause)
        judged = judge(detailed, notes=(no_pdf,) if no_pdf else ())
        if settings.narrative == "model":
            judged = narrate_by_model(judged)
        return AskedSlide(judged, path, earlier, stack.pop_all())


@contextmanager
def _opened(prepared: Callable[[], Prepared], earlier: EarlierDocuments, path: Path) -> Iterator[Prepared]:
    """The prepared slide, closed at the end.

    Where it cannot be prepared, what an earlier run wrote stays if the scan is the same one: what this run asks for (a
    reader, a focal plane) is at fault. Where the scan is no longer to be read, or is another one, it is set aside.
    """
    try:
        slide = prepared()
    except (SlideNotFound, SettingError):
        raise  # a disk that is not connected, or a typing error, says nothing against what was found
    except Exception:
        if not earlier.is_of(path):
            earlier.set_aside()
        raise
    try:
        yield slide
    finally:
        slide.close()
