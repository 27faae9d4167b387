"""All annotated pictures of a build, from whatever sources were named, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_chat.datasets.annotated import Annotated, Renaming
from wsi_chat.datasets.coco import read_coco
from wsi_chat.datasets.qupath import Marked, read_geojson
from wsi_chat.datasets.slides import bounds_of, cut_tiles, pair, read_rendered_slide
from wsi_chat.datasets.sources import read_captions, read_json, read_rendered_fields, read_voc_folder
from wsi_chat.datasets.tables import read_table
from wsi_chat.dialects import Dialect
from wsi_chat.errors import SettingError, SlideError


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the annotations are. ``slides`` pairs with ``geojson``; ``patients`` is a CSV with image,patient."""

    voc: tuple[Path, ...] = ()
    coco: tuple[Path, ...] = ()
    geojson: tuple[Path, ...] = ()
    slides: tuple[Path, ...] = ()
    rendered: tuple[Path, ...] = ()
    captions: tuple[Path, ...] = ()
    images: Path | None = None
    patients: Path | None = None


def collect(
    sources: Sources,
    *,
    dialect: Dialect,
    rename: Sequence[str] = (),
    exhaustive: bool = True,
    keep_lists: bool = False,
    tile_px: int = 512,
    tile_mpp: float = 0.5,
    slide_mpp: float | None = None,
    negatives: float = 1.0,
    seed: int = 0,
) -> list[Annotated]:
    """Read every source. ``rename`` holds ``OLD=NEW``; ``exhaustive`` is False where objects may lack a box.

    Raises:
        SettingError: a rename or pairing is wrong. SlideError: a file is missing or broken.
    """
    label = Renaming(_renames(rename), dialect.known_label)
    found: list[Annotated] = []
    for folder in sources.voc:
        found += read_voc_folder(folder, rename=label, exhaustive=exhaustive, lists=keep_lists)
    for file in sources.coco:
        found += read_coco(file, images=sources.images, rename=label, exhaustive=exhaustive)
    pairs = pair(list(sources.slides), list(sources.geojson))
    marked = [(path, read_geojson(note, rename=label, bounds=bounds_of(path, mpp=slide_mpp))) for note, path in pairs]
    # a class that one slide's annotator marked was looked for on every slide
    every = frozenset().union(*(marks.labels for _, marks in marked)) if exhaustive else frozenset()
    slides = [(path, marks, every - set(marks.unplaced)) for path, marks in marked]
    for file in sources.rendered:
        if isinstance(read_json(file), list):
            found += read_rendered_fields(file, rename=label)
        else:
            path, boxes, known = read_rendered_slide(file, rename=label)
            slides.append((path, Marked(boxes), known))
    for path, marks, known in slides:
        found += cut_tiles(
            path, marks.boxes, places=marks.places, known=known, tile_px=tile_px, mpp=tile_mpp,
            negatives=negatives, seed=seed, slide_mpp=slide_mpp,
        )  # fmt: skip
    for file in sources.captions:
        found += read_captions(file)
    return _with_patients(found, sources.patients) if sources.patients else found


def _renames(pairs: Sequence[str]) -> dict[str, str]:
    names = {}
    for entry in pairs:
        old, equals, new = entry.partition("=")
        if not (equals and old.strip() and new.strip()):
            raise SettingError(f"--rename {entry!r} is not OLD=NEW.", hint="Write for instance Platelets=platelet.")
        names[old.strip()] = new.strip()
    return names


def _with_patients(found: list[Annotated], file: Path) -> list[Annotated]:
    """Groups from a CSV with image,patient, or a cohort's manifest with image_path,patient; slides go by file name."""
    rows = [row for _, row in read_table(file)]
    try:
        patients = {Path(row.get("image") or row["image_path"]).stem: row["patient"] for row in rows}
    except KeyError as error:
        raise SlideError(f"{file} has no column {error}.", hint="Name the columns image and patient.") from error
    grouped = []
    for picture in found:
        patient = patients.get(picture.name) or patients.get(Path(picture.source).stem)
        if not patient:
            raise SettingError(f"{file} names no patient for {picture.name}.", hint="Add its row.")
        grouped.append(replace(picture, group=f"patient {patient}"))
    return grouped
