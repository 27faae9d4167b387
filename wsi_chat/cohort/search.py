"""Slides in a folder: files of the formats that scanners write, OME-Zarr folders, each DICOM series as one slide.

A folder of photographs is one specimen. Run folders of wsi-chat are passed over, wherever they lie.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tilers.dicom import is_dicom, series_uid
from tilers.photographs import is_of_a_run, photographs_in
from tilers.readers import all_readers
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.sample import Sample, place_below
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.errors import SettingError

log = logging.getLogger(__name__)

# OpenSlide's formats. PNG and JPEG that lie beside slides are taken for their previews: name those in a manifest.
SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".ndpis", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi",
)  # fmt: skip


def find_slides(folder: str | Path, *, skip: Path | None = None) -> tuple[Sample, ...]:
    """Every slide below a folder, and every folder of photographs as one specimen, by path.

    Hidden files and folders are passed over, and so are ``skip`` (a run folder that lies inside) and all run folders.

    Raises:
        SettingError: there is no slide.
    """
    folder = Path(folder)
    found = sorted(_walk(folder, skip.resolve() if skip else None))
    if not found:
        raise SettingError(
            f"There is no slide in {folder}.",
            hint=f"Slides are {' '.join(_suffixes())} .dcm and OME-Zarr folders; a folder of "
            "photographs (PNG, JPEG, flat TIFF) is one specimen. For other files write a manifest.",
        )
    top = folder.resolve()
    return tuple(Sample(sample_id=slide_id(path), path=path, place=place_below(path, top)) for path in found)


def _suffixes() -> tuple[str, ...]:
    extra = sorted({suffix for reader in all_readers() for suffix in reader.suffixes} - {".png", ".jpg", ".jpeg"})
    return tuple(dict.fromkeys([*SUFFIXES, *(suffix for suffix in extra if suffix != ".zarr")]))


def _walk(folder: Path, skip: Path | None) -> Iterator[Path]:
    """Every slide below a folder, linked folders included; each folder once, so that loops of links end."""
    suffixes = _suffixes()
    top = folder.resolve()
    visited = {top}
    for root, folders, names in os.walk(top, followlinks=True):
        here = Path(root)
        if here == skip or is_of_a_run(here) or (here != top and RunFolder(here).is_run):
            folders.clear()
            continue
        stores = [name for name in folders if name.lower().endswith(".zarr")]
        folders[:] = [n for n in sorted(folders) if n not in stores and not n.startswith(".")]
        folders[:] = [n for n in folders if _is_new((here / n).resolve(), top, visited)]
        slides = [*_stores(here, stores), *_files(here, names, suffixes)]
        photographs = photographs_in(here)
        others = [path for path in slides if path not in photographs]
        if not others and photographs:
            yield here
            continue
        if len(slides) == len(others) and photographs:
            log.warning("%s: %d photographs beside slides are taken for previews", here, len(photographs))
        yield from slides


def _stores(here: Path, names: Iterable[str]) -> Iterator[Path]:
    """The OME-Zarr folders among these."""
    return (here / name for name in names if _is_store(here / name))


def _files(here: Path, names: Iterable[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The slide files of a folder, a DICOM series by its first."""
    dicom = []
    for name in names:
        lower = name.lower()
        if name.startswith("."):
            continue
        if lower.endswith(".dcm") or (_has_no_suffix(name) and is_dicom(here / name)):
            dicom.append(here / name)
        elif lower.endswith(suffixes):
            yield here / name
    yield from one_per_series(sorted(dicom))


def _is_new(target: Path, top: Path, visited: set[Path]) -> bool:
    """Whether a folder is to be entered: not twice, and not one that holds the searched folder itself."""
    if target in visited or top.is_relative_to(target):
        return False
    visited.add(target)
    return True


def _has_no_suffix(name: str) -> bool:
    """Names as DICOM exports bear them: without a suffix, or numbers with dots; DICOMDIR is no image."""
    suffix = name.rpartition(".")[2] if "." in name else ""
    return name != "DICOMDIR" and not any(c.isalpha() for c in suffix)


def _is_store(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def one_per_series(files: Iterable[Path]) -> Iterator[Path]:
    """The first file of each DICOM series; one without a series is a slide of its own, and will say why."""
    series_before: set[str] = set()
    for path in files:
        series = series_uid(path)
        if series and series in series_before:
            continue
        series_before.add(series)
        yield path
