"""Slides in a folder: files of the formats that scanners write, OME-Zarr folders, each DICOM series as one slide."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsi_chat.analysis.manifest import Sample
from wsi_chat.analysis.run_folder import slide_id
from wsi_chat.errors import SettingError

log = logging.getLogger(__name__)

# OpenSlide's formats. PNG and JPEG state no resolution and lie beside slides as previews: name those in a manifest.
SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".ndpis", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi",
)  # fmt: skip
SERIES_UID = "dicom.SeriesInstanceUID"


def find_slides(folder: str | Path, *, skip: Path | None = None) -> tuple[Sample, ...]:
    """Every slide below a folder, by path.

    Hidden files and folders are passed over, and so is ``skip`` (a run folder that lies inside).

    Raises:
        SettingError: there is no slide.
    """
    folder = Path(folder)
    found = sorted(_walk(folder, skip.resolve() if skip else None))
    if not found:
        raise SettingError(
            f"There is no slide in {folder}.",
            hint=f"Slides are {' '.join(_suffixes())} .dcm and OME-Zarr folders; for other files write a manifest.",
        )
    return tuple(Sample(sample_id=slide_id(path), path=path) for path in found)


def _suffixes() -> tuple[str, ...]:
    from tilers.readers import all_readers

    extra = sorted({suffix for reader in all_readers() for suffix in reader.suffixes} - {".png", ".jpg", ".jpeg"})
    return tuple(dict.fromkeys([*SUFFIXES, *(suffix for suffix in extra if suffix != ".zarr")]))


def _walk(folder: Path, skip: Path | None) -> Iterator[Path]:
    suffixes = _suffixes()
    for root, folders, names in os.walk(folder.resolve()):
        here = Path(root)
        if here == skip:
            folders.clear()
            continue
        stores = [name for name in folders if name.lower().endswith(".zarr")]
        yield from (here / name for name in stores if _is_store(here / name))
        folders[:] = [name for name in folders if name not in stores and not name.startswith(".")]
        dicom = []
        for name in names:
            lower = name.lower()
            if name.startswith("."):
                continue
            if lower.endswith(".dcm"):
                dicom.append(here / name)
            elif lower.endswith(suffixes):
                yield here / name
        yield from one_per_series(sorted(dicom))


def _is_store(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def one_per_series(files: Iterable[Path]) -> Iterator[Path]:
    """The first file of each DICOM series; one that OpenSlide cannot place is a slide of its own, and will say why."""
    import openslide

    seen: set[str] = set()
    for path in files:
        try:
            with openslide.OpenSlide(str(path)) as slide:
                series = slide.properties.get(SERIES_UID, "")
        except openslide.OpenSlideError as error:
            log.info("%s: %s", path, error)
            series = ""
        if series and series in seen:
            continue
        seen.add(series)
        yield path
