"""What a slide's folder is called: a name that a person knows again, and no other slide has."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path


def slide_id(path: Path) -> str:
    """The file's stem plus eight hex digits of the SHA-256 of its absolute path or address.

    Same-named slides never collide.
    """
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    suffix = known_suffix(path)
    stem = path.name[: -len(suffix)] if suffix else path.name
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem) or "slide"
    return f"{safe[:80]}-{digest}"


def known_suffix(path: Path) -> str:
    """The suffix of a slide's file, as it is written, both parts of ``.ome.tiff``."""
    double = next((s for s in (".ome.zarr", ".ome.tiff", ".ome.tif") if path.name.lower().endswith(s)), "")
    return path.name[-len(double) :] if double else path.suffix


def specimen_folder(name: str, photographs: Sequence[Path]) -> str:
    """The id of a specimen of several photographs: its name and eight hex digits over their absolute paths."""
    digest = hashlib.sha256("\n".join(str(path.resolve()) for path in photographs).encode(errors="surrogateescape"))
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name) or "specimen"
    return f"{safe[:80]}-{digest.hexdigest()[:8]}"
