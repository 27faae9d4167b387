"""The manifest of a cohort: a CSV with one row per slide, as this program, TRIDENT, hs2p or CLAM write it.

Rows of photographs with one ``specimen_id`` are the fields of one specimen, and one sample.

All that is wrong with it is said before anything runs, with the line, the column and the value. Whether a slide file is
there is not the manifest's business: a missing one is one failed slide.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PureWindowsPath

from tilers.listing import LISTING
from tilers.remote import RemotePath, slide_path
from wsi_chat.analysis.manifest_encoding import refuse_to_guess
from wsi_chat.analysis.manifest_faults import Faults
from wsi_chat.analysis.sample import Sample, place_below
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.bounded import read_bytes
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.names import from_home
from wsi_chat.terminology import load_system

log = logging.getLogger(__name__)

# our name of a column, then what others call it: TRIDENT's list of slides has `wsi` and `mpp`, hs2p's `sample_id`,
# `image_path` (earlier `wsi_path`) and `spacing_at_level_0`, CLAM's `case_id` and `slide_id`
ALIASES: dict[str, tuple[str, ...]] = {
    "sample_id": ("sample_id", "sample", "slide_id"),
    "image_path": ("image_path", "wsi", "wsi_path", "slide_path", "path", "filename", "file", "slide"),
    "mpp": ("mpp", "spacing", "spacing_at_level_0", "um_per_px"),
    "label": ("label", "class", "diagnosis"),
    "patient": ("patient", "patient_id", "case_id", "subject_id"),
    "specimen": ("specimen", "specimen_type"),
    "specimen_id": ("specimen_id",),
}
SEPARATORS = ",;\t|"
# what other programs write where they know no number
UNKNOWN = frozenset({"", "nan", "na", "n/a", "none", "null", "-"})
# where a file is not UTF-8, in the order of likelihood; the one under which the slides exist is right
LEGACY_ENCODINGS = ("gb18030", "cp1252", "shift_jis", "cp949", "cp1250", "cp1251")


def read_manifest(path: str | Path) -> tuple[Sample, ...]:
    """The slides of a manifest, in its order.

    The separator is a comma, semicolon, tab or bar; the text UTF-8 (with or without a byte order mark), UTF-16 with
    one, or an encoding of older spreadsheets under which the slides are found. Relative paths are joined to the
    manifest's folder. Column names are compared without case; `ALIASES` lists what is known.

    Raises:
        SettingError: the file, a line, a column or a value cannot be used; names each, up to
            `manifest_faults.SHOWN` of them.
    """
    path = Path(path)
    faults = Faults(path.name)
    rows = _rows(path, _text(path), faults)
    made = [(faults.noting(line, partial(_sample, path, line, row)), row) for line, row in rows]
    sound = [(sample, row) for sample, row in made if sample is not None]
    samples = _gathered(path, [sample for sample, _ in sound], [row for _, row in sound], faults)
    _check_unique(path, samples, faults)
    faults.settle()
    if not samples:
        raise SettingError(f"{path.name} has a header and no slide.", hint="Write one line per slide below it.")
    return tuple(samples)


def _gathered(
    manifest: Path, samples: Sequence[Sample], rows: Sequence[Mapping[str, str]], faults: Faults
) -> list[Sample]:
    """The samples with the photographs of each ``specimen_id`` as one; slides are a sample each whatever it says."""
    from tilers.photographs import is_photograph

    groups: dict[str, list[Sample]] = {}
    for sample, row in zip(samples, rows, strict=True):
        name = row.get("specimen_id", "")
        groups.setdefault(name if name and is_photograph(sample.path) else f"line {sample.line}", []).append(sample)
    names = {row.get("specimen_id", "") for row in rows}
    return [
        made
        for name, group in groups.items()
        if (made := _specimen(manifest, name, group, faults) if name in names else group[0]) is not None
    ]


def _specimen(manifest: Path, name: str, rows: Sequence[Sample], faults: Faults) -> Sample | None:
    """The photographs of one specimen as one sample; None where they disagree, which is noted."""
    first, sound = rows[0], True
    for column in ("mpp", "label", "patient", "specimen"):
        for row in rows:
            if getattr(row, column) != getattr(first, column):
                sound = False
                faults.add(row.line, SettingError(
                    f"{manifest.name}, line {row.line}, column {column}: {getattr(row, column)!r}, but line "
                    f"{first.line} of the same specimen {name!r} has {getattr(first, column)!r}.",
                    hint="Give all fields of a specimen the same value, or each specimen an id of its own.",
                ))  # fmt: skip
    extra = {key: value for key, value in first.extra.items() if all(row.extra.get(key) == value for row in rows)}
    paths = tuple(row.path for row in rows)
    for n, row in enumerate(rows):
        if row.path in paths[:n]:
            sound = False
            faults.add(row.line, SettingError(
                f"{manifest.name}, line {row.line}, column image_path: {row.path} is named twice in specimen {name!r}.",
                hint="Name every field once.",
            ))  # fmt: skip
    if not sound:
        return None
    return replace(first, sample_id=name, path=first.path.parent / f"{name}{LISTING}", fields=paths, extra=extra)


# ------------------------------------------------------------------------------------------ text


def _text(path: Path) -> str:
    try:
        data = read_bytes(path)
    except DocumentError as error:
        raise SettingError(f"The manifest {error.message}", hint="Name a CSV file or a folder of slides.") from error
    if not data.strip(b"\x00 \t\r\n\xef\xbb\xbf\xff\xfe"):
        raise SettingError(
            f"The manifest {path.name} is empty.", hint="Write a header (image_path, ...) and one line per slide."
        )
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decoded(path, data, "utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    readings = {encoding: found for encoding in LEGACY_ENCODINGS if (found := _found(path, data, encoding)) is not None}
    # a slide whose own name is not ASCII is there under the right encoding alone; others are there under any
    named = [encoding for encoding, found in readings.items() if not "".join(found).isascii()]
    for encoding in named or [encoding for encoding, found in readings.items() if found]:
        if not named and encoding == "gb18030":
            refuse_to_guess(path.name, data, [other for other in readings if other != encoding])
        log.warning("%s is not UTF-8; read as %s, under which its slides are found", path.name, encoding)
        return data.decode(encoding)
    raise SettingError(
        f"{path.name}, line {line}: not UTF-8 text, nor an older encoding under which its slides are found.",
        hint="Save the manifest as 'CSV UTF-8'.",
    )


def _found(path: Path, data: bytes, encoding: str) -> list[str] | None:
    """Slides that are there, as the manifest names them in this encoding; None where its bytes are not in that."""
    try:
        rows = _rows(path, data.decode(encoding), Faults(path.name))
    except (UnicodeDecodeError, SettingError):
        return None
    found = []
    for _, row in rows:
        with contextlib.suppress(SettingError, OSError, ValueError):
            slide = _resolve(path, row["image_path"])
            if not isinstance(slide, RemotePath) and slide.exists():
                found.append(row["image_path"])
                if not row["image_path"].isascii():
                    break  # that tells the encoding
    return found


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SettingError(f"{path.name} is damaged {encoding} text.", hint="Save it as 'CSV UTF-8'.") from error


# ------------------------------------------------------------------------------------------ table


def _rows(path: Path, text: str, faults: Faults) -> list[tuple[int, dict[str, str]]]:
    """(line number, row by our column names); other columns keep theirs. Blank lines are left out, faults noted."""
    if "\x00" in text:
        raise SettingError(f"{path.name} is not a text file.", hint="Give a CSV file.")
    text, stated = _without_sep_line(text)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = stated or _separator(first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    names: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = _columns(path, reader.line_num, cells)
                continue
            if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                faults.add(reader.line_num, SettingError(
                    f"{path.name}, line {reader.line_num}: {len(cells)} values under {len(names)} columns, "
                    f"the first one too many is {cells[len(names)]!r}.",
                    hint='Put values that hold the separator in "quotes".',
                ))  # fmt: skip
                continue
            padded = [cell.strip() for cell in cells] + [""] * (len(names) - len(cells))
            rows.append((reader.line_num, {name: padded[i] for i, name in enumerate(names) if name}))
    except csv.Error as error:
        raise SettingError(
            f"{path.name}, line {reader.line_num}: {error}.", hint="Check the quotes on that line."
        ) from error
    return rows


def _without_sep_line(text: str) -> tuple[str, str]:
    """The text with its first line emptied, where that is Excel's ``sep=;``, and the separator it names (or "")."""
    match = re.match(r"\s*\"?sep=(.)\"?[,;\t|]*[ \t]*(?=\r?\n|\r|$)", text, re.IGNORECASE)
    return (text[match.end() :], match[1]) if match else (text, "")


def _separator(header: str) -> str:
    """The one under which the header names most columns that are known, then most columns at all."""

    def known(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"').casefold() for name in header.split(separator)]
        return sum(name in aliases for aliases in ALIASES.values() for name in names), len(names)

    return max(SEPARATORS, key=known)


def _columns(path: Path, line: int, header: Sequence[str]) -> list[str]:
    """Our names of the columns, in place; an alias whose own name is there too stays an extra column."""
    given = [name.strip() for name in header]
    folded = [name.casefold() for name in given]
    for name in folded:
        if name and folded.count(name) > 1:
            raise SettingError(f"{path.name}, line {line}: the column {name!r} appears twice.", hint="Rename one.")
    names = list(given)
    for ours, aliases in ALIASES.items():
        found = next((alias for alias in aliases if alias in folded), None)
        if found is not None:
            names[folded.index(found)] = ours
    if "image_path" not in names:
        raise SettingError(
            f"{path.name}, line {line}: no column image_path; it has {', '.join(filter(None, given))}.",
            hint=f"Name the column with the slide files one of: {', '.join(ALIASES['image_path'])}.",
        )
    return names


# ------------------------------------------------------------------------------------------ values


def _sample(manifest: Path, line: int, row: Mapping[str, str]) -> Sample:
    written = row["image_path"]
    if not written:
        raise SettingError(f"{manifest.name}, line {line}, column image_path: no value.", hint="Name the slide's file.")
    try:
        path = _resolve(manifest, written)
        _ = isinstance(path, RemotePath) or path.exists()  # an address is asked when its turn comes
    except SettingError as error:
        raise SettingError(
            f"{manifest.name}, line {line}, column image_path: {error.message}", hint=error.hint
        ) from error
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{manifest.name}, line {line}, column image_path: {written!r} is not a valid path ({error}).",
            hint="Name the slide's file.",
        ) from error
    specimen = row.get("specimen") or None
    if specimen is not None:
        if specimen.lower().endswith((".yaml", ".yml")):
            specimen = str(_resolve(manifest, specimen))
        try:
            load_system(specimen)
        except Exception as error:
            raise SettingError(
                f"{manifest.name}, line {line}, column specimen: {row['specimen']!r} cannot be used: "
                f"{getattr(error, 'message', error)}",
                hint=getattr(error, "hint", ""),
            ) from error
    return Sample(
        sample_id=row.get("sample_id") or slide_id(path),
        path=path,
        mpp=_mpp(manifest, line, row.get("mpp", "")),
        label=row.get("label", ""),
        patient=row.get("patient", ""),
        specimen=specimen,
        extra={name: value for name, value in row.items() if name not in ALIASES},
        line=line,
        place=place_below(path, manifest.resolve().parent),
    )


def _resolve(manifest: Path, written: str) -> Path:
    """An absolute path or an address; relative paths start at the manifest's folder, also with Windows' separators."""
    path = from_home(slide_path(written))
    if isinstance(path, RemotePath):
        return path
    if "\\" in written and not (manifest.parent / path).exists():
        path = Path(PureWindowsPath(written).as_posix())
    return Path(manifest.resolve().parent, path)


def _mpp(manifest: Path, line: int, written: str) -> float | None:
    if written.casefold() in UNKNOWN:
        return None
    try:
        # a spreadsheet that separates with semicolons writes 0,25; a comma cannot mean anything else here
        value = float(written.replace(",", "."))
    except ValueError:
        value = math.nan
    from tilers.resolution import PLAUSIBLE_MPP, plausible

    if not plausible(value):
        low, high = PLAUSIBLE_MPP
        raise SettingError(
            f"{manifest.name}, line {line}, column mpp: {written!r} is not a valid resolution.",
            hint=f"Give µm/px of level 0, {low:g} to {high:g}, or leave it empty if the slide states its own.",
        )
    return value


def _check_unique(manifest: Path, samples: Iterable[Sample], faults: Faults) -> None:
    """Two rows of one slide would write into one folder; two slides of one id could not be told apart: note them."""
    ids: dict[str, int] = {}
    paths: dict[Path, int] = {}
    for sample in samples:
        # the path first: without ids of their own, two rows of one slide would have one id too
        known = paths.setdefault(sample.path.resolve(), sample.line)
        if known != sample.line:
            faults.add(sample.line, SettingError(
                f"{manifest.name}, line {sample.line}, column image_path: {sample.path} is also on line {known}.",
                hint="Name every slide once.",
            ))  # fmt: skip
            continue
        known = ids.setdefault(sample.sample_id, sample.line)
        if known != sample.line:
            faults.add(sample.line, SettingError(
                f"{manifest.name}, line {sample.line}, column sample_id: {sample.sample_id!r} is also on line {known}.",
                hint="Give every slide an id of its own.",
            ))  # fmt: skip
