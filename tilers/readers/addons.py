"""Scanner formats that a package of their own reads, with OpenSlide's interface: .kfb, .sdpc and .mrxs.

The packages are optional. A file of such a format without its package is refused with the command that installs it.
Their associated images (label, macro) are never asked for.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tilers.properties import allow_listed, number, objective
from tilers.readers import Backend, Pixels, Resolution, WindowBackend
from wsi_chat.errors import SlideUnsupported

MAX_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Addon:
    """A package that reads one format: its module, the class or function that opens a file, and our extra."""

    module: str
    opener: str
    extra: str


ADDONS = {
    "kfbslide": Addon("kfbslide", "OpenSlide", "kfb"),
    "opensdpc": Addon("opensdpc", "OpenSdpc", "sdpc"),
    "mrxsslide": Addon("mrxsslide", "OpenSlide", "mrxs"),
}


class AddonBackend(WindowBackend):
    """A slide object with OpenSlide's interface, asked only for what lies inside a level.

    Reads are serialised, since nothing is known of its threads; a library in C may crash beyond the edge.
    """

    def __init__(self, slide: Any, vendor: str) -> None:
        self._slide = slide
        self._lock = threading.Lock()
        raw = {str(key): str(value) for key, value in dict(getattr(slide, "properties", {}) or {}).items()}
        sizes = [(int(w), int(h)) for w, h in slide.level_dimensions]
        if not 1 <= len(sizes) <= MAX_LEVELS or any(min(size) < 1 for size in sizes):
            raise SlideUnsupported(f"its levels have the sizes {sizes[:4]}")
        self.level_sizes = tuple(sizes)
        self.level_downsamples = tuple(float(d) for d in slide.level_downsamples)
        self.vendor = raw.get("openslide.vendor", vendor)
        self.properties = allow_listed(raw)
        power = raw.get("openslide.objective-power", getattr(slide, "scan_magnification", None))
        self.objective_power = objective(power)
        x, y = number(raw.get("openslide.mpp-x")), number(raw.get("openslide.mpp-y"))
        self.resolutions = (Resolution(x, y or x, "openslide.mpp-x"),) if x else _ruler(slide)
        colour = raw.get("openslide.background-color", "")
        if len(colour) == 6:
            self.background = (int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16))

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        scale = self.level_downsamples[level]
        at = (round(x * scale), round(y * scale))
        with self._lock:
            pixels = np.asarray(self._slide.read_region(at, level, (width, height)), np.uint8)
        if pixels.shape[:2] != (height, width):
            raise OSError(f"{pixels.shape[1]} x {pixels.shape[0]} px came where {width} x {height} were asked for")
        return pixels

    def close(self) -> None:
        close = getattr(self._slide, "close", None)
        if close is not None:
            close()


def _ruler(slide: Any) -> tuple[Resolution, ...]:
    """µm per pixel in the header of an SDPC slide, as opensdpc holds it; none where there is no such header."""
    try:
        value = number(slide.sdpc.contents.picHead.contents.ruler)
    except (AttributeError, ValueError):  # opensdpc's pointers raise ValueError where they lead nowhere
        return ()
    return (Resolution(value, value, "sdpc ruler"),) if value and value > 0 else ()


def _library_folders(module: str) -> str:
    """Folders of a package that hold shared libraries, as LD_LIBRARY_PATH names them; "" where there are none."""
    spec = find_spec(module)
    tops = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    return ":".join(sorted({str(file.parent) for top in tops for file in top.rglob("*.so*")}))


def open_addon(name: str, path: Path) -> Backend:
    """Open a file with an optional package.

    Raises:
        SlideUnsupported: the package is missing, cannot be loaded, or refuses the file.
    """
    addon = ADDONS[name]
    try:
        module = import_module(addon.module)
    except ImportError as error:
        reason = f"needs the package {name}, which is not installed: pip install 'wsi-chat[{addon.extra}]'"
        if not isinstance(error, ModuleNotFoundError) or error.name != addon.module:
            reason = f"the package {name} cannot be loaded: {error}"
        raise SlideUnsupported(reason) from error
    except OSError as error:  # a shared library that it brings is not found, or does not fit this machine
        folders = _library_folders(addon.module)
        cure = f": start wsi-chat with LD_LIBRARY_PATH={folders}" if folders else ""
        raise SlideUnsupported(f"the package {name} cannot be loaded: {error}{cure}") from error
    try:
        return AddonBackend(getattr(module, addon.opener)(str(path)), name)
    except SlideUnsupported:
        raise
    except Exception as error:
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
