"""The review as files: for QuPath, for spreadsheets, and as instruction data for `wsi-chat train`; and a manifest for
`wsi-chat fit`. They stand in ``review/`` of the slide's folder; the report's own documents stay as they are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from reports.geojson import write_geojson
from tilers import open_slide
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import open_folder
from wsi_chat.app.reading import ReviewedCell, reviewed_cells, slide_label
from wsi_chat.app.review import ReviewStore
from wsi_chat.app.source import Collection, Entry, tile_rows
from wsi_chat.atomic import write_text
from wsi_chat.datasets.annotated import Annotated
from wsi_chat.datasets.build import build_dataset
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import get_dialect
from wsi_chat.errors import SettingError, SlideNotFound, TerminologyError
from wsi_chat.schema import Box, Finding, LabelledBox, Report
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from tilers import Slide
    from wsi_chat.terminology import System

FOLDER = "review"
IGNORED = "Rejected*"
"""QuPath, and `wsi-chat dataset build`, ignore classes whose name ends in a star."""
VISIBLE = 0.35
"""Share of a box inside a tile below which nothing is asked about its class there, as in `wsi_chat.datasets.slides`."""
CSV_COLUMNS = (
    "id", "source", "label", "name", "abnormal", "score", "votes", "tile_ids", "x0", "y0", "x1", "y1", "width_um",
    "height_um", "reviewed", "reviewed_label", "reviewed_name", "reviewers", "reviewed_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. ``notes`` say what could not be, and why."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def system_of(result: SlideResult) -> System:
    """The reporting system of a result. Raises SettingError or TerminologyError where it is not known here."""
    report = result.report
    config = result.files.settings_of(report).get("specimen")
    return load_system(str(config) if config else (report.specimen.system if report.specimen.given else None))


def label_name(system: System, code: str) -> str:
    try:
        return system.label(code).name
    except TerminologyError:
        return code


def export_review(entry: Entry, result: SlideResult, store: ReviewStore) -> Exported:
    """Write findings.geojson, findings.csv and, where a tile can be asked about, the instruction data.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = open_folder(entry.folder / FOLDER)
    system = system_of(result)
    cells = reviewed_cells(result.findings, store)
    files = [
        write_reviewed_geojson(result.report, cells, system, folder / "findings.geojson"),
        write_reviewed_csv(result.report, cells, system, folder / "findings.csv"),
    ]
    notes = []
    try:
        files += write_dialogues([(entry, result, store)], folder / "dataset")
    except (SettingError, SlideNotFound) as error:
        notes.append(str(error))
    return Exported(tuple(files), tuple(notes))


# ---------------------------------------------------------------------------------------------- QuPath and CSV


def write_reviewed_geojson(report: Report, cells: Sequence[ReviewedCell], system: System, path: Path) -> Path:
    """The cells with their reviewed classes as QuPath reads them; rejected ones are of a class that it ignores, and
    those that nobody reviewed, or that are disputed, keep the model's class."""
    by_id = {finding.id: finding for finding in report.verdict.findings}
    shown = [_as_finding(cell, by_id.get(cell.id), system) for cell in cells]
    changed = report.model_copy(update={"verdict": report.verdict.model_copy(update={"findings": tuple(shown)})})
    colors = {label.code: label.color for label in system.labels}
    write_geojson(changed, (), path, colors={**colors, IGNORED: (128, 128, 128)})
    document = json.loads(path.read_text(encoding="utf-8"))
    for feature, cell in zip(document["features"], cells, strict=True):
        properties = feature["properties"]
        properties["metadata"] = {
            "review": cell.outcome,
            "model class": "" if cell.model is None else label_name(system, cell.model),
            "reviewers": _who(cell, system),
        }
        if cell.model is None:
            for name in ("votes", "tiles"):
                properties["measurements"].pop(name, None)
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _as_finding(cell: ReviewedCell, finding: Finding | None, system: System) -> Finding:
    code = IGNORED if cell.outcome == "rejected" else cell.label or cell.model or next(iter(cell.said.values()))
    name = IGNORED if code == IGNORED else label_name(system, code)
    abnormal = any(label.code == code and label.abnormal for label in system.labels)
    if finding is None:
        return Finding(id=cell.id, label=code, name=name, box=cell.box, abnormal=abnormal, tile_ids=(), votes=1)
    return finding.model_copy(update={"label": code, "name": name, "abnormal": abnormal})


def write_reviewed_csv(report: Report, cells: Sequence[ReviewedCell], system: System, path: Path) -> Path:
    """findings.csv: the model's columns as they were, then the reviewed ones; drawn cells have the latter alone."""
    by_id = {finding.id: finding for finding in report.verdict.findings}
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        finding, box, mpp = by_id.get(cell.id), cell.box, report.slide.mpp
        row: dict[str, Any] = {"id": cell.id, "source": "reviewer" if finding is None else "model"}
        if finding is not None:
            row |= {
                "label": finding.label, "name": finding.name, "abnormal": int(finding.abnormal),
                "score": "" if finding.score is None else f"{finding.score:.4f}", "votes": finding.votes,
                "tile_ids": " ".join(finding.tile_ids),
            }  # fmt: skip
        row |= {name: f"{getattr(box, name):.1f}" for name in ("x0", "y0", "x1", "y1")}
        row |= {"width_um": f"{box.width * mpp:.2f}", "height_um": f"{box.height * mpp:.2f}"}
        row |= {
            "reviewed": cell.outcome, "reviewed_label": cell.label or "",
            "reviewed_name": "" if cell.label is None else label_name(system, cell.label),
            "reviewers": _who(cell, system), "reviewed_at": cell.at,
        }  # fmt: skip
        writer.writerow(row)
    write_text(path, text.getvalue())
    return path


def _who(cell: ReviewedCell, system: System) -> str:
    return "; ".join(f"{who}: {label_name(system, label) if label else 'rejected'}" for who, label in cell.said.items())


# ---------------------------------------------------------------------------------------------- instruction data


def write_dialogues(
    reviewed: Sequence[tuple[Entry, SlideResult, ReviewStore]], out: Path, *, seed: int = 0
) -> list[Path]:
    """The reviewed tiles as ShareGPT JSONL in the words of the dialect that the run asked in, for `wsi-chat train`.

    All tiles of a slide lie in one split. A class is asked to be located, or said to be absent, only in tiles that a
    reviewer marked as complete; elsewhere the questions are about single reviewed cells.

    Raises:
        SettingError: no tile was reviewed, or the slides were asked in several dialects.
        SlideNotFound: a slide is not where it was. OutputError: the folder cannot be written.
    """

    dialects = {result.report.provenance.model.dialect for _, result, _ in reviewed}
    systems = {result.report.specimen.system for _, result, _ in reviewed}
    if len(dialects) > 1 or len(systems) > 1:
        raise SettingError(
            "The slides were asked in several dialects or read by several reporting systems:"
            f" {', '.join(sorted(dialects | systems))}.",
            hint="Export them one by one.",
        )
    slides: list[Slide] = []
    try:
        pictures: list[Annotated] = []
        for entry, result, store in reviewed:
            if result.slide_path is None or not result.slide_path.exists():
                raise SlideNotFound(
                    f"No instruction data: the slide {result.report.slide.file_name} is not at {result.slide_path}.",
                    hint="Say where it is with --slide.",
                )
            slides.append(open_slide(result.slide_path, mpp=result.report.slide.mpp))
            pictures += reviewed_tiles(entry.id, result, store, slides[-1])
        if not pictures:
            raise SettingError(
                "No instruction data: no cell in a closely read tile has a reviewed class yet.",
                hint="Accept, relabel or draw cells, and mark tiles as complete.",
            )
        dialect = get_dialect(next(iter(dialects)))
        names = Names(system_of(reviewed[0][1]))
        shares = {"train": 1.0} if len(reviewed) < 5 else {"train": 0.8, "val": 0.2}
        build_dataset(
            pictures, out, dialect=dialect, names=names, name="reviewed", fractions=shares, seed=seed,
            overwrite=(out / "build.json").is_file(),
        )  # fmt: skip
    finally:
        for slide in slides:
            slide.close()
    return [*sorted(out.glob("*.jsonl")), out / "dataset_info.json"]


def reviewed_tiles(name: str, result: SlideResult, store: ReviewStore, slide: Slide) -> list[Annotated]:
    """The closely read tiles in which something was reviewed, with their truth in pixels of the tile.

    ``known`` holds the tile's asked classes where a reviewer marked it as complete and nothing in it is left open.
    What is unreviewed, disputed or cut by the tile's edge makes its class ``unsure`` there.
    """
    cells = reviewed_cells(result.findings, store)
    complete = {decision.about for decision in store.history() if decision.action == "complete"}
    found = []
    for row in tile_rows(result):
        if row["status"] != "detailed":
            continue
        tile = Box(row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"])
        boxes, unsure = _inside(cells, tile)
        marked = row["tile_id"] in complete
        if not boxes and not marked:
            continue
        scale = row["out_px"] / row["width"]
        placed = tuple(LabelledBox(b.label, b.box.shifted(-tile.x0, -tile.y0).scaled(scale)) for b in boxes)
        found.append(
            Annotated(
                name=f"{name}_{row['tile_id']}",
                size=(row["out_px"], row["out_px"]),
                load=partial(_pixels, slide, tile, row["out_px"]),
                group=name,
                boxes=placed,
                known=frozenset(row["asked"] or ()) | {b.label for b in boxes} if marked else frozenset(),
                unsure=frozenset(unsure),
                mpp=row["mpp"],
                source=result.report.slide.file_name,
            )
        )
    return found


def _inside(cells: Sequence[ReviewedCell], tile: Box) -> tuple[list[LabelledBox], set[str]]:
    """The reviewed cells that lie in a tile, clipped to it (level-0 px), and the classes that are in doubt there."""
    boxes: list[LabelledBox] = []
    unsure: set[str] = set()
    for cell in cells:
        part = cell.box.clipped(tile)
        if part is None or cell.outcome == "rejected":
            continue
        if cell.label is None:
            unsure.update(label for label in (cell.model, *cell.said.values()) if label)
        elif cell.box.area and part.area / cell.box.area < VISIBLE:
            unsure.add(cell.label)
        else:
            boxes.append(LabelledBox(cell.label, part))
    return boxes, unsure


def _pixels(slide: Slide, tile: Box, px: int) -> Image.Image:
    return Image.fromarray(slide.crop(tile, px, alone=True))


# ---------------------------------------------------------------------------------------------- the manifest


def write_manifest(collection: Collection, stores: Mapping[str, ReviewStore], path: Path) -> Exported:
    """manifest.csv for `wsi-chat fit`: the slides that the reviewers gave one class.

    Raises:
        SettingError: no slide has one. OutputError: it cannot be written.
    """
    text = io.StringIO()
    columns = ("sample_id", "image_path", "label", "patient", "specimen", "reviewers")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    notes, count = [], 0
    for name, store in stores.items():
        entry = collection.entries[name]
        result = entry.load()
        label, said = slide_label(store)
        if label is None:
            if said:
                notes.append(f"{name}: the reviewers differ ({', '.join(f'{w}: {v}' for w, v in said.items())}).")
            continue
        if result is None or result.slide_path is None:
            notes.append(f"{name}: it is not known where the slide is.")
            continue
        specimen = result.files.settings_of(result.report).get("specimen") or ""
        writer.writerow(
            {"sample_id": entry.row.get("sample_id") or name, "image_path": _place(result), "label": label,
             "patient": entry.row.get("patient", ""), "specimen": specimen, "reviewers": "; ".join(said)}
        )  # fmt: skip
        count += 1
    if not count:
        raise SettingError("No slide has a reviewed class yet.", hint="Give slides a class on their pages.")
    write_text(path, text.getvalue())
    return Exported((path,), tuple(notes))


def _place(result: SlideResult) -> str:
    """Where the slide is; of one under a pseudonym that alone, by which `wsi-chat fit` finds its folder."""
    report = result.report
    return report.slide.file_name if report.provenance.config.get("pseudonymize") else str(result.slide_path)
