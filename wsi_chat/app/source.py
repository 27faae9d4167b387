"""What the page shows: the slides of a run folder, one slide's folder, a slide, or a folder of photographed fields.

A path of the file system enters here and nowhere else: everything served later is named by a slide's id.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilers.photographs import photographs_in
from tilers.remote import STORE_MARKS, RemotePath, slide_path
from wsi_chat.analysis.result import SlideResult, load_result
from wsi_chat.analysis.run_folder import DEFAULT_OUT, RunFolder, SlideFolder
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.analysis.summary import fused
from wsi_chat.errors import SettingError, SlideNotFound, WsiChatError

DOCUMENTS = ("report.pdf", "report.html", "report.json", "findings.geojson", "findings.csv", "summary.csv")
"""Files of a run folder that the page offers; no other file is served."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One slide: its id, its folder in the run folder (which may not exist yet) and, where there is one, its row of
    summary.csv. ``slide`` is the file where it is known without the report."""

    id: str
    folder: Path
    slide: Path | None = None
    row: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The file's name where it is known, else the id."""
        return self.row.get("file") or (self.slide.name if self.slide is not None else self.id)

    @property
    def analyzed(self) -> bool:
        return SlideFolder(self.folder).finished

    def load(self) -> SlideResult | None:
        """The slide's result, None where it was not analyzed. Raises OutputError for a damaged report."""
        return load_result(self.folder, slide=self.slide) if self.analyzed else None


@dataclass(frozen=True, slots=True)
class Collection:
    """The slides that the page may show, by id. ``root`` is the run folder, None for a single slide."""

    entries: Mapping[str, Entry]
    root: Path | None = None

    @property
    def only(self) -> Entry | None:
        """The one slide, where there is just one."""
        return next(iter(self.entries.values())) if len(self.entries) == 1 else None


def find_slides(source: Path, *, slide: Path | None = None, out: Path = Path(DEFAULT_OUT)) -> Collection:
    """What a path names: a run folder, a slide's folder in one, a slide, or a folder of photographed fields.

    Args:
        slide: where the slide is now, for a slide's folder whose file was moved.
        out: run folder in which the conversation and the review of a slide that has no folder are kept.

    Raises:
        SlideNotFound: there is no such path.
        SettingError: the folder holds nothing to show, or ``slide`` is given for many slides.
    """
    source = slide_path(source)
    if isinstance(source, RemotePath):
        source.look()
        return _alone(source, out)
    if not source.exists():
        raise SlideNotFound(f"There is no {source}.", hint="Name a run folder, a slide's folder in it, or a slide.")
    if SlideFolder(source).finished:
        folder = source.resolve()
        return Collection({folder.name: Entry(folder.name, folder, slide)})
    if source.is_dir() and not _is_slide(source):
        found = _of_run(source.resolve())
        if not found and not photographs_in(source):
            raise SettingError(
                f"{source} holds no analyzed slide and no photograph of a field.",
                hint="Run wsi-chat analyze SLIDE -o OUT and name OUT.",
            )
        if not found:
            return _alone(source, out)
        if slide is not None and len(found) > 1:
            raise SettingError(
                f"--slide {slide}: {source} holds {len(found)} slides.", hint="Name one slide's folder, OUT/<slide id>."
            )
        if slide is not None:
            found = {key: replace(entry, slide=slide) for key, entry in found.items()}
        return Collection(found, source.resolve())
    return _alone(source, out)


def _alone(source: Path, out: Path) -> Collection:
    """One slide, or a folder of photographs as one specimen."""
    name = slide_id(source)
    return Collection({name: Entry(name, out.resolve() / name, source.resolve())})


def _is_slide(folder: Path) -> bool:
    """An OME-Zarr group is a folder that is a slide."""
    return any((folder / name).is_file() for name in STORE_MARKS)


def _of_run(root: Path) -> dict[str, Entry]:
    run = RunFolder(root)
    rows = {row["slide_id"]: row for row in read_summary(root) if row.get("slide_id")}
    folders = {folder.id: folder.path for folder in run.finished_slides()}
    # an id of summary.csv is a name of a folder and nothing else
    names = [name for name in dict.fromkeys([*rows, *folders]) if Path(name).name == name and name not in ("", "..")]
    files, hidden = run.slide_files, run.pseudonymous
    return {
        name: Entry(
            name,
            folders.get(name, root / name),
            None if name in folders else files.get(name),
            rows.get(name, {"file": name} if hidden else {}),
        )
        for name in names
    }


def read_summary(root: Path) -> list[dict[str, str]]:
    """The rows of summary.csv; none where it is missing or damaged."""
    try:
        with RunFolder(root).summary_path.open(encoding="utf-8-sig", newline="") as file:
            return [{key: fused(value or "") for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def tile_rows(result: SlideResult | None) -> list[dict[str, Any]]:
    """The rows of tiles.parquet; none where the slide was not analyzed or the file is gone."""
    if result is None:
        return []
    try:
        rows: list[dict[str, Any]] = result.tiles.to_pylist()
    except (OSError, ValueError, KeyError, WsiChatError):
        return []
    return rows
