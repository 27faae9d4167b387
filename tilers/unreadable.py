"""What to tell the owner of a file that no reader opens: what it is, and the way out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tilers.remote import RemotePath
from wsi_chat.errors import SlideUnsupported

ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"Rar!": "a rar archive",
            b"7z\xbc\xaf": "a 7z archive"}  # fmt: skip
EXTRAS = {".kfb": "kfb", ".sdpc": "sdpc", ".mrxs": "mrxs"}
# Scanner formats that no reader here knows, and who exports them.
CLOSED = {
    ".tmap": "Unic's viewer", ".tron": "InteMedic's viewer", ".isyntax": "Philips' viewer, or the package pyisyntax",
    ".mdsx": "Motic's viewer", ".mds": "Motic's viewer", ".dyqx": "its scanner's viewer", ".dsmeta": "its viewer",
    ".vsi": "Olympus' viewer or Bio-Formats", ".lif": "Leica's viewer or Bio-Formats", ".zyp": "its viewer",
    ".ets": "Olympus' viewer or Bio-Formats", ".zvi": "ZEN or Bio-Formats", ".jp2": "Bio-Formats", ".hdx": "its viewer",
}  # fmt: skip
CONVERT = "convert it to a pyramidal TIFF, OME-TIFF or DICOM (scanner software, QuPath or Bio-Formats can)"
EIGHT_BITS = "Convert it to 8-bit RGB: a pyramidal TIFF, OME-TIFF or DICOM (QuPath or Bio-Formats can)."
REWRITE = "Write it again as a tiled, pyramidal TIFF or OME-TIFF (QuPath or Bio-Formats can)."
KNOWN = (".svs", ".tif", ".tiff", ".ndpi", ".ndpis", ".vms", ".vmu", ".scn", ".svslide", ".bif", ".czi", ".dcm",
         ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".zarr")  # fmt: skip

DICOM_KIND = ("SOPClassUID", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP Class UID
# Transfer syntaxes that OpenSlide reads: uncompressed (explicit, little endian), JPEG of 8 bits, JPEG 2000.
DICOM_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
OTHER_BITS, OTHER_SAMPLES = (1, 16, 24, 32, 64), (1, 2, 4)
OTHER_COLOURS = ("MONOCHROME", "PALETTE")


class UnsupportedKind(SlideUnsupported):
    """A file that may be whole, but whose pixels are of a kind that is not shown; its hint says how to convert it."""

    def __init__(self, message: str, *, hint: str = EIGHT_BITS) -> None:
        super().__init__(message, hint=hint)


def describe_file(path: Path) -> str:
    """What the first bytes say of a file that nothing opens: a clause that ends in "; ", or ""."""
    if path.is_dir():
        return ""
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    orders: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
    order = orders.get(head[:2])
    if order is not None and len(head) >= 8:
        version = int.from_bytes(head[2:4], order)
        start = int.from_bytes(head[4:8] if version == 42 else head[8:16], order)
        if version in (42, 43) and start >= size:
            return f"it is cut off (its directory should be at byte {start}, the file ends at {size}); "
        return ""
    archive = _archive(head)
    if archive:
        return f"it is {archive}; "
    text = head.decode("utf-8", errors="replace")
    if all(c.isprintable() or c.isspace() for c in text):
        suffix = f", whatever its suffix {path.suffix!r} says" if path.suffix else ""
        return f"it is a text file{suffix}; "
    return ""


def way_out(path: Path, errors: Sequence[Exception] = ()) -> str:
    """The hint: one imperative sentence that fits the kind of file.

    Args:
        errors: what the readers raised. Where one of them knows the file, but not how to show its pixels, its own hint
            is the way out: the file is not damaged.
    """
    for error in errors:
        if isinstance(error, UnsupportedKind):
            return error.hint
    suffix = path.suffix.lower()
    if not path.is_dir():
        with path.open("rb") as file:
            head = file.read(132)
        if _archive(head):
            return "Unpack the archive and give the slide inside it."
        if isinstance(path, RemotePath):
            return "By address only TIFF-based slides, pictures and OME-Zarr are read: copy the slide to this machine."
        if head[128:132] == b"DICM":
            return _dicom_way_out(path, errors)
    if suffix in EXTRAS:
        extra = EXTRAS[suffix]
        return f"Install its reader with pip install 'wsi-chat[{extra}]' if it is missing, or {CONVERT}."
    if suffix in CLOSED:
        return f"The format {suffix} is not supported: export it with {CLOSED[suffix]}, or {CONVERT}."
    if suffix and suffix not in KNOWN:
        return (
            f"No reader for {suffix} files is installed: install a reader plugin (see `wsi-chat doctor`), or {CONVERT}."
        )
    return "Check that the file was copied completely; `wsi-chat doctor` lists the readers."


def _dicom_way_out(path: Path, errors: Sequence[Exception]) -> str:
    """Another kind than is read where the header says so itself; otherwise the file is not whole."""
    if _is_other_dicom(path):
        return "This kind of DICOM is not supported: export it with 8 bits per sample, or " + CONVERT + "."
    if any("libdicom" in str(error) for error in errors):
        return "The file is cut off or damaged: copy it again from its source."
    return (
        "Copy it again from its source, with all files of its series beside it: it is cut off or damaged, or others "
        "are missing."
    )


def _is_other_dicom(path: Path) -> bool:
    """Whether a DICOM header states what is not read: no slide, other samples than three of 8 bits, other compression.

    What is not stated, or cannot be true, says nothing: damage does that.
    """
    import pydicom
    from pydicom.uid import UID

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(DICOM_KIND))
            kind, bits, samples, colours = (header.get(keyword) for keyword in DICOM_KIND)
            syntax = header.file_meta.get("TransferSyntaxUID")
    except Exception:  # pydicom raises many kinds on damaged headers
        return False
    return (
        (isinstance(kind, UID) and kind != WHOLE_SLIDE and kind.type == "SOP Class")
        or bits in OTHER_BITS
        or samples in OTHER_SAMPLES
        or (isinstance(colours, str) and colours.startswith(OTHER_COLOURS))
        or (isinstance(syntax, UID) and syntax.is_transfer_syntax and syntax not in DICOM_SYNTAXES)
    )


def _archive(head: bytes) -> str:
    return next((name for magic, name in ARCHIVES.items() if head.startswith(magic)), "")
