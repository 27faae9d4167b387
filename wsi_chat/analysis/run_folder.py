"""The run folder: where every file of a run and of its slides is, what counts as one, and what it says.

`RunFolder` owns OUT with ``run.json``, ``summary.csv``, ``index.html`` and ``run.log``; `SlideFolder` owns
OUT/<slide id> with the documents, the journal and what people added. Every other module asks these two for a place
and for what stands there.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tilers.photographs import way_back
from tilers.remote import slide_path
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.atomic import scratch_folder, write_text
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.names import from_home

if TYPE_CHECKING:
    import pyarrow

    from wsi_chat.names import Names
    from wsi_chat.schema import Report, TileVerdict

# what a run writes about a slide; a slide's folder may hold more (its journal, a saved conversation), which stays
DOCUMENTS = (
    "report.*", "findings.*", "fields.*", "fields", "differential.*", "tiles.*", "maps.zarr", "scan.*", "overview.*",
    "mask.*", "heatmap.*", "gallery", "thumbnail.*", "*.dcm",
)  # fmt: skip
DEFAULT_OUT = "wsi-chat-out"
RUN_HINT = "Choose another folder with -o."


def open_folder(path: Path) -> Path:
    """Make the folder and prove that it can be written, before any model is loaded.

    Raises:
        OutputError: it exists as a file, or cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path) as probe:
            (probe / "probe").write_bytes(b"")
    except OSError as error:
        raise OutputError(
            f"-o {path}: cannot be written ({error.strerror}).",
            hint="Choose a folder that you may write to, with -o.",
        ) from error
    return path


@dataclass(frozen=True)
class SlideFolder:
    """One slide's folder, OUT/<slide id>. It need not exist yet; `finished` says whether a report stands in it."""

    path: Path

    # ------------------------------------------------------------------------------------------ places

    @property
    def id(self) -> str:
        """The slide id."""
        return self.path.name

    @property
    def run(self) -> RunFolder:
        """The run folder above."""
        return RunFolder(self.path.parent)

    @property
    def report_path(self) -> Path:
        """report.json, the last document of a run: where it stands, the slide is finished."""
        return self.path / "report.json"

    @property
    def pdf_path(self) -> Path:
        return self.path / "report.pdf"

    @property
    def html_path(self) -> Path:
        return self.path / "report.html"

    @property
    def tiles_path(self) -> Path:
        return self.path / "tiles.parquet"

    @property
    def maps_path(self) -> Path:
        """The zarr group of per-tile grids."""
        return self.path / "maps.zarr"

    @property
    def findings_path(self) -> Path:
        return self.path / "findings.geojson"

    @property
    def overview_path(self) -> Path:
        return self.path / "overview.png"

    @property
    def heatmap_path(self) -> Path:
        return self.path / "heatmap.png"

    @property
    def thumbnail_path(self) -> Path:
        return self.path / "thumbnail.jpg"

    @property
    def features_path(self) -> Path:
        """The zarr group of the model's image features, where they were asked for."""
        return self.path / "features.zarr"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal.sqlite"

    @property
    def state_path(self) -> Path:
        """Where the slide stands in its run; see `wsi_chat.cohort.state`."""
        return self.path / "state.json"

    @property
    def review_path(self) -> Path:
        """The reviewer's decisions on findings and tiles; a rerun leaves it alone."""
        return self.path / "review.sqlite"

    @property
    def conversation_path(self) -> Path:
        """The saved conversation about the slide; a rerun leaves it alone."""
        return self.path / "chat.json"

    @property
    def traceback_path(self) -> Path:
        """Where an exception that nobody foresaw came from."""
        return self.path / "error.log"

    @property
    def superseded_path(self) -> Path:
        """Documents of an earlier run that no longer hold, until the new ones are complete."""
        return self.path / "superseded"

    # ------------------------------------------------------------------------------------------ what stands there

    @property
    def finished(self) -> bool:
        """Whether the slide has a report."""
        return self.report_path.is_file()

    @property
    def has_superseded_report(self) -> bool:
        """Whether it has none since a run with other settings began, which has not finished."""
        return not self.finished and (self.superseded_path / self.report_path.name).is_file()

    @property
    def documents(self) -> tuple[Path, ...]:
        """What a run wrote about the slide and is there now, by name."""
        return tuple(sorted({path for pattern in DOCUMENTS for path in self.path.glob(pattern)}))

    @property
    def begun(self) -> bool:
        """Whether a run of the slide was begun here: it has a report, or answers in its journal."""
        return self.finished or self.journal_path.exists()

    def problem(self) -> str:
        """Why this is not a finished slide's folder, as the end of a sentence that it begins; empty where it is."""
        if self.finished:
            return ""
        if not self.path.exists():
            return "does not exist"
        if not self.path.is_dir():
            return "is a file"
        if self.has_superseded_report:
            return "holds no report.json: the run that was to replace it has not finished"
        if self.begun:
            return "holds a run that has not finished (there is no report.json yet)"
        return "is not a slide's run folder: it holds no report.json"

    def read_report(self) -> Report:
        """The slide's report.

        Raises:
            OutputError: the folder holds none, or one that cannot be read; a whole run's folder is told apart.
        """
        from reports import read_report_json

        if self.finished:
            return read_report_json(self.report_path)
        if self.has_superseded_report:
            raise OutputError(f"{self.path} {self.problem()}.", hint=way_back(self.path))
        inside = RunFolder(self.path).finished_slides()
        if inside:
            some = ", ".join(str(folder.path) for folder in inside[:3])
            more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
            raise OutputError(
                f"{self.path} is a whole run, not one slide of it.", hint=f"Name one of its slides: {some}{more}."
            )
        raise OutputError(
            f"{self.path} {self.problem()}.", hint="Name a folder that wsi-chat analyze wrote, OUT/<slide id>."
        )

    def read_tiles(self) -> list[TileVerdict]:
        """The verdicts of all tiles, in plan order. Raises OutputError where they cannot be read."""
        from reports import read_tiles_parquet

        return read_tiles_parquet(self.tiles_path)

    def tiles_table(self, columns: list[str] | None = None) -> pyarrow.Table:
        """tiles.parquet: one row a tile.

        Raises:
            OutputError: it is missing, damaged or changed, or lacks a column.
        """
        from reports import read_tiles_table

        table = read_tiles_table(self.tiles_path)
        try:
            return table if columns is None else table.select(columns)
        except KeyError as error:
            raise OutputError(
                f"{self.tiles_path} cannot be read: {error.args[0]}.", hint="Analyze the slide again."
            ) from error

    def slide_file(self, moved_to: Path | None = None) -> Path | None:
        """Where the slide file is: ``moved_to``, else the place that run.json remembers; None where neither is known.

        A remembered place is given also where nothing is there now, so that an error can name it.
        """
        return moved_to if moved_to is not None else self.run.slide_files.get(self.id)

    def settings_of(self, report: Report) -> dict[str, Any]:
        """The settings of the slide's report; files, of which a report has the name alone, as run.json has them."""
        files = self.run.setting_files
        return {
            name: files.get(value, value) if isinstance(value, str) else value
            for name, value in report.provenance.config.items()
        }

    # ------------------------------------------------------------------------------------------ writing

    def open(self) -> SlideFolder:
        """Make the folder and prove that it can be written. Raises OutputError."""
        open_folder(self.path)
        return self

    def keep_traceback(self, error: BaseException, names: Names) -> Path:
        """Write down where an exception that nobody foresaw came from, without what must not show."""
        self.open()
        text = names.hide("".join(traceback.format_exception(error)))
        return write_text(self.traceback_path, text, hint=RUN_HINT)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, OUT. It need not exist yet; `open` makes it."""

    path: Path

    def open(self) -> RunFolder:
        """Make the folder and prove that it can be written. Raises OutputError."""
        open_folder(self.path)
        return self

    @property
    def record_path(self) -> Path:
        """run.json: the effective settings, where each came from, and which file each slide id is."""
        return self.path / "run.json"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.csv"

    @property
    def index_path(self) -> Path:
        """The page over all slides of a cohort."""
        return self.path / "index.html"

    @property
    def listings_path(self) -> Path:
        """The listings of specimens whose photographs a manifest names, ``ID.fields``."""
        return self.path / "specimens"

    @property
    def log_path(self) -> Path:
        return self.path / "run.log"

    @property
    def pseudonyms_path(self) -> Path:
        """Which pseudonym is whose, for the run's owner alone; see `wsi_chat.analysis.pseudonyms`."""
        return self.path / "pseudonyms.json"

    @property
    def lock_path(self) -> Path:
        """Held by the one cohort that writes the folder."""
        return self.path / ".cohort.lock"

    def mark_path(self, slide: str) -> Path:
        """There while a slide, by its id, is being read; left where the process died. See `wsi_chat.cohort.deaths`."""
        return self.path / f".{slide}.reading"

    def marks(self) -> list[Path]:
        """The marks of all slides that are being read, or were when a process died."""
        return sorted(self.path.glob(".*.reading"))

    def slide(self, of: Path | str) -> SlideFolder:
        """The folder of a slide file (a Path) or of a slide id (a text)."""
        return SlideFolder(self.path / (of if isinstance(of, str) else slide_id(of)))

    def slides(self) -> tuple[SlideFolder, ...]:
        """The folders of all slides that were begun here, by id."""
        return tuple(folder for folder in self._folders() if folder.begun)

    def finished_slides(self) -> tuple[SlideFolder, ...]:
        """The folders of the slides that have a report, by id."""
        return tuple(folder for folder in self._folders() if folder.finished)

    def _folders(self) -> Iterator[SlideFolder]:
        try:
            names = sorted(entry for entry in self.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            return
        yield from map(SlideFolder, names)

    @cached_property
    def moved(self) -> Mapping[str, SlideFolder]:
        """Fingerprint -> folder of each finished slide whose file is no longer where it was analyzed."""
        gone = [folder for folder in self.finished_slides() if _is_gone(self.slide_files.get(folder.id))]
        return {mark: folder for folder in gone if (mark := _fingerprint_in(_content(folder.report_path)))}

    @property
    def is_run(self) -> bool:
        """Whether a run was written here."""
        return self.record_path.is_file()

    @cached_property
    def slide_files(self) -> Mapping[str, Path]:
        """Slide id -> the slide's file as it was analyzed; empty where run.json is missing or damaged.

        Those of a run under pseudonyms are in the file that says which is whose, if it is at hand.
        """
        record = self.read_record()
        files = _files_in(record)
        settings = record.get("config")
        if isinstance(settings, dict) and settings.get("pseudonymize"):
            named = settings.get("pseudonyms")
            table = from_home(named) if isinstance(named, str) else self.pseudonyms_path
            files |= _files_in(_content(table))
        return files

    @property
    def setting_files(self) -> Mapping[str, str]:
        """Name -> path of each file and folder that a setting names; documents have the name alone."""
        files = self.read_record().get("files")
        return {str(name): str(path) for name, path in files.items()} if isinstance(files, dict) else {}

    @property
    def pseudonymous(self) -> bool:
        """Whether the last run here showed slides under pseudonyms."""
        settings = self.read_record().get("config")
        return isinstance(settings, dict) and bool(settings.get("pseudonymize"))

    def read_record(self) -> dict[str, Any]:
        """run.json as it is; empty where it is missing or damaged."""
        return _content(self.record_path)

    def write_record(
        self,
        *,
        config: Mapping[str, Any],
        origin: Mapping[str, str],
        slides: Mapping[str, Path | str],
        files: Mapping[str, str] = MappingProxyType({}),
    ) -> Path:
        """Write run.json; slides of earlier runs in the same folder stay known.

        Args:
            config: the effective settings.
            origin: where each setting that is not a default came from.
            slides: slide id -> file.
            files: see `setting_files`.
        """
        known = {name: str(file) for name, file in _files_in(self.read_record()).items()}
        own = {name: str(file) for name, file in slides.items()}
        payload: dict[str, Any] = {"config": dict(config), "origin": dict(origin), "slides": {**known, **own}}
        if named := {**self.setting_files, **files}:
            payload["files"] = named
        text = json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        return write_text(self.record_path, text, hint=RUN_HINT)


def _content(path: Path) -> dict[str, Any]:
    """A JSON mapping; empty where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _fingerprint_in(report: Any) -> str:
    """Of the slide that the content of a report.json is about; empty where it says nothing of one."""
    slide = report.get("slide") if isinstance(report, dict) else None
    return str(slide.get("fingerprint") or "") if isinstance(slide, dict) else ""


def _files_in(content: Mapping[str, Any]) -> dict[str, Path]:
    files = content.get("slides")
    if not isinstance(files, dict):
        return {}
    return {str(name): _place(file) for name, file in files.items() if isinstance(file, str)}


def _place(written: str) -> Path:
    """A path or an address as run.json holds it."""
    try:
        return slide_path(written)
    except SettingError:  # nobody writes such an address there; it is shown as it is
        return Path(written)


def _is_gone(file: Path | None) -> bool:
    return file is not None and not file.exists()
