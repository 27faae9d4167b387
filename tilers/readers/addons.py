"""Scanner formats that a package of their own reads, with OpenSlide's interface: .kfb, .sdpc and .mrxs.

The packages are optional. A file of such a format without its package is refused with the command that installs it.
Their associated images (label, macro) are never asked for.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tilers.properties import allow_listed, number, objective
from tilers.readers import Backend, Pixels, Resolution
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


class AddonBackend(Backend):
    """A slide object with OpenSlide's interface; reads are serialised, since nothing is known of its threads."""

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
        self.resolutions = (Resolution(x, y or x, "openslide.mpp-x"),) if x else ()

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        with self._lock:
            return np.asarray(self._slide.read_region((x, y), level, (width, height)), np.uint8)

    def close(self) -> None:
        close = getattr(self._slide, "close", None)
        if close is not None:
            close()


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
    except OSError as error:  # a shared library that it brings does not fit this machine
        raise SlideUnsupported(f"the package {name} cannot be loaded: {error}") from error
    try:
        return AddonBackend(getattr(module, addon.opener)(str(path)), name)
    except SlideUnsupported:
        raise
    except Exception as error:
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
