"""What analyze_cohort() returns: every slide's row, the failures among them, and the way to each slide's result."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.analysis.result import SlideResult, load_result
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.summary import COUNT, SUMMARY_COLUMNS, class_columns
from wsi_chat.cohort.state import SlideState
from wsi_chat.errors import SettingError, WsiChatError
from wsi_chat.names import without_folder

if TYPE_CHECKING:
    import pyarrow

# of the manifest, before what was found
OWN_COLUMNS = ("sample_id", "image_path", "label", "patient", "specimen", "mpp")
NUMBERS = frozenset({
    "score", "coverage", "seconds", "mpp", "fields", "fields_missing", "findings_abnormal",
    *(n for n in SUMMARY_COLUMNS if n.startswith("tiles_")),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class CohortResult:
    """A cohort's run folder and one state per slide, in the manifest's order.

    Attributes:
        out: the run folder, with summary.csv and index.html.
        samples, states: what was asked for, and what came of it.
        interrupted: the run was stopped before its end; the same call resumes it.
        stopped_by: the error that ended the run early (an engine that died or cannot be loaded), None where none did.
    """

    out: Path
    samples: tuple[Sample, ...]
    states: tuple[SlideState, ...]
    interrupted: bool = False
    stopped_by: WsiChatError | None = None

    @property
    def run(self) -> RunFolder:
        """Where each file of the run is."""
        return RunFolder(self.out)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """summary.csv: one row per slide, with the manifest's columns."""
        return [row_of(sample, state) for sample, state in zip(self.samples, self.states, strict=True)]

    @property
    def counts(self) -> dict[str, int]:
        """Number of slides per status: done, indeterminate (by error), failed, running, queued."""
        found = Counter(state.status for state in self.states)
        return {name: found[name] for name in ("done", "indeterminate", "failed", "running", "queued") if found[name]}

    @property
    def failures(self) -> tuple[SlideState, ...]:
        """Slides that failed, or are indeterminate because tiles or answers did; each with its ``reason``."""
        return tuple(state for state in self.states if state.status in ("failed", "indeterminate"))

    @property
    def table(self) -> pyarrow.Table:
        """The rows as a table; numbers are numbers, and missing where a slide has none (never 0)."""
        import pyarrow

        rows = self.rows
        names = (*columns_of(self.samples), *(name for name in class_columns(rows)))
        arrays = []
        for name in names:
            values = [row.get(name) for row in rows]
            counts = name in NUMBERS or name.startswith(COUNT)
            kind = pyarrow.float64() if counts else pyarrow.string()
            arrays.append(pyarrow.array([_typed(value, number=counts) for value in values], kind))
        return pyarrow.table(arrays, names=list(names))

    def result(self, sample_id: str) -> SlideResult:
        """One slide's result.

        Raises:
            SettingError: no slide has this id. OutputError: it has no report.
        """
        for sample in self.samples:
            if sample.sample_id == sample_id:
                return load_result(self.run.slide(sample.slide_id).path, slide=sample.path)
        raise SettingError(f"There is no slide {sample_id!r} in this cohort.", hint="See cohort.table['sample_id'].")

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        return f"<CohortResult {self.out}: {len(self.samples)} slides ({counts})>"

    def _repr_html_(self) -> str:
        shown = ("sample_id", "state", "status", "score", "category", "label", "patient", "seconds", "reason")
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in shown)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(row.get(name) or ''))}</td>" for name in shown) + "</tr>"
            for row in self.rows
        )
        return f"<div>{html.escape(repr(self))}</div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def row_of(sample: Sample, state: SlideState) -> dict[str, Any]:
    """One slide as a row of summary.csv. A slide without a report has no score and no counts, not zeros."""
    found = dict(state.row) if state.finished else {}
    names = _extra_names([sample])
    return {
        **{names[name]: value for name, value in sample.extra.items()},
        **found,
        "slide_id": state.slide_id,
        "file": state.file,
        "state": state.status,
        "reason": state.reason,
        "error": state.error,
        "seconds": "" if state.seconds is None else state.seconds,
        "sample_id": sample.sample_id,
        "image_path": sample.image_path,
        "label": sample.label,
        "patient": sample.patient,
        "specimen": without_folder(sample.specimen or ""),
        "mpp": "" if sample.mpp is None else sample.mpp,
    }


def columns_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The columns of summary.csv: the manifest's, what was found, the manifest's others."""
    return (*OWN_COLUMNS, *SUMMARY_COLUMNS, *_extra_names(samples).values())


def _extra_names(samples: Sequence[Sample]) -> dict[str, str]:
    """The manifest's other columns; one named as a column of ours is told apart."""
    taken = {*OWN_COLUMNS, *SUMMARY_COLUMNS}
    given = dict.fromkeys(name for sample in samples for name in sample.extra)
    return {name: f"manifest_{name}" if name in taken else name for name in given}


def _typed(value: Any, *, number: bool) -> Any:
    if value is None or value == "":
        return None
    return float(value) if number else str(value)
