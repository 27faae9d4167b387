"""Pseudonyms of slides, photographs and patients, made with a key: nobody who lacks it can make them from names.

The key, and which pseudonym is whose, are in one file that its owner alone can read: pseudonyms.json in the run folder,
or the one that the setting ``pseudonyms`` names, which then gives a slide the same pseudonym in every run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tilers.listing import LISTING
from wsi_chat.analysis.run_folder import RUN_HINT, RunFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.atomic import write_text
from wsi_chat.bounded import load_json
from wsi_chat.errors import DocumentError, SettingError, SlideError, as_utf8
from wsi_chat.names import Names, from_home, hiding, is_path, places, without_folder
from wsi_chat.remarks import catalogue
from wsi_chat.settings import Settings

log = logging.getLogger(__name__)

KEY_BYTES = 32
TABLES = ("slides", "samples", "patients")
DIGITS = 12  # hexadecimal, of a pseudonym: 2**48, so that two of a million slides share one with chance .002


class Pseudonyms:
    """The pseudonyms of a run. `apply` gives samples theirs, and `save` writes down which is whose.

    Raises:
        SettingError: the file is damaged, or none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: dict[str, Any] = {"key": secrets.token_hex(KEY_BYTES)}
        if path.exists():
            self._content |= _read(path)
        self._content |= {name: dict(self._content.get(name, {})) for name in TABLES}
        self._key = bytes.fromhex(self._content["key"])

    def apply(self, samples: Iterable[Sample]) -> tuple[Sample, ...]:
        """The samples under their pseudonyms: slide, sample and patient; further columns are left out."""
        samples = tuple(samples)
        dropped = dict.fromkeys(name for sample in samples for name in sample.extra)
        if dropped:
            log.warning("--pseudonymize leaves out columns that may hold names: %s", ", ".join(dropped))
        return tuple(self._applied(sample) for sample in samples)

    def _applied(self, sample: Sample) -> Sample:
        files = sample.fields or (sample.path,)
        alias = self._of("slide", "\n".join(os.fsdecode(os.path.realpath(path)) for path in files))
        self._content["slides"][alias] = str(sample.path)
        self._content["samples"][alias] = sample.sample_id
        patient = ""
        if sample.patient:
            patient = self._of("patient", sample.patient)
            self._content["patients"][patient] = sample.patient
        return replace(sample, alias=alias, sample_id=alias, patient=patient, extra={}, named=sample.sample_id)

    def _of(self, kind: str, name: str) -> str:
        text = f"{kind}\0{name}".encode(errors="surrogateescape")
        return f"{kind}-{hmac.new(self._key, text, hashlib.sha256).hexdigest()[:DIGITS]}"

    def save(self, samples: Iterable[Sample]) -> None:
        """Write the file; ``samples`` are those of the run, with their listings written. Raises OutputError."""
        self._content["slides"] |= {sample.alias: str(sample.path) for sample in samples}
        text = json.dumps(self._content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        write_text(self.path, text, hint=RUN_HINT, private=True)


def _read(path: Path) -> dict[str, Any]:
    hint = "Name another file with pseudonyms, or a new one, which is then made."
    try:
        content = load_json(path)
    except DocumentError as error:
        raise SettingError(f"pseudonyms: {error.message}", hint=hint) from error
    key = content.get("key") if isinstance(content, dict) else None
    sound = isinstance(key, str) and re.fullmatch(r"(?:[0-9a-f]{2}){16,}", key) is not None
    if not sound or not all(isinstance(content.get(name, {}), dict) for name in TABLES):
        raise SettingError(f"pseudonyms: {path} holds no key and names.", hint=hint)
    return dict(content)


def pseudonyms_of(run: RunFolder, settings: Settings) -> Pseudonyms | None:
    """Those of a run, None where names stay. Raises SettingError."""
    if not settings.pseudonymize:
        return None
    return Pseudonyms(from_home(settings.pseudonyms) if settings.pseudonyms else run.pseudonyms_path)


def names_of(sample: Sample, run: RunFolder, settings: Settings) -> Names:
    """What a slide is called in its documents, and what must not show there."""
    path = sample.path
    photographs = _photographs(sample)
    files = [path, *photographs, *(Path(value) for value in paths_in(settings)), run.path / "x"]
    hidden = places(files)
    if settings.base_url is not None and (shown := without_folder(settings.base_url)) != settings.base_url:
        hidden[settings.base_url.rstrip("/")] = shown
    if not sample.alias:
        return Names(sample.file_name, hidden=hiding(hidden))
    fields = {p.name: f"{sample.alias}-{n:03}{p.suffix}" for n, p in enumerate(photographs, start=1)}
    hidden |= _hidden_name(path.stem, sample.alias) | _hidden_name(sample.named, sample.alias)
    hidden |= {slide_id(path): sample.alias, path.name: sample.file_name}
    hidden |= fields
    for file in (path, path.resolve()):
        hidden[str(file)] = sample.file_name
    return Names(sample.file_name, fields, hiding(hidden))


def _hidden_name(name: str, shown: str) -> dict[str, str]:
    """What a name is replaced by in messages: everywhere, but one that sentences hold too only where it is quoted."""
    if len(name) > 2 and not is_ordinary(name):
        return {name: shown}
    return {f"{quote}{name}{quote}": f"{quote}{shown}{quote}" for quote in "'\"`"}


def is_ordinary(name: str) -> bool:
    """Whether the program's own sentences hold a name that is nobody's: ``cell``, ``tile``, ``100``.

    A name with a capital letter is never taken for one: it may be a person's.
    """
    return _NUMBER.fullmatch(name) is not None or name in _ordinary_words()


_NUMBER = re.compile(r"\d{1,4}(?:\.\d+)?")


@cache
def _ordinary_words() -> frozenset[str]:
    """The words in small letters of all that the program says, in reports and of its settings."""
    said = [str(catalogue("en")), *(f"{name} {about.description}" for name, about in Settings.model_fields.items())]
    return frozenset(word for text in said for word in re.findall(r"[^\W\d_]+", text) if word.islower())


def _photographs(sample: Sample) -> Sequence[Path]:
    if sample.fields:
        return sample.fields
    if not sample.path.is_dir() and sample.path.suffix.lower() != LISTING:
        return ()
    from tilers.photographs import fields_of

    try:
        return fields_of(sample.path)
    except (SlideError, OSError):
        return ()


def paths_in(settings: Settings) -> list[str]:
    """The files and folders that settings name, as absolute paths."""
    values = settings.model_dump(exclude={"pseudonyms"}).values()
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return [str(from_home(item).absolute()) for item in flat if isinstance(item, str) and is_path(item)]


def everything_hidden(names: Iterable[Names]) -> Names:
    """What must not show of any of these slides, for what is written about all of them: run.log."""
    together: dict[str, str] = {}
    for one in names:
        together |= dict(one.hidden)
    return Names("", hidden=hiding({as_utf8(real): shown for real, shown in together.items()} | together))
