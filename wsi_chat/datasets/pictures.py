"""Pictures that a data set names: only regular files in its own folders are opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tilers.picture import open_picture
from wsi_chat.bounded import open_regular
from wsi_chat.errors import DocumentError, SlideError

if TYPE_CHECKING:
    from PIL import Image


def locate(image: str, folders: Sequence[Path], *, option: str = "") -> Path:
    """The picture that a row names, in the first of the folders that has it; else where it should be.

    Args:
        option: what names another folder for them, for the hint.

    Raises:
        SlideError: the name leads out of every folder.
    """
    inside = []
    for folder in folders:
        # as written, not resolved: a link in the folder to where the pictures are kept is the owner's own choice
        base = Path(os.path.normpath(folder.absolute()))
        if Path(os.path.normpath(base / image)).is_relative_to(base):
            inside.append(folder / image)
    if not inside:
        raise SlideError(
            f"image {image} lies outside the data set's folder",
            hint=f"Name pictures relative to it{f', or give their folder with {option}' if option else ''}.",
        )
    return next((path for path in inside if exists(path)), inside[0])


def exists(path: Path) -> bool:
    """Whether a path leads to anything; not where no file system takes its name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def load_picture(path: Path) -> Image.Image:
    """A picture of a data set as RGB, upright. Raises SlideError naming it."""
    try:
        return open_picture(path)
    except SlideError as error:
        raise SlideError(f"image {path} cannot be read ({error.message})", hint=error.hint) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file's bytes. Raises SlideError."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (DocumentError, OSError) as error:
        reason = error.reason if isinstance(error, DocumentError) else f"cannot be read ({error})"
        raise SlideError(f"image {path} {reason}") from error
