"""PNG, JPEG, BMP and WebP pictures: decoded whole, so only up to a size, which is checked in the header.

Pictures come upright (EXIF orientation) and damaged ones are refused: decoders that paint over damage in silence
(libjpeg, and zlib's last checksum in PNG) are made strict.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from tilers.orientation import UPRIGHT, turn, turned_size
from tilers.properties import allow_listed, origin_of
from tilers.readers import Backend, Pixels, Resolution, WindowBackend
from tilers.remote import RemotePath
from tilers.samples import BAND_ROWS, Depth, depth_in_use
from tilers.segments import ONE_BIT, check_jpeg_sectors, check_lost_sectors
from tilers.unreadable import UnsupportedKind
from wsi_chat.errors import SlideUnreadable, SlideUnsupported
from wsi_chat.schema import Remark

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
MAX_PIXELS = 120_000_000  # of a 20x scan of 4 x 4 mm there are 64 million
MAX_BYTES = 7 * MAX_PIXELS  # while a picture is decoded; 8 bits per sample take less
DEEP_BYTES = {0: 6, 2: 9, 4: 10, 6: 12}  # colour type of a PNG of 16 bits -> bytes a pixel: its samples, and as shown
ORIENTATION = 0x0112
HEAD_BYTES = 30  # as far as bits per sample stand in a PNG or a BMP
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a picture states; ``size`` is (width, height) as it is shown, turned upright."""

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    frames: int
    resolution: Resolution | None
    description: str = ""


class PlainBackend(WindowBackend):
    """One decoded image in memory, shared by every thread."""

    shareable = True

    def __init__(self, header: Header, pixels: Pixels, notes: tuple[Remark, ...]) -> None:
        self._pixels = pixels
        self.level_sizes = (header.size,)
        self.level_downsamples = (1.0,)
        self.properties = allow_listed(
            {"plain.format": header.format, "plain.mode": header.mode, **origin_of(header.description)}
        )
        self.resolutions = (header.resolution,) if header.resolution else ()
        self.notes = notes

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def read_header(path: Path) -> Header:
    """The header of a picture, without decoding a pixel.

    Raises:
        SlideUnsupported: not such a picture, or above MAX_PIXELS.
    """
    image = _open(path)
    with image:
        return _header(image)


def _open(path: Path) -> Image.Image:
    if path.is_dir():
        raise SlideUnsupported("a folder")
    try:
        with warnings.catch_warnings():
            # Pillow warns at 89 million pixels and raises at twice that; the limit below is checked instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            source = io.BytesIO(path.read_bytes()) if isinstance(path, RemotePath) else path
            image = Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SlideUnsupported(_too_large(str(error))) from error
    except Exception as error:
        raise SlideUnsupported("not a PNG, JPEG, BMP or WebP image") from error
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if _is_black_and_white(head, image):
        image.close()
        raise UnsupportedKind(ONE_BIT)
    width, height = image.size
    most, kind = MAX_PIXELS, ""
    if image.format == "PNG" and (deep := _deep_bytes(head)):
        most, kind = min(most, MAX_BYTES // deep), " of 16 bits per sample"
    if width * height > most:
        image.close()
        raise SlideUnsupported(_too_large(f"{width} x {height} px{kind}", most))
    return image


def _is_black_and_white(head: bytes, image: Image.Image) -> bool:
    """Whether pixels have 1 bit, whatever two colours they stand for."""
    if image.format == "PNG":
        return head[24:25] == b"\1"  # IHDR: bits per sample
    return image.mode == "1" or (image.format == "BMP" and head[14:15] >= b"\x28" and head[28:30] == b"\1\0")


def _deep_bytes(head: bytes) -> int:
    """Bytes that a pixel of a PNG of 16 bits takes while it is decoded; 0 where it has fewer bits."""
    return DEEP_BYTES.get(head[25], 0) if len(head) >= 26 and head[24] == 16 else 0


def _header(image: Image.Image) -> Header:
    try:
        orientation = int(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # EXIF that cannot be parsed states no orientation
        orientation = UPRIGHT
    orientation = orientation if 1 <= orientation <= 8 else UPRIGHT
    frames = 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))
    size = turned_size(image.size, orientation)
    return Header(image.format or "", image.mode, size, orientation, frames, _resolution(image), _description(image))


def _description(image: Image.Image) -> str:
    """What a PNG's text chunk says of the picture; only `tilers.properties.origin_of` reads it."""
    return str(image.info.get("Description") or "") if image.format == "PNG" else ""


def _resolution(image: Image.Image) -> Resolution | None:
    dpi = image.info.get("dpi")
    try:
        x, y = float(dpi[0]), float(dpi[1])  # type: ignore[index]
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return Resolution(25_400.0 / x, 25_400.0 / y, "image resolution tags") if x > 0 and y > 0 else None


def open_backend(path: Path) -> Backend:
    """Open a plain image.

    Raises:
        SlideUnsupported: not such an image, or above MAX_PIXELS (checked in the header, before decoding).
        SlideUnreadable: the image is damaged or cut off.
    """
    image = _open(path)
    with image:
        header = _header(image)
        try:
            pixels, depth = decode(path, image)
        except (SlideUnsupported, MemoryError):
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
            raise SlideUnreadable(
                f"{path.name}: the image cannot be decoded: {error}.",
                hint="Copy the file again from its source; it looks damaged or cut off.",
            ) from error
    notes = (depth.note,) if depth.note else ()
    if header.frames > 1:
        notes = (*notes, Remark("slide.first_frame", n=header.frames))
    return PlainBackend(header, turn(pixels, header.orientation), (*misnamed(path, header.format), *notes))


def misnamed(path: Path, content: str) -> tuple[Remark, ...]:
    """A remark where the suffix names another kind of file than the content is: a JPEG under .svs is no scan."""
    kind = "JPEG" if content == "MPO" else content
    if not path.suffix or SUFFIXES.get(path.suffix.lower()) == kind:
        return ()
    return (Remark("slide.misnamed", kind=kind, suffix=path.suffix.lower()),)


def decode(path: Path, image: Image.Image) -> tuple[Pixels, Depth]:
    """The pixels of an open image as RGB or RGBA, not yet turned, and how deep samples were shrunk.

    Raises:
        ValueError, OSError: the data are damaged (decoders raise further kinds).
    """
    if image.format in ("JPEG", "MPO"):
        return _decode_jpeg(path, image), Depth(255)
    if image.format == "PNG" and _check_png(path) == 16:
        samples = np.asarray(imagecodecs.png_decode(path.read_bytes()))
        depth = depth_in_use(float(samples.min()), float(samples.max()), samples.dtype)
        return _spread_grey(depth.shrink(np.atleast_3d(samples))), depth
    if image.format == "WEBP" and b"ALPH" not in (data := path.read_bytes()):  # alpha may be stored as it is
        check_lost_sectors(data)
    if image.format == "BMP":
        _check_bmp(path)
    image.load()
    return _in_bands(image), Depth(255)


def _decode_jpeg(path: Path, image: Image.Image) -> Pixels:
    """Strict: what libjpeg only warns of (corrupt data, an early end) is an error here."""
    data = path.read_bytes()
    check_jpeg_sectors(data)
    if image.mode == "CMYK":  # libjpeg's check of the data; Pillow knows Adobe's inverted inks
        simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)
        return _in_bands(image)
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True))


def _in_bands(image: Image.Image) -> Pixels:
    """Pillow's pixels as an array, band by band, so that no second copy of the whole is made."""
    mode = "RGBA" if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info else "RGB"
    pixels = np.empty((image.height, image.width, len(mode)), np.uint8)
    for top in range(0, image.height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert(mode))
    return pixels


def _spread_grey(samples: NDArray[np.uint8]) -> Pixels:
    """Grey as RGB and grey with alpha as RGBA; RGB and RGBA as they are."""
    count = samples.shape[2]
    if count >= 3:
        return samples
    rgb = np.repeat(samples[..., :1], 3, axis=2)
    return rgb if count == 1 else np.dstack([rgb, samples[..., 1]])


def _check_bmp(path: Path) -> None:
    """Raises ValueError where a BMP is shorter than its header says. Pixels of a BMP have no checksum."""
    with path.open("rb") as file:
        head = file.read(6)
        size = file.seek(0, io.SEEK_END)
    stated = int.from_bytes(head[2:6], "little")
    if stated > size:
        raise ValueError(f"its header states {stated:,} bytes, it has {size:,}")


def _check_png(path: Path) -> int:
    """Bits per sample; checks every chunk's CRC, the checksum of the compressed pixels and that the file is whole.

    Raises:
        ValueError: the file is damaged or cut off.
    """
    inflate = zlib.decompressobj()
    depth, done = 0, False
    with path.open("rb") as file:
        if file.read(8) != PNG_SIGNATURE:
            raise ValueError("no PNG signature")
        while not done:
            head = file.read(8)
            if len(head) < 8:
                raise ValueError("the file ends before its IEND chunk")
            length, kind = struct.unpack(">I4s", head)
            if length > 2**31 - 1:
                raise ValueError(f"a chunk claims {length} bytes")
            body, check = file.read(length), file.read(4)
            if len(check) < 4 or struct.unpack(">I", check)[0] != zlib.crc32(kind + body):
                raise ValueError(f"the checksum of a {kind.decode('latin-1')} chunk is wrong")
            if kind == b"IHDR" and length == 13:
                depth = body[8]
            elif kind == b"IDAT":
                _inflate(inflate, body)
            done = kind == b"IEND"
    if not inflate.eof:
        raise ValueError("its compressed pixels end early")
    return depth


def _inflate(inflate: zlib._Decompress, body: bytes) -> None:
    """Decompress and drop: at the end of the stream zlib compares its checksum."""
    while body and not inflate.eof:
        inflate.decompress(body, 1 << 20)
        body = inflate.unconsumed_tail


def _too_large(size: str, most: int = MAX_PIXELS) -> str:
    return (
        f"too large for a plain image ({size}, at most {most // 1_000_000} million pixels, "
        "since it must be decoded whole); convert it to a tiled pyramidal TIFF"
    )
