"""Which of a slide's properties may be stored, and how their numbers are read. Anything not listed is dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tilers.readers import Resolution
from wsi_chat.schema import ORIGIN, RENDERED_NOTE

# Scanner and optics only: no names, dates, barcodes, file names, comments, serial numbers or UIDs.
ALLOWED = frozenset(
    {
        "aperio.AppMag",
        "aperio.MPP",
        "aperio.StripeWidth",
        "dicom.Manufacturer",
        "dicom.ManufacturerModelName",
        "dicom.Modality",
        "hamamatsu.SourceLens",
        "leica.objective",
        "mirax.GENERAL.OBJECTIVE_MAGNIFICATION",
        "openslide.background-color",
        "openslide.bounds-height",
        "openslide.bounds-width",
        "openslide.bounds-x",
        "openslide.bounds-y",
        "openslide.icc-size",
        "openslide.level-count",
        "openslide.mpp-x",
        "openslide.mpp-y",
        "openslide.objective-power",
        "openslide.vendor",
        "tiff.ResolutionUnit",
        "tiff.XResolution",
        "tiff.YResolution",
        "tiffslide.level-count",
        "tiffslide.mpp-x",
        "tiffslide.mpp-y",
        "tiffslide.objective-power",
        "tiffslide.vendor",
        "ome.version",
        "zarr.format",
        "plain.format",
        "plain.mode",
        ORIGIN,
    }
)


def allow_listed(raw: Mapping[str, Any]) -> dict[str, str]:
    """The properties that may be stored, sorted by name, as text."""
    return {key: str(raw[key]) for key in sorted(raw) if key in ALLOWED and raw[key] not in (None, "")}


def origin_of(description: object) -> dict[str, str]:
    """The property `ORIGIN` of a file that says in its description that it was rendered; nothing for any other text.

    Free text may hold names and dates, so the description itself is never kept.
    """
    return {ORIGIN: "rendered"} if str(description or "").strip() == RENDERED_NOTE else {}


def number(value: object) -> float | None:
    """A finite number from a property, or None. A decimal comma is accepted (some vendors write one)."""
    if value is None:
        return None
    try:
        parsed = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None


def objective(value: object) -> float | None:
    """Objective power (20, 40, ...) from ``20``, ``20.0`` or ``20x``; None where it is not positive."""
    power = number(str(value).strip().lower().rstrip("x")) if value is not None else None
    return power if power is not None and power > 0 else None


_UNITS_UM = {"centimeter": 10_000.0, "cm": 10_000.0, "3": 10_000.0, "inch": 25_400.0, "2": 25_400.0}


def tiff_resolution(x: object, y: object, unit: object) -> Resolution | None:
    """µm/px from TIFF resolution tags (pixels per unit); None without a physical unit."""
    name = str(getattr(unit, "name", unit)).lower()
    per_unit = _UNITS_UM.get(name)
    x_per, y_per = number(x), number(y)
    if per_unit is None or not x_per or x_per <= 0:
        return None
    y_per = y_per if y_per and y_per > 0 else x_per
    return Resolution(per_unit / x_per, per_unit / y_per, "tiff resolution tags")
