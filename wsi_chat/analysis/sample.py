"""A slide, or a specimen of several photographs, as whoever named it gives it: a manifest, a folder or a path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tilers.listing import LISTING
from wsi_chat.analysis.run_folder import RUN_HINT
from wsi_chat.analysis.slide_ids import known_suffix, slide_id, specimen_folder
from wsi_chat.atomic import write_text
from wsi_chat.errors import as_utf8


@dataclass(frozen=True, slots=True)
class Sample:
    """One slide of a run, as it was named.

    ``path`` is absolute, or an address; ``mpp`` µm/px of level 0, None for the slide's own; ``specimen`` None for the
    run's own; ``extra`` the other columns, in order; ``line`` of the manifest, 0 where there is none. ``fields`` are
    the photographs of a specimen of several; ``path`` is then where their listing is written (see `listed`). ``place``
    is the path as documents show it, without the folders above the manifest or the searched folder. ``alias`` is the
    pseudonym under which documents show the slide (empty: its own names), and ``named`` the sample's own id then.
    """

    sample_id: str
    path: Path
    mpp: float | None = None
    label: str = ""
    patient: str = ""
    specimen: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    line: int = 0
    fields: tuple[Path, ...] = ()
    place: str = ""
    alias: str = ""
    named: str = ""

    @property
    def file_name(self) -> str:
        """The name of the slide's file as documents show it."""
        if self.alias:
            return f"{self.alias}{known_suffix(self.path)}"
        return as_utf8(self.path.name)

    @property
    def image_path(self) -> str:
        """Where the slide's file is, as documents show it."""
        return self.file_name if self.alias else as_utf8(self.place or self.path.name)

    @property
    def slide_id(self) -> str:
        """Name of the slide's folder in the run folder."""
        if self.alias:
            return self.alias
        if self.fields:
            return specimen_folder(self.sample_id, self.fields)
        return slide_id(self.path)


def listed(samples: Iterable[Sample], folder: Path) -> tuple[Sample, ...]:
    """The samples with the listing of each specimen of several photographs written into ``folder``.

    Raises:
        OutputError: a listing cannot be written.
    """
    return tuple(_listed(sample, folder) if sample.fields else sample for sample in samples)


def _listed(sample: Sample, folder: Path) -> Sample:
    from tilers.photographs import listing_text

    path, text = folder / f"{sample.slide_id}{LISTING}", listing_text(sample.fields)
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text, hint=RUN_HINT, private=bool(sample.alias))
    return replace(sample, path=path.absolute())


def place_below(path: Path, folder: Path) -> str:
    """A path from a folder on, where it lies below it; its name otherwise, so that no document says where that is."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.name
