"""The command ``wsi-chat report``: a slide's documents again, from its run folder and without asking the model.

Only ``--narrative model`` asks, once, and through the run's journal. Where nothing changes the files come out byte
for byte as they were.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilers import open_slide
from wsi_chat.analysis.ancillary import read_ancillary
from wsi_chat.analysis.narrator import stored_pictures, write_narrative
from wsi_chat.analysis.outputs import is_dicom, rebuild_documents
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.commands.console import EXIT_PARTIAL, say, say_json
from wsi_chat.commands.options import Json, SlideNow, with_settings
from wsi_chat.engines.model import Model
from wsi_chat.errors import AnswerError, SettingError, TerminologyError, WsiChatError
from wsi_chat.journal import Journal
from wsi_chat.remarks import LANGUAGES
from wsi_chat.schema import Language, Report, TileVerdict
from wsi_chat.settings import FORMATS, resolve
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from wsi_chat.engines import Engine
    from wsi_chat.terminology import System

log = logging.getLogger(__name__)

REBUILT = ("format", "language", "narrative", "ancillary", "model", "dialect", "font_path")
"""Settings that apply to documents made again; what is not given stays as it was in the run."""


@with_settings(
    *REBUILT,
    words={
        "model": "Checkpoint that writes the narrative.",
        "format": "Documents to write, separated by commas; DICOM objects only for a DICOM slide.",
    },
    defaults={
        "language": "the report's", "narrative": "as stored", "model": "the run's", "ancillary": "the report's",
        "format": "all",
    },
)  # fmt: skip
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder of a slide, OUT/<slide id>.")],
    slide: SlideNow = None,
    json_: Json = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Write a slide's documents again from its run folder, e.g. in another language.

    No model is asked, except by --narrative model.
    """
    effective, origin = resolve(settings, config=config, environ=os.environ)
    given = {name: getattr(effective, name) for name in REBUILT if name in origin}
    formats = given.pop("format", None)
    payload, lines, code = run_report(folder, formats=",".join(formats) if formats else None, slide=slide, **given)
    if json_:
        say_json(payload)
    else:
        for line in lines:
            say(line)
    raise typer.Exit(code)


def run_report(
    folder: Path,
    *,
    language: str | None = None,
    narrative: str | None = None,
    formats: str | None = None,
    model: str | None = None,
    dialect: str = "auto",
    engine: Engine | None = None,
    ancillary: Sequence[str] = (),
    slide: Path | None = None,
    font_path: str | None = None,
) -> tuple[dict[str, Any], list[str], int]:
    """Write a slide's documents again.

    Args:
        folder: ``OUT/<slide id>``.
        language: ``en`` or ``zh``; None keeps the report's.
        narrative: ``template`` or ``model``; None keeps the stored sentences where the language stays.
        formats: comma-separated out of pdf, html, json, dicom; None is all of them, DICOM where the slide is DICOM.
        model: the checkpoint that writes a ``model`` narrative; None takes the run's.
        engine: one that is already loaded, in place of ``model``.
        ancillary: as of `wsi_chat.analysis.ancillary.read_ancillary`; empty keeps the report's.
        slide: where the slide file is now; None takes the place that run.json remembers.

    Returns:
        What was written and what was not, as data and as lines; and the exit code, 3 where something was not.

    Raises:
        OutputError: the folder is no slide's run folder, or its report cannot be read.
        SettingError: a language, a format or a result that cannot be used.
    """
    from reports import Words

    wanted = FORMATS if formats is None else resolve({"format": formats})[0].format
    files = SlideFolder(folder)
    report = files.read_report()
    chosen = _language(language, report)
    tiles = files.read_tiles()
    system = _system_of(report, needed=chosen != report.language or narrative is not None or bool(ancillary))
    slide_path = _slide_of(files, slide)
    told = _retold(report, tiles, system, chosen, narrative, read_ancillary(ancillary))
    if narrative == "model" and system is not None:
        told = _written_by_model(
            told, tiles, system, files, model=model, dialect=dialect, engine=engine, slide_path=slide_path
        )
    if formats is None:
        dicom = is_dicom(report.slide.file_name)
        wanted = tuple(name for name in FORMATS if name != "dicom" or dicom)
    written, failed = rebuild_documents(
        told,
        tiles,
        files,
        formats=wanted,
        words=Words(chosen, system),
        redraw=chosen != report.language,
        font_path=font_path,
        slide_path=slide_path,
    )
    payload: dict[str, Any] = {"folder": str(folder), "written": [str(path) for path in written], "not_written": failed}
    lines = [str(path) for path in written] + [f"not written: {line}" for line in failed]
    if told.narrator is not None and narrative == "model":
        lines.append(f"narrative: {told.narrator.kept} sentences kept, {told.narrator.replaced} replaced")
        payload["narrator"] = told.narrator.model_dump()
    return payload, lines, EXIT_PARTIAL if failed else 0


def _language(text: str | None, report: Report) -> Language:

    for language in LANGUAGES:
        if language == (text or report.language):
            return language
    raise SettingError(f"--language {text!r} is not known.", hint=f"Choose one of: {', '.join(LANGUAGES)}.")


def _system_of(report: Report, *, needed: bool) -> System | None:
    """The report's reporting system; None where its file is gone and nothing has to be said anew."""

    code = report.specimen.code
    try:
        return load_system(None if code == "unspecified" else code)
    except (TerminologyError, SettingError) as error:
        if needed:
            raise SettingError(
                f"The reporting system of this report ({code}) cannot be read: {error.message}",
                hint="Put its file back; without it the report can only be written again as it is.",
            ) from error
        log.warning("the reporting system %s cannot be read; its names are taken from the report", code)
        return None


def _slide_of(folder: SlideFolder, given: Path | None) -> Path | None:
    """Where the slide file is, or None."""
    if given is not None and not given.exists():
        raise SettingError(f"--slide {given}: there is no such file.", hint="Name the slide, or leave it out.")
    place = folder.slide_file(given)
    return place if place is not None and place.exists() else None


def _retold(
    report: Report,
    tiles: list[TileVerdict],
    system: System | None,
    language: Language,
    narrative: str | None,
    ancillary: tuple[str, ...],
) -> Report:
    """The report in the language asked for; its sentences stay as stored where nothing about them changes."""
    from reports import narrate

    if narrative not in (None, "template", "model"):
        raise SettingError(f"--narrative {narrative!r} is not known.", hint="Choose template or model.")
    if language == report.language and narrative is None and not ancillary:
        return report
    if system is None:
        raise AnswerError("without its reporting system the narrative cannot be told anew")
    if report.narrator is not None and report.narrator.kept and narrative is None:
        log.warning("the model's narrative is replaced by the template's; --narrative model would ask it again")
    told = report.model_copy(
        update={"language": language, "ancillary": ancillary or report.ancillary, "narrator": None, "narrative": ()}
    )
    return told.model_copy(update={"narrative": narrate(told, tiles, system)})


def _written_by_model(
    report: Report,
    tiles: list[TileVerdict],
    system: System,
    folder: SlideFolder,
    *,
    model: str | None,
    dialect: str,
    engine: Engine | None,
    slide_path: Path | None,
) -> Report:
    """The narrative by a model; pictures come from the slide, or from the gallery where the slide is gone."""

    config = folder.settings_of(report)
    settings, _ = resolve({"model": model or config.get("model"), "dialect": dialect, "seed": report.provenance.seed})
    loaded = Model(settings, given=engine)
    try:
        mute = not loaded.dialect.narrates
        pictures = _pictures(report, tiles, slide_path, loaded.dialect.tile_px) if not mute else []
        with Journal(folder.journal_path) as journal:
            return write_narrative(
                report,
                tiles,
                system,
                engine=None if mute else loaded.engine,
                dialect=loaded.dialect,
                journal=journal,
                pictures=pictures or ([] if mute else stored_pictures(report, folder.path)),
                decoding={"greedy": True, "seed": report.provenance.seed},
            )
    finally:
        loaded.close()


def _pictures(report: Report, tiles: list[TileVerdict], slide_path: Path | None, px: int) -> list[Any]:
    from wsi_chat.analysis.narrator import pictures_of

    if slide_path is None:
        log.warning("the slide %s is not where it was: the model sees the stored crops", report.slide.file_name)
        return []
    try:
        with open_slide(slide_path, mpp=report.slide.mpp) as slide:
            return list(pictures_of(report, slide, tiles, px=px))
    except WsiChatError as error:
        log.warning("the slide cannot be read (%s): the model sees the stored crops", error.message)
        return []
