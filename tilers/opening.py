"""How a slide is opened: what it names is looked at, then each reader that may know it is tried."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from numpy.typing import ArrayLike
from PIL import Image

from tilers.dicom import dicom_files, irregular_file, is_dicom
from tilers.photographs import REPORT, RUN_RECORD, is_of_a_run, photographs_in, way_back
from tilers.readers import candidates, registered_by_name
from tilers.readers.memory import NAME as MEMORY
from tilers.readers.memory import open_memory
from tilers.remote import STORE_MARKS, RemotePath, slide_path
from tilers.slide import Slide
from tilers.tiff_header import read_tiff_header
from tilers.trial import needs_trial, wanted
from tilers.trial import trial as the_trial
from tilers.unreadable import describe_file, way_out
from wsi_chat.errors import SlideNotFound, SlideUnreadable, SlideUnsupported
from wsi_chat.names import Names

OPENSLIDE = "openslide"


def open_slide(
    path: str | Path,
    *,
    mpp: float | None = None,
    reader: str | None = None,
    z: str | int = "best",
    names: Names | None = None,
    trial: bool | None = None,
) -> Slide:
    """Open a slide with the first reader that takes it.

    Before that, a process of its own opens it and reads a few tiles: a file that makes a library abort, never end or
    allocate without bound is refused. Pictures of fields and addresses are opened without (see `tilers.trial`).

    Args:
        path: a slide file, an image, one file or the folder of a DICOM series, an OME-Zarr folder; or a folder of
            photographs or a listing of them (``.fields``), which are one specimen and are shown side by side. An
            address (``https://``, ``s3://`` and the like) of a TIFF, a picture or an OME-Zarr is read part by part.
        mpp: µm per level-0 pixel; overrides the file's own metadata.
        reader: the only reader to try.
        z: of a stack, the focal plane to show: ``best`` (the sharpest of each tile), ``fused`` (each place from the
            plane in which it is sharp), ``mid``, or its number from 0.
        names: what it is called in documents, and what must not show there; None is its file's name. Errors of this
            function itself name the file.
        trial: whether a process of its own opens it first; None does as WSI_CHAT_TRIAL says, and otherwise does.

    Raises:
        SlideNotFound: no such file, or a folder that is not a slide.
        SlideUnsupported: no reader opens it; the message has each reader's reason.
        SlideUnreadable: an image that is damaged, or a file that ended the process that opened it on trial.
        SettingError: ``mpp`` is implausible, ``reader`` unknown, or the slide has no plane ``z``.
    """
    path = slide_path(path)
    _check_path(path)
    _check_header(path)
    if reader in (None, OPENSLIDE):
        _check_neighbours(path)
    if wanted(trial) and needs_trial(path):
        the_trial.check(path, reader=reader, registered=registered_by_name())
    return open_untried(path, mpp=mpp, reader=reader, z=z, names=names)


def open_untried(
    path: Path,
    *,
    mpp: float | None = None,
    reader: str | None = None,
    z: str | int = "best",
    names: Names | None = None,
    trying: Callable[[str, BaseException | None], None] = lambda reader, error: None,
) -> Slide:
    """`open_slide` without a look at the file before.

    Args:
        trying: told the name of each reader before it opens the file, and again with what it raised.
    """
    reasons, errors = [], []
    for candidate in candidates(path, reader):
        trying(candidate.name, None)
        try:
            backend = candidate.open(path)
        except SlideUnreadable as error:
            trying(candidate.name, error)
            raise
        except Exception as error:  # a plugin may raise anything
            trying(candidate.name, error)
            reason = " ".join(str(getattr(error, "message", "") or error).replace(str(path), path.name).split())
            reasons.append(f"{candidate.name}: {reason}")
            errors.append(error)
            continue
        try:
            return Slide(path, reader=candidate.name, opener=candidate.open, backend=backend, mpp=mpp, z=z, names=names)
        except BaseException:
            backend.close()
            raise
    raise SlideUnsupported(
        f"{path.name} cannot be opened as a slide: {describe_file(path)}{'; '.join(reasons)}.",
        hint=way_out(path, errors),
    )


def slide_of(picture: ArrayLike | Image.Image, *, mpp: float | None = None) -> Slide:
    """A picture in memory as an open slide of one level.

    Args:
        picture: see `tilers.readers.memory.open_memory`.
        mpp: µm per pixel, None where it is not known.

    Raises:
        SettingError: it is not a picture, or ``mpp`` is implausible.
    """
    backend = open_memory(picture)
    return Slide(Path(MEMORY), reader="memory", opener=lambda _: backend, backend=backend, mpp=mpp)


def _check_path(path: Path) -> None:
    if isinstance(path, RemotePath):
        path.look()  # says itself what is wrong
    elif not path.exists():
        raise SlideNotFound(f"There is no file {path}.", hint="Check the path and its spelling.")
    if path.is_dir():
        _check_run_folder(path)
        slide = any((path / mark).is_file() for mark in STORE_MARKS)
        if not slide and (isinstance(path, RemotePath) or not (dicom_files(path) or photographs_in(path))):
            raise SlideNotFound(
                f"{path} is a folder, not a slide, and no photographs of fields lie in it.",
                hint="Give a file in it (for DICOM any one .dcm of the series), an OME-Zarr or DICOM folder, or a "
                "folder of photographs; `wsi-chat cohort` takes a folder of slides.",
            )
    elif not isinstance(path, RemotePath) and (kind := _irregular(path)):
        raise SlideUnsupported(
            f"{path.name} is {kind}, not a regular file.",
            hint="Give the slide's file, or save to one what comes from it.",
        )
    elif path.stat().st_size == 0:
        raise SlideUnsupported(f"{path.name} is empty (0 bytes).", hint="Copy the file again from its source.")


def _irregular(path: Path) -> str:
    """What stands at a path in place of a regular file, or ""."""
    mode = path.stat().st_mode
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "a special file")


def _check_run_folder(path: Path) -> None:
    """Say of a folder that this program wrote what can be done with it; a slide it is not."""
    if isinstance(path, RemotePath):
        return
    if is_of_a_run(path):
        raise SlideNotFound(
            f"{path} is what was written about an analyzed slide, not the slide.",
            hint=f"`wsi-chat chat {path}` talks about it; to ask about pixels, name the slide's file."
            if (path / REPORT).is_file()
            else way_back(path),
        )
    if (path / RUN_RECORD).is_file() and not photographs_in(path):
        raise SlideNotFound(
            f"{path} is the folder of a run, not a slide.",
            hint=f"`wsi-chat view {path}` shows its slides, and `wsi-chat chat {path}/<slide id>` talks about one.",
        )


def _check_neighbours(path: Path) -> None:
    """Refuse DICOM beside a pipe or a device: once a slide, and not at each of the handles that OpenSlide opens."""
    if isinstance(path, RemotePath):
        return
    if path.is_dir():
        other = irregular_file(path)
        beside = bool(other) and bool(dicom_files(path))
    else:
        beside = is_dicom(path)
        other = irregular_file(path.parent) if beside else ""
    if beside and other:
        raise SlideUnsupported(
            f"{path.name} cannot be opened as a slide: {other} in its folder is no file, and OpenSlide would wait for "
            "it for ever.",
            hint=f"Move {other} out of the folder.",
        )


def _check_header(path: Path) -> None:
    """Refuse what makes a library abort the process or allocate without bound, before any library sees the file."""
    header = read_tiff_header(path)
    if header is not None and header.objection:
        raise SlideUnsupported(
            f"{path.name} cannot be opened as a slide: {header.objection}.",
            hint="Copy the file again from its source; it looks damaged.",
        )
