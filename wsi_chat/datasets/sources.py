"""Annotations of pictures, as labs and tools write them: VOC XML, rendered fields, captions in CSV.

Every reader gives `Annotated` pictures in a fixed order and opens each picture's header only; a file that is
missing or broken is an error that names it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tilers.picture import open_picture, picture_size
from wsi_chat.bounded import DATA_BYTES, load_json
from wsi_chat.datasets.annotated import Annotated, Renaming
from wsi_chat.datasets.pictures import locate
from wsi_chat.datasets.render.field import LABELS
from wsi_chat.datasets.tables import read_table
from wsi_chat.datasets.voc import read_voc_file
from wsi_chat.errors import DocumentError, SlideError, SlideNotFound
from wsi_chat.schema import Box, LabelledBox

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".PNG", ".JPG", ".JPEG", ".TIF")
SPLITS = ("train", "val", "test")


def read_voc_folder(folder: Path, *, rename: Renaming, exhaustive: bool = True, lists: bool = False) -> list[Annotated]:
    """Pictures with VOC XML: ``Annotations`` and ``JPEGImages`` as in the Pascal layout, or all in one folder.

    ``lists`` keeps the data set's own splits (``ImageSets/Main/train.txt``, ``val.txt``, ``test.txt``); pictures
    on none of them are left out.

    Raises:
        SlideNotFound: no XML is there. SlideError: a picture or list is missing or an annotation is broken.
    """
    notes = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    pictures = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    files = sorted(notes.glob("*.xml"))
    if not files:
        raise SlideNotFound(f"{folder}: there is no VOC annotation (*.xml) here.", hint="Give the data set's folder.")
    own = _own_lists(folder) if lists else {}
    found = []
    for file in files:
        if lists and file.stem not in own:
            continue
        picture = _beside(pictures, file)
        note = read_voc_file(file)
        boxes = tuple(LabelledBox(rename(one.label), one.box) for one in note.boxes)
        found.append(
            picture_of(
                picture,
                boxes,
                split=own.get(file.stem, ""),
                source=folder.name,
                stated=note.size,
                stated_in=file.name,
                unsure=frozenset(map(rename, note.flat)),
            )
        )
    return with_known(found, exhaustive)


def _own_lists(folder: Path) -> dict[str, str]:
    own: dict[str, str] = {}
    for split in SPLITS:
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not path.is_file():
            raise SlideError(f"{path} is missing.", hint="Leave out --keep-lists, or restore the data set's lists.")
        for line in path.read_text(encoding="utf-8").splitlines():
            name = line.split()[0] if line.split() else ""
            if name and own.setdefault(name, split) != split:
                raise SlideError(f"{path}: {name} is also on the list of {own[name]}.", hint="Correct the lists.")
    return own


def _beside(folder: Path, annotation: Path) -> Path:
    for suffix in SUFFIXES:
        if (path := folder / f"{annotation.stem}{suffix}").is_file():
            return path
    raise SlideError(
        f"{annotation}: its picture {annotation.stem}.* is not in {folder}.", hint="Put picture and XML together."
    )


def read_rendered_fields(file: Path, *, rename: Renaming) -> list[Annotated]:
    """Fields of ``wsi-chat synth fields`` by their ``truth.json``. Raises SlideError."""
    found = []
    known = frozenset(rename(label) for label in LABELS)
    content = read_json(file)
    try:
        for record in content:
            boxes = tuple(LabelledBox(rename(cell["label"]), Box(*cell["box"])) for cell in record["cells"])
            path = locate(record["image"], (file.parent,))
            found.append(picture_of(path, boxes, source=file.name, abnormal=record["abnormal"], mpp=record["mpp"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SlideError(f"{file}: not the truth of rendered fields ({error}).", hint="Render them again.") from error
    return with_known(found, True, known)


def read_captions(file: Path) -> list[Annotated]:
    """Pictures with text from a CSV: ``image`` and ``caption``, or ``image``, ``question`` and ``answer``.

    Optional columns ``patient`` (or ``slide``) and ``split``. Rows of one picture are put together.

    Raises:
        SlideError: a column or a picture is missing, or a row has neither caption nor question and answer.
    """
    merged: dict[str, Annotated] = {}
    for number, cell in read_table(file):
        name = cell.get("image") or cell.get("image_path", "")
        caption, question, answer = (cell.get(key, "") for key in ("caption", "question", "answer"))
        if not name or not (caption or (question and answer)):
            raise SlideError(
                f"{file}, line {number}: needs an image, and a caption or a question with its answer.",
                hint="Name the columns image,caption or image,question,answer.",
            )
        before = merged.get(name) or picture_of(
            locate(name, (file.parent,)),
            (),
            group=cell.get("patient") or cell.get("slide", ""),
            split=cell.get("split", ""),
            source=file.name,
        )
        asked = (*before.questions, (question, answer)) if question and answer else before.questions
        merged[name] = replace(before, caption=caption or before.caption, questions=asked)
    return list(merged.values())


def picture_of(
    path: Path,
    boxes: Sequence[LabelledBox],
    *,
    group: str = "",
    split: str = "",
    source: str,
    abnormal: bool | None = None,
    mpp: float | None = None,
    stated: tuple[int, int] | None = None,
    stated_in: str = "",
    unsure: frozenset[str] = frozenset(),
) -> Annotated:
    """A picture with its boxes, cut at its edges.

    Args:
        stated: (width, height) that the annotation states; ``stated_in``: in which file, where it is not ``source``.
        unsure: classes about which nothing may be said here; that of a box outside the picture is added.

    Raises:
        SlideError: the picture cannot be read, or is of another size than ``stated``.
    """
    size = picture_size(path)
    if stated is not None and stated != size:
        turned = " It is stored turned, and shown upright." if stated == size[::-1] and size[0] != size[1] else ""
        raise SlideError(
            f"{path} has {size[0]} x {size[1]} px, its annotation in {stated_in or source} states "
            f"{stated[0]} x {stated[1]} px.{turned}",
            hint="Annotate the picture itself, or give the one that was annotated.",
        )
    bounds = Box(0, 0, *size)
    inside = [(found, found.box.clipped(bounds)) for found in boxes]
    outside = [found.label for found, box in inside if box is None]
    if outside:
        log.warning(
            "%s: %d of %d boxes lie outside %s: nothing is asked about %s there",
            source, len(outside), len(boxes), path.name, ", ".join(sorted(set(outside))),
        )  # fmt: skip
    return Annotated(
        path.stem,
        size,
        partial(open_picture, path),
        group or f"{path.parent.name}/{path.name}",
        tuple(LabelledBox(found.label, box) for found, box in inside if box is not None),
        unsure=unsure | set(outside),
        abnormal=abnormal,
        mpp=mpp,
        split=split,
        source=source,
    )


def with_known(found: Iterable[Annotated], exhaustive: bool, known: frozenset[str] = frozenset()) -> list[Annotated]:
    """All classes of the source are known in each of its pictures, if they were annotated exhaustively."""
    pictures = list(found)
    if not exhaustive:
        return pictures
    every = known | {b.label for picture in pictures for b in picture.boxes}
    return [replace(picture, known=every) for picture in pictures]


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises SlideNotFound, or SlideError where it is damaged or out of bounds."""
    try:
        return load_json(file, limit=DATA_BYTES)
    except DocumentError as error:
        kind = SlideNotFound if error.missing else SlideError
        raise kind(f"{file} does not exist." if error.missing else error.message, hint=error.hint) from error
