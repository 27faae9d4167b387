"""What a run is over: from what was named (paths, a folder, a manifest) to samples, and to a job for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tilers.remote import RemotePath, slide_path
from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.pseudonyms import Pseudonyms, names_of
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.sample import Sample, listed
from wsi_chat.analysis.slide_score import folder_of_aggregator
from wsi_chat.cohort.state import Job, make_job
from wsi_chat.engines import find_checkpoint
from wsi_chat.engines.checkpoint import revision
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError, WsiChatError
from wsi_chat.names import from_home
from wsi_chat.settings import Settings

log = logging.getLogger(__name__)


def sample_of(path: str | Path) -> Sample:
    """A slide that is named by its path alone."""
    sample = Sample("", from_home(slide_path(path)).absolute())
    return replace(sample, sample_id=sample.slide_id)


def samples_of(source: str | Path | Sequence[str | Path], out: Path) -> tuple[Sample, ...]:
    """The slides of a cohort: of a manifest, of a folder that is searched but for ``out``, or named one by one.

    Raises:
        SettingError: there are none, one is named twice, or the manifest cannot be used.
    """
    if not isinstance(source, str | Path):
        named = [sample_of(path) for path in source]
        ids = [sample.slide_id for sample in named]
        twice = [sample.path for sample in named if ids.count(sample.slide_id) > 1]
        if twice or not named:
            raise SettingError(f"{twice[0]} is named twice." if twice else "No slide is named.", hint="Name each once.")
        return tuple(named)
    source = from_home(slide_path(source))
    if isinstance(source, RemotePath):
        raise SettingError(
            f"{source} is an address; a manifest or folder of this machine is needed.",
            hint="Write a manifest here whose image_path holds the addresses of the slides.",
        )
    if source.is_dir():
        from wsi_chat.cohort.search import find_slides

        return find_slides(source, skip=out)
    if not source.exists():
        raise SettingError(f"There is no manifest or folder {source}.", hint="Check the path and its spelling.")
    return read_manifest(source)


def as_shown(
    samples: Iterable[Sample], pseudonyms: Pseudonyms | None, *, listings: Path | None = None
) -> tuple[Sample, ...]:
    """The samples, each once, as documents show them; with ``listings``, those of several photographs listed there."""
    samples = tuple(samples) if pseudonyms is None else pseudonyms.apply(samples)
    samples = tuple({sample.slide_id: sample for sample in samples}.values())
    if listings is not None:
        samples = listed(samples, listings)
    if pseudonyms is not None:
        pseudonyms.save(samples)
        log.warning("%s says which pseudonym is whose: hand on the other files without it", pseudonyms.path)
    return samples


def jobs_of(samples: Sequence[Sample], run: RunFolder, settings: Settings, model: Model) -> list[Job]:
    """A job for each slide, with the key by which a finished one is known again."""
    model_id = _model_id(settings, model)
    return [make_job(sample, run, settings, model, model_id=model_id) for sample in samples]


def jobs_of_named(samples: Sequence[Sample], run: RunFolder, settings: Settings, model: Model) -> list[Job]:
    """The jobs of slides that are named; without a key where it cannot be known which model would answer."""
    known = model.given is None and model.start is None and settings.base_url is None
    try:
        if known and not settings.overwrite:
            return jobs_of(samples, run, settings, model)
    except WsiChatError as error:
        log.debug("no key: %s", error)  # what is wrong is said when the slide's turn comes
    return [Job(sample, settings, "", names_of(sample, run, settings)) for sample in samples]


def _model_id(settings: Settings, model: Model) -> str:
    """What tells one model (and aggregator) from another without loading it; one replaced under its name is another."""
    adapter = None if settings.adapter is None else Path(settings.adapter)
    parts = [revision(folder) for folder in (adapter, folder_of_aggregator(settings)) if folder and folder.is_dir()]
    if model.given is not None:
        parts.append(model.given.model_id)
    elif model.start is not None:
        parts.append("loaded by the caller")
    elif settings.base_url is not None:
        parts.append(f"{settings.model} at {settings.base_url}")
    else:
        folder = find_checkpoint(settings.model)
        parts.append(revision(folder) if folder.is_dir() else str(settings.model))
    return " ".join(parts)
