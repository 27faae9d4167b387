"""Where the rows of a data set are: a file, or a name in a ``dataset_info.json`` as LLaMA-Factory writes it.

Pictures are relative to the folder of that list (LLaMA-Factory's ``dataset_dir``), or else to the file's own folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.bounded import load_json
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.names import from_home

log = logging.getLogger(__name__)

INFO = "dataset_info.json"
SUFFIXES = (".jsonl", ".json")
HUB_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
"""What an entry has in place of ``file_name`` where its rows are not on this machine."""
LEVELS = 3
"""Folders above a file in which a list that names it is looked for."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row keeps what, as ``dataset_info.json`` names it. The defaults are what `dataset build` writes.

    ``alpaca``: a row is a prompt and a response, kept in the columns of the second group.
    """

    messages: str = "messages"
    images: str = "images"
    system: str = "system"
    role: str = "role"
    content: str = "content"
    user: str = "user"
    assistant: str = "assistant"
    system_role: str = "system"

    alpaca: bool = False
    prompt: str = "instruction"
    query: str = "input"
    response: str = "output"
    history: str = "history"


FROM_VALUE = Columns(messages="conversations", role="from", content="value", user="human", assistant="gpt")
"""The ShareGPT form of older data: ``{"conversations": [{"from": "human", "value": ...}]}``."""
ALPACA = Columns(alpaca=True)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of rows. ``columns`` is None where each row shows by itself which form it has.

    ``folders``: where its pictures are looked for, in this order; default: beside the file.
    """

    path: Path
    columns: Columns | None = None
    folders: tuple[Path, ...] = ()

    @property
    def picture_folders(self) -> tuple[Path, ...]:
        return self.folders or (self.path.parent,)


@dataclass(frozen=True, slots=True)
class DataSet:
    """The files of a data set, in order. ``folder`` holds its ``dataset_info.json``, if it has one."""

    name: str
    files: tuple[DataFile, ...]
    folder: Path

    @property
    def path(self) -> Path:
        """The file, or the folder of several, as it is shown to people."""
        return self.files[0].path if len(self.files) == 1 else self.files[0].path.parent


def read_info(folder: Path) -> dict[str, Any]:
    """The entries of a folder's dataset_info.json, by name. Raises SettingError where it cannot be read."""
    path = folder / INFO
    try:
        content = load_json(path)
    except DocumentError as error:
        raise SettingError(
            error.message,
            hint="Point --dataset-dir to the folder that holds it, e.g. what `wsi-chat dataset build` wrote.",
        ) from error
    if not isinstance(content, dict):
        raise SettingError(f"{path} holds no JSON object.", hint="Build the data set anew.")
    return content


def find_data(dataset: str, folder: Path | None = None, *, media: Path | None = None) -> DataSet:
    """A data set by the path of its file, or by its name in ``folder``'s dataset_info.json; several between commas.

    Args:
        folder: of dataset_info.json; default: ``data``, or this folder where it has such a list itself.
        media: folder of the pictures; default: ``folder``, then the one of each file.

    Raises:
        SettingError: there is none of that name, its rows are not on this machine, or its form is not read here.
    """
    names = [name.strip() for name in dataset.split(",") if name.strip()]
    if len(names) <= 1 or _file(dataset, folder) is not None:
        return _one(dataset.strip(), folder, media)
    found = []
    for name in names:
        try:
            found.append(_one(name, folder, media))
        except _NotHereError as error:
            log.warning("%s It is left out.", error.message)
    if not found:
        raise SettingError(f"--dataset {dataset}: the rows of none of them are on this machine.")
    return DataSet(dataset, tuple(file for one in found for file in one.files), found[0].folder)


class _NotHereError(SettingError):
    """A data set of a hub."""


def _one(name: str, folder: Path | None, media: Path | None) -> DataSet:
    file = _file(name, folder)
    if file is not None:
        return _of_file(file, folder, media)
    if name.endswith(SUFFIXES):
        raise SettingError(f"data set {name} is not a file.", hint=f"Give a .jsonl file, or a name in {INFO}.")
    where = folder or default_folder()
    entries = read_info(where)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise SettingError(f"{where / INFO} names no data set {name!r}.", hint=f"It names: {known}.")
    return DataSet(name, _files(where, name, entries[name], media), where)


def default_folder() -> Path:
    """``data``, as LLaMA-Factory has it; this folder where only it holds a list of data sets."""
    return Path() if not (Path("data") / INFO).is_file() and Path(INFO).is_file() else Path("data")


def _file(name: str, folder: Path | None) -> Path | None:
    if not name.endswith(SUFFIXES):
        return None
    try:
        return next((path for path in (from_home(name), (folder or Path()) / name) if path.is_file()), None)
    except (OSError, ValueError, RuntimeError):  # a name that no file system takes
        return None


def _of_file(file: Path, folder: Path | None, media: Path | None) -> DataSet:
    """A file named directly; a dataset_info.json above it that names it says what form it has."""
    for where in (file.parent, *list(file.resolve().parents)[1 : LEVELS + 1]):
        try:
            entries = read_info(where) if (where / INFO).is_file() else {}
        except SettingError:
            if where == file.parent:
                raise
            continue
        for name, entry in entries.items():
            if any(file.resolve() == one.resolve() for one in local_files(where, entry)):
                columns = _columns(entry, where / INFO, name)
                return DataSet(file.stem, (DataFile(file, columns, _folders(media, where, file)),), where)
    return DataSet(file.stem, (DataFile(file, None, _folders(media, folder, file)),), file.parent)


def _folders(media: Path | None, folder: Path | None, file: Path) -> tuple[Path, ...]:
    if media is not None:
        return (media,)
    return (folder, file.parent) if folder is not None and folder.resolve() != file.parent.resolve() else (file.parent,)


def local_files(folder: Path, entry: Any) -> tuple[Path, ...]:
    """The files that an entry names; all of a folder's; none for an entry without ``file_name`` or where none is."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or "\0" in name:
        return ()
    path = folder / name
    try:
        if path.is_dir():
            return tuple(sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file()))
        return (path,) if path.is_file() else ()
    except (OSError, ValueError):  # a name that no file system takes, or a folder that may not be listed
        return ()


def _files(folder: Path, name: str, entry: Any, media: Path | None) -> tuple[DataFile, ...]:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        hub = next((key for key in HUB_KEYS if isinstance(entry, dict) and key in entry), None)
        if hub is not None:
            raise _NotHereError(
                f"{folder / INFO}: the rows of {name} are elsewhere ({hub}: {entry[hub]}).",
                hint="Download them, and name their file as file_name.",
            )
        raise SettingError(f"{folder / INFO}: {name} has no file_name.", hint="Name the file of its rows there.")
    files = local_files(folder, entry)
    if not files:
        raise SettingError(
            f"{folder / entry['file_name']!s}, which {folder / INFO} names for {name!r}, is not a file of rows.",
            hint="Correct its file_name.",
        )
    columns = _columns(entry, folder / INFO, name)
    return tuple(DataFile(file, columns, _folders(media, folder, file)) for file in files)


def _columns(entry: Mapping[str, Any], info: Path, name: str) -> Columns | None:
    """The form that an entry states; None where it leaves that to the rows."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    for part, value in (("columns", columns), ("tags", tags)):
        if not isinstance(value, dict):
            raise SettingError(f"{info}: the {part} of {name} are {type(value).__name__}.", hint="Write an object.")
    if entry.get("ranking"):
        raise SettingError(f"{info}: {name} holds pairs of ranked answers.", hint="Name a data set of conversations.")
    form = entry.get("formatting")
    if form is None:
        form = "alpaca" if {"prompt", "query", "response"} & set(columns) else "sharegpt"
    if form == "alpaca":
        return Columns(alpaca=True, **_named(columns, ALPACA, "prompt query response history system images"))
    if form not in ("sharegpt", "openai"):
        raise SettingError(
            f"{info}: {name} has the formatting {form!r}.", hint="Formats that are read: sharegpt, openai, alpaca."
        )
    if not columns and not tags:
        return None
    plain = Columns() if form == "openai" or (columns.get("messages") == "messages" and not tags) else FROM_VALUE
    spoken = {key.removesuffix("_tag"): value for key, value in tags.items()}
    return Columns(
        **_named(columns, plain, "messages images system"),
        **_named(spoken, plain, "role content user assistant"),
        system_role=str(tags.get("system_tag", plain.system_role)),
    )


def _named(given: Mapping[str, Any], plain: Columns, fields: str) -> dict[str, Any]:
    return {field: str(given.get(field, getattr(plain, field))) for field in fields.split()}


def other_files(dataset: DataSet) -> Iterator[tuple[str, tuple[DataFile, ...], bool]]:
    """(name, files, are they there) of every other local entry of the list that the data set is on.

    Raises:
        SettingError: the list cannot be read.
    """
    mine = {file.path.resolve() for file in dataset.files}
    for name, entry in read_info(dataset.folder).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            continue
        files = local_files(dataset.folder, entry)
        try:
            columns = _columns(entry, dataset.folder / INFO, name)
        except SettingError:
            continue
        others = [file for file in files if file.resolve() not in mine]
        made = tuple(DataFile(file, columns, _folders(None, dataset.folder, file)) for file in others)
        yield str(entry["file_name"]), made, bool(files)
