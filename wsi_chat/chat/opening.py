"""What a conversation is about: the finished run of a slide, with its settings, or nothing but a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilers.remote import RemotePath, slide_path
from wsi_chat.analysis.result import SlideResult, load_result
from wsi_chat.analysis.run_folder import RunFolder, SlideFolder
from wsi_chat.errors import SettingError
from wsi_chat.settings import Settings

INHERITED = (
    "model", "adapter", "engine", "base_url", "dialect", "specimen", "mpp", "reader", "tile_px", "tile_mpp", "seed",
    "language",
)  # fmt: skip
"""Settings that a conversation about a run folder takes from the run, unless they are given anew."""


def result_of(source: str | Path | SlideResult, slide: str | Path | None) -> SlideResult | None:
    """The finished run that ``source`` names: a slide's folder, or a run folder of one slide; None for a picture.

    Raises:
        SettingError: the run folder holds several slides; OutputError: what is there cannot be read.
    """
    if isinstance(source, SlideResult):
        return source
    folder = slide_path(source)
    if isinstance(folder, RemotePath):  # run folders are on this machine
        return None
    if SlideFolder(folder).finished:
        return load_result(folder, slide=slide)
    run = RunFolder(folder)
    inside = run.finished_slides() if run.is_run else ()
    if len(inside) == 1:
        return load_result(inside[0].path, slide=slide)
    if inside:
        names = ", ".join(finished.id for finished in inside[:5])
        raise SettingError(
            f"{folder} holds {len(inside)} slides.",
            hint=f"Name one of its folders: {names}{' ...' if inside[5:] else ''}.",
        )
    return None


def inherited_settings(result: SlideResult) -> dict[str, Any]:
    """The run's own settings, as far as they say who answers and how places are read."""
    config = result.files.settings_of(result.report)
    inherited = {key: config[key] for key in INHERITED if config.get(key) is not None and key in Settings.model_fields}
    return {"dialect": result.report.provenance.model.dialect, **inherited} if "dialect" not in inherited else inherited
