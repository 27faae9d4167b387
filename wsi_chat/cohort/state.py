"""What is known of each slide of a cohort, on disk beside its results: where it stands, why, and how long it took.

A slide counts as done only while its report is there, of the same scan and the same settings; whatever cannot be
shown to be so is done again, from its journal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, field_validator

from tilers.listing import LISTING
from wsi_chat.analysis.earlier_documents import EarlierDocuments
from wsi_chat.analysis.provenance import config_of, system_stamp, versions
from wsi_chat.analysis.pseudonyms import names_of
from wsi_chat.analysis.result import SlideResult, load_result
from wsi_chat.analysis.run_folder import RUN_HINT, RunFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.summary import LACKING
from wsi_chat.analysis.supplied import check_preparation
from wsi_chat.atomic import write_text
from wsi_chat.errors import OutputError, SlideError, WsiChatError, as_utf8
from wsi_chat.names import Names, from_home
from wsi_chat.schema import Record
from wsi_chat.settings import Settings
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from wsi_chat.engines.model import Model
    from wsi_chat.schema import Report

log = logging.getLogger(__name__)

Status = Literal["queued", "running", "done", "failed", "indeterminate"]


class SlideState(Record):
    """One slide's ``state.json``.

    ``status`` is ``indeterminate`` where the slide was finished without a verdict because of the run, as
    `indeterminate_by_error` says (a verdict that is in doubt for other reasons is ``done``). ``stamp`` is the file's
    (bytes, mtime in ns) when it was last looked at, None where it was not there. ``row`` is what summary.csv says of
    it; ``unwritten`` names documents that were asked for and could not be made, ``documents`` those that were written.
    """

    slide_id: str
    sample_id: str
    file: str
    status: Status = "queued"
    reason: str = ""
    error: str = ""
    seconds: float | None = None
    key: str = ""
    fingerprint: str = ""
    stamp: tuple[int, int] | None = None
    row: dict[str, Any] = Field(default_factory=dict)
    unwritten: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    @field_validator("row")
    @classmethod
    def _can_be_shown(cls, row: dict[str, Any]) -> dict[str, Any]:
        """A damaged row is told from a sound one before a table or a page is made of it."""
        odd = [name for name, value in row.items() if not isinstance(value, str | int | float | None)]
        if odd:
            raise ValueError(f"row: {odd[0]} is no single value")
        if row.get("score") and not math.isfinite(float(row["score"])):
            raise ValueError(f"row: score is {row['score']!r}")
        return row

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed", "indeterminate")

    @property
    def worth_repeating(self) -> bool:
        """Whether it failed, or lacks tiles or answers that a rerun tries again. A sample stays a sample.

        A row of an earlier version names no rules: there every slide that is indeterminate because of the run.
        """
        rules = {rule.strip() for rule in str(self.row.get("rules") or "").split(";")} - {""}
        return self.status == "failed" or (self.status == "indeterminate" and (not rules or bool(rules & LACKING)))


@dataclass(frozen=True, slots=True)
class Job:
    """One slide to do: which, with which settings, the key of all that determines its answers, and its names."""

    sample: Sample
    settings: Settings
    key: str
    names: Names

    @property
    def slide_id(self) -> str:
        return self.sample.slide_id

    def state(self, **values: Any) -> SlideState:
        """A state of this slide."""
        base = {
            "slide_id": self.slide_id, "sample_id": as_utf8(self.sample.sample_id),
            "file": self.sample.file_name,
            "key": self.key, "stamp": stamp_of(self.sample.path),
        }  # fmt: skip
        return SlideState(**(base | values))


def make_job(sample: Sample, run: RunFolder, settings: Settings, model: Model, *, model_id: str) -> Job:
    """The settings of one slide (its row's mpp and specimen go before the run's) and their key.

    Raises:
        SettingError: a setting does not go with the slide's specimen.
    """

    own = {"mpp": sample.mpp, "specimen": sample.specimen}
    chosen = settings.model_copy(update={name: value for name, value in own.items() if value is not None})
    system = load_system(chosen.specimen)
    check_preparation(chosen, system)
    content = {
        "config": config_of(chosen),
        "model": model_id,
        "prompts": model.dialect.prompts_sha256,
        "reporting_system": system_stamp(system),
    }
    if files := _named_files(chosen):
        content["files"] = files
    text = json.dumps(content, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Job(sample, chosen, key, names_of(sample, run, chosen))


def _named_files(settings: Settings) -> dict[str, Any]:
    """Setting -> stamp of the file that it names: another one under the same name makes another report."""
    named = {name: getattr(settings, name) for name in ("box_precision", "font_path", "positive_controls")}
    return {
        name: [(path.name, stamp_of(path)) for path in _files(from_home(value))]
        for name, value in named.items()
        if isinstance(value, str) and "=" not in value and from_home(value).exists()
    }


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Bytes and modification time, None where there is no such file.

    Of a folder its own entry; of a specimen of several photographs the sum of their bytes and the latest time.
    """
    try:
        if path.is_dir() or path.suffix.lower() == LISTING:
            return _stamp_of_fields(path) or (path.stat().st_size, path.stat().st_mtime_ns)
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _stamp_of_fields(path: Path) -> tuple[int, int] | None:
    from tilers.photographs import fields_of

    try:
        found = [field.stat() for field in fields_of(path) if field.is_file()]
    except SlideError:
        return None
    return (sum(f.st_size for f in found), max(f.st_mtime_ns for f in found)) if found else None


def write_state(run: RunFolder, state: SlideState) -> SlideState:
    """Write a slide's state into its folder, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(run.slide(state.slide_id).state_path, state.model_dump_json(indent=1) + "\n", hint=RUN_HINT)
    return state


def read_state(run: RunFolder, slide: str) -> SlideState | None:
    """What is on disk; None where there is nothing that can be used."""
    path = run.slide(slide).state_path
    try:
        return SlideState.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        log.warning("%s cannot be used and is written anew: %s", path, str(error).splitlines()[0])
        return None


def settled(job: Job, run: RunFolder, *, retry_failed: bool) -> SlideState | None:
    """The state of a slide that need not be done again; None where it must.

    Done slides stay done while settings and scan are the same; a scan that is not there now is not held against
    its result. Failed ones stay failed while the file has not changed, unless ``retry_failed``, which also has slides
    done again that lack tiles or answers.
    """
    if job.settings.overwrite:
        return None
    state = read_state(run, job.slide_id)
    if state is None or not state.finished or state.key != job.key:
        return None
    if retry_failed and state.worth_repeating:
        return None
    now = stamp_of(job.sample.path)
    if state.status == "failed":
        # a full disk or a folder in use is not the slide's fault, and may be over
        same = now is not None and now == state.stamp and state.error != OutputError.__name__
        return _renamed(state, job) if same else None
    if not _report_stands(job, run, state):
        return None
    if now is None:
        log.warning("%s is not there now; its earlier result is kept", job.sample.path)
    elif (now != state.stamp or not job.sample.path.is_file()) and _fingerprint(job) != state.fingerprint:
        return None
    return _renamed(state, job)


def stands(job: Job, run: RunFolder) -> SlideResult | None:
    """The result of a slide that is named again while nothing about it has changed; None where it must be done.

    A rerun would ask nothing and write the same: same file, settings, model and versions, every tile and question
    answered, every document and the journal where they were.
    """
    if not job.key:
        return None
    state = settled(job, run, retry_failed=False)
    folder = run.slide(job.slide_id)
    if state is None or state.status == "failed" or state.unwritten or not state.documents:
        return None
    if not folder.journal_path.is_file():
        return None
    stamp = stamp_of(job.sample.path)
    if stamp is None or stamp != state.stamp:  # of a file that says nothing of its changes, nothing is known
        return None
    if set(state.documents) - {path.name for path in folder.documents}:
        return None
    try:
        result = load_result(folder.path, slide=job.sample.path)
    except WsiChatError:
        return None
    report, wanted = result.report, job.settings.engine
    if wanted not in ("auto", report.provenance.model.engine) or report.provenance.versions != versions():
        return None
    return result if _all_answered(report) else None


def _all_answered(report: Report) -> bool:
    """Whether a rerun would find nothing to try again."""
    funnel = report.funnel
    missing = funnel.unreadable + funnel.screen_failed + funnel.detail_failed
    missing += funnel.adequacy_drawn - funnel.adequacy_counted
    return not missing and (report.controls is None or not report.controls.missing)


def _renamed(state: SlideState, job: Job) -> SlideState:
    """The manifest may have given the slide another id since."""
    return state.model_copy(update={"sample_id": job.sample.sample_id})


def _report_stands(job: Job, run: RunFolder, state: SlideState) -> bool:
    """Whether report.json is there, whole, and of this scan and these settings."""
    report = EarlierDocuments(run.slide(job.slide_id))
    same: Mapping[str, Any] = {"config": config_of(job.settings)}
    return (
        report.there and report.agree("provenance", same) and report.agree("slide", {"fingerprint": state.fingerprint})
    )


def _fingerprint(job: Job) -> str:
    from tilers import open_slide

    try:
        with open_slide(
            job.sample.path, mpp=job.settings.mpp, reader=job.settings.reader, trial=job.settings.trial
        ) as slide:
            return slide.fingerprint
    except WsiChatError:
        return ""
