"""How slide files are opened: one backend per file, tried in order, and a registry that plugins add to.

A plugin offers an entry point in the group ``wsi_chat.readers`` whose name is the reader's name and whose
object is a function ``open(path: Path) -> Backend``; an attribute ``suffixes`` (for instance ``(".kfb",)``)
on that function puts it first for those files.
"""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from tilers.listing import LISTING as LISTING
from tilers.remote import RemotePath
from tilers.tiff_header import read_tiff_header
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, FieldRecord, Remark

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "wsi_chat.readers"
Pixels = NDArray[np.uint8]
Region = tuple[int, int, int, int, int]
"""x, y at level 0, the level, width and height at that level."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A file's statement of its scale: µm/px along x and y, and the name of the property that states it."""

    x: float
    y: float
    source: str


class Backend(ABC):
    """One open slide file. Subclass it to read another format.

    ``level_sizes`` are (width, height) per level, level 0 first; ``level_downsamples`` start at 1.
    ``resolutions`` are ordered by trust; implausible ones may be included, the caller judges them.
    ``properties`` hold nothing personal: what is not needed for a report is left out.
    ``shareable`` says that one handle may serve several threads and needs no reopening after an error.
    ``fields`` are the places of photographs that are shown side by side, ``digest`` the fingerprint of all of them.
    ``planes`` counts the focal planes; a backend with more than one overrides ``read_plane``.
    ``shares_pieces`` says that small regions cost no more than large ones that hold them all, since what is decoded for
    one is kept for the next; and that each region comes as an array of its own.
    ``decoding`` says in a clause who decodes the pixels and why, where there is a choice.
    """

    level_sizes: Sequence[tuple[int, int]]
    level_downsamples: Sequence[float]
    resolutions: Sequence[Resolution] = ()
    objective_power: float | None = None
    vendor: str = ""
    bounds: Box | None = None
    background: tuple[int, int, int] = (255, 255, 255)
    properties: Mapping[str, str] = {}
    notes: Sequence[str | Remark] = ()
    shareable: bool = False
    fields: Sequence[FieldRecord] = ()
    digest: str = ""
    planes: int = 1
    shares_pieces: bool = False
    decoding: str = ""

    @abstractmethod
    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Pixels of a region: ``x, y`` at level 0, ``width, height`` at ``level``.

        Returns (height, width, 4) RGBA, alpha 0 where the scan holds no data, or (height, width, 3) RGB.
        Of a stack, the middle plane. May raise anything; the caller turns it into SlideUnreadable.
        """

    def read_plane(self, plane: int, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """Like ``read``, of one focal plane, counted from 0."""
        return self.read(x, y, level, width, height)

    def read_run(self, plane: int, regions: Sequence[Region]) -> list[Pixels | None]:
        """Regions that lie together, each as ``read_plane`` shows it in an array of its own.

        None stands for one that has to be asked for by itself, for whatever reason; ``read_plane`` may fail, or not.
        """
        del plane
        return [None] * len(regions)

    def expect(self, runs: Iterable[Sequence[Region]]) -> None:
        """A hint that these regions will each be read once, those of a run by one ``read_run``.

        A backend that keeps decoded pixels may plan with it.
        """
        del runs

    def reading_notes(self) -> Sequence[Remark]:
        """What became known only while pixels were read, for the report."""
        return ()

    def disregard_scales(self) -> None:  # noqa: B027, most files have one resolution
        """The user states the resolution, and it holds for every photograph. Called before anything is read."""

    @abstractmethod
    def close(self) -> None:
        """Release the file; calling it twice is harmless."""


class WindowBackend(Backend):
    """A backend that can read a window inside a level; regions beyond the edge come back transparent."""

    @abstractmethod
    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Pixels of a window that lies inside the level; all numbers are pixels of that level."""

    def plane_window(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Like ``window``, of one focal plane; a backend with stacks overrides it."""
        return self.window(level, x, y, width, height)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        return self.read_plane(self.planes // 2, x, y, level, width, height)

    def read_plane(self, plane: int, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        scale = self.level_downsamples[level]
        return self.framed(plane, level, round(x / scale), round(y / scale), width, height, self.level_sizes[level])

    def framed(
        self, plane: int, level: int, lx: int, ly: int, width: int, height: int, size: tuple[int, int]
    ) -> Pixels:
        """A window of a level of this size that may reach beyond it, where pixels are transparent."""
        level_w, level_h = size
        x0, x1 = max(lx, 0), min(lx + width, level_w)
        y0, y1 = max(ly, 0), min(ly + height, level_h)
        if (x0, y0, x1, y1) == (lx, ly, lx + width, ly + height):
            return self.plane_window(plane, level, lx, ly, width, height)
        out = np.zeros((height, width, 4), np.uint8)
        if x1 > x0 and y1 > y0:
            inside = self.plane_window(plane, level, x0, y0, x1 - x0, y1 - y0)
            spot = out[y0 - ly : y1 - ly, x0 - lx : x1 - lx]
            spot[..., :3] = inside[..., :3]
            spot[..., 3] = inside[..., 3] if inside.shape[2] == 4 else 255
        return out


Opener = Callable[[Path], Backend]


@dataclass(frozen=True, slots=True)
class Reader:
    """A named way to open files. ``suffixes`` (lower case, with the dot) put it first for those files."""

    name: str
    open: Opener
    suffixes: tuple[str, ...] = ()

    built_in: ClassVar[tuple[str, ...]] = ("openslide", "tiff", "tiffslide", "plain", "omezarr", "fields")
    remote: ClassVar[tuple[str, ...]] = ("tiff", "tiffslide", "plain", "omezarr")  # read addresses, part by part
    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "kfbslide": (".kfb",),
        "opensdpc": (".sdpc",),
        "mrxsslide": (".mrxs",),
        "fastslide": (),  # reads many formats, but only where it is asked for
    }


def _built_in(name: str) -> Opener:
    def opener(path: Path) -> Backend:
        module = import_module(f"tilers.readers.{name}")
        backend: Backend = module.open_backend(path)
        return backend

    return opener


def _optional(name: str) -> Opener:
    def opener(path: Path) -> Backend:
        if name == "fastslide":
            module = import_module("tilers.readers.fastslide")
            return cast(Backend, module.open_backend(path))
        return cast(Backend, import_module("tilers.readers.addons").open_addon(name, path))

    return opener


_registered: dict[str, Reader] = {}


def register_reader(name: str, opener: Opener, *, suffixes: Sequence[str] = ()) -> None:
    """Add a reader for this process; a later registration under the same name replaces the earlier one.

    Raises:
        SettingError: the name is one of the built-in readers.
    """
    if name in Reader.built_in or name in Reader.optional:
        raise SettingError(f"A reader named {name!r} is built in.", hint="Register yours under another name.")
    _registered[name] = Reader(name, opener, tuple(s.lower() for s in suffixes))


def unregister_reader(name: str) -> None:
    """Take a registered reader out again; unknown names are ignored."""
    _registered.pop(name, None)


def registered_by_name() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """The readers registered in this process that another process can import: name -> module, function, suffixes."""
    found = {}
    for name, reader in _registered.items():
        module, function = getattr(reader.open, "__module__", ""), getattr(reader.open, "__qualname__", "")
        if (
            module in sys.modules
            and module != "__main__"
            and getattr(sys.modules[module], function, None) is reader.open
        ):
            found[name] = (module, function, reader.suffixes)
    return found


@cache  # going through the metadata of everything that is installed takes longer than opening a small slide
def _plugins() -> dict[str, Reader]:
    plugins: dict[str, Reader] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in Reader.built_in or point.name in Reader.optional:
            log.warning(
                "reader plugin %r (%s) has the name of a built-in reader and is ignored", point.name, point.value
            )
            continue
        try:
            opener = point.load()
        except Exception as error:  # a broken plugin must not stop slides that others read
            log.warning("reader plugin %r (%s) cannot be loaded: %s", point.name, point.value, error)
            continue
        suffixes = tuple(str(s).lower() for s in getattr(opener, "suffixes", ()))
        plugins[point.name] = Reader(point.name, opener, suffixes)
    return plugins


def all_readers() -> tuple[Reader, ...]:
    """Every reader, built-in ones first, then plugins and registered ones by name."""
    extra = _plugins() | _registered
    return (
        *(Reader(name, _built_in(name)) for name in Reader.built_in),
        *(Reader(name, _optional(name), suffixes) for name, suffixes in Reader.optional.items()),
        *(extra[name] for name in sorted(extra)),
    )


def reader_names() -> tuple[str, ...]:
    """Names that ``open_slide(reader=...)`` accepts."""
    return tuple(reader.name for reader in all_readers())


def candidates(path: Path, name: str | None = None) -> tuple[Reader, ...]:
    """Readers to try for a file, in order: those that claim its suffix, then the others.

    A TIFF with a scanner's own layout goes to those who know where its label and macro lie; any other TIFF to the
    reader ``tiff`` alone, which decodes strictly and refuses what it cannot show, where others would guess.

    Raises:
        SettingError: ``name`` is given and no reader has that name, or it does not read addresses.
    """
    every = all_readers()
    if isinstance(path, RemotePath):
        if name is not None and name not in Reader.remote and any(r.name == name for r in every):
            raise SettingError(
                f"The slide reader {name} reads files of this machine only, and {path} is an address.",
                hint=f"Copy the slide to this machine, or choose one of: {', '.join(Reader.remote)}.",
            )
        every = tuple(r for r in every if r.name in Reader.remote)
    if name is not None:
        chosen = tuple(r for r in every if r.name == name)
        if not chosen:
            names = ", ".join(r.name for r in every)
            raise SettingError(f"There is no slide reader named {name!r}.", hint=f"Choose one of: {names}.")
        return chosen
    header = read_tiff_header(path)
    if header is not None:
        unfit = {"plain", "omezarr"} | ({"tiff"} if header.vendor else {"openslide", "tiffslide"})
    else:
        unfit = {"tiff", "tiffslide", "plain" if path.is_dir() else "omezarr"}
    every = tuple(r for r in every if r.name not in unfit)
    lower = path.name.lower()
    if not (path.is_dir() or lower.endswith(LISTING)):  # a file is no specimen of several photographs
        every = tuple(r for r in every if r.name != "fields")
    every = tuple(r for r in every if r.name not in Reader.optional or lower.endswith(r.suffixes))
    if lower.endswith(".mrxs"):  # OpenSlide first: its own reader is for the files that it has trouble with
        return every
    return tuple(sorted(every, key=lambda r: not any(lower.endswith(s) for s in r.suffixes)))
