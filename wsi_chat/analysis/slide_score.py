"""A fitted aggregator in a run: under which conditions a slide is analyzed, and whether they are those of the fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.errors import SettingError
from wsi_chat.schema import Provenance, Remark
from wsi_chat.settings import Settings, fit_conditions

if TYPE_CHECKING:
    from aggregators.fitted import Applied, FittedAggregator

#: Folder inside a checkpoint with the aggregator that was fitted on its answers.
OWN = "aggregator"


def conditions_of(provenance: Provenance, *, system: str, system_version: str) -> dict[str, Any]:
    """What must be the same for slides of one aggregator: model, prompts, tiles, reporting system, depth of reading."""
    model = provenance.model
    return {
        "model": model.revision,
        "dialect": model.dialect,
        "prompts": model.prompts_sha256[:16],
        "tile_px": provenance.tile_px,
        "tile_mpp": round(provenance.tile_mpp, 4),
        "overlap": provenance.overlap,
        "reporting system": f"{system} {system_version}",
        **fit_conditions(provenance.config),
    }


def folder_of_aggregator(settings: Settings) -> Path | None:
    """The folder that the settings name, or for ``auto`` the checkpoint's own; None where no aggregator is wanted.

    ``auto`` gives way to a pool that the user chose.
    """
    if settings.aggregator == "none":
        return None
    if settings.aggregator != "auto":
        return Path(settings.aggregator)
    defaults = Settings.model_fields
    chosen = any(getattr(settings, name) != defaults[name].default for name in ("pool", "pool_k"))
    if chosen or settings.base_url is not None or settings.adapter is not None:
        return None
    from wsi_chat.engines import find_checkpoint

    own = find_checkpoint(settings.model) / OWN
    return own if own.is_dir() else None


def load_for(settings: Settings) -> FittedAggregator | None:
    """The aggregator that the settings name, None where they name none; before anything is asked.

    Raises:
        SettingError: it cannot be read, or a rate is set without one.
    """
    folder = folder_of_aggregator(settings)
    if folder is None:
        for name in ("miss_rate", "false_alarm_rate"):
            if getattr(settings, name) is not None:
                raise SettingError(
                    f"--{name.replace('_', '-')} needs a fitted aggregator.",
                    hint="Fit one with wsi-chat fit, and name its folder with --aggregator.",
                )
        return None
    from aggregators.fitted import load_fitted

    return load_fitted(folder)


def apply_or_pass(
    fitted: FittedAggregator, settings: Settings, conditions: dict[str, Any]
) -> tuple[Applied | None, Remark | None]:
    """As `apply_to`; but the checkpoint's own aggregator, which nobody named, is left out of a run that is not its own.

    Returns:
        The aggregator with its thresholds or None, and a note for the reader where a run came close to its
        conditions (the same model, the same reporting system) without meeting them.
    """
    differences = [] if settings.aggregator != "auto" or settings.force else fitted.differences(conditions)
    if not differences:
        return apply_to(fitted, settings, conditions), None
    if settings.miss_rate is not None or settings.false_alarm_rate is not None:
        raise SettingError(
            f"no aggregator was fitted for this run, and the thresholds of the checkpoint's own do not hold for it:"
            f" {'; '.join(differences)}.",
            hint="Fit one with wsi-chat fit, and name its folder with --aggregator.",
        )
    if not all(fitted.meets(key, conditions.get(key)) for key in ("model", "reporting system")):
        return None, None
    return None, Remark("aggregator.other_settings", differences=differences)


def apply_to(fitted: FittedAggregator, settings: Settings, conditions: dict[str, Any]) -> Applied:
    """The aggregator with this run's thresholds.

    Raises:
        SettingError: the run differs from the fit (both values are named) and ``force`` is off; or the rates
            cannot be kept, or are set beside a threshold.
    """
    from aggregators.conformal import Band
    from aggregators.fitted import Applied

    differences = fitted.differences(conditions)
    if differences and not settings.force:
        raise SettingError(
            f"--aggregator {settings.aggregator} was fitted under other conditions: {'; '.join(differences)}.",
            hint="Use the settings of the fit, fit it again on slides analyzed like this one, or add --force.",
        )
    own = settings.threshold != Settings.model_fields["threshold"].default
    if own and settings.miss_rate is not None:
        raise SettingError(
            f"--threshold {settings.threshold:g} and --miss-rate {settings.miss_rate:g} contradict each other.",
            hint="Give one of them.",
        )
    chosen = None
    if not own:
        chosen = fitted.thresholds(miss_rate=settings.miss_rate, false_alarm_rate=settings.false_alarm_rate)
    band, guarantee = chosen or (Band(settings.threshold, settings.threshold), "")
    unasked = settings.aggregator == "auto" and not settings.force
    return Applied(fitted, band, guarantee, tuple(differences), unasked)


def with_aggregator(provenance: Provenance, applied: Applied) -> Provenance:
    """The provenance with the aggregator that draws the verdict, its thresholds, and what was forced."""
    # one that nobody named may not be applied, and then the pool scores
    gone = () if applied.unasked else ("pool", "k")
    kept = {name: value for name, value in provenance.aggregation.items() if name not in gone}
    kept |= {
        "head": applied.aggregator.record.head,
        "aggregator": applied.aggregator.sha256,
        "threshold": applied.band.high,
        "normal_below": applied.band.low,
    }
    if applied.guarantee and not applied.forced:
        kept["guarantee"] = applied.guarantee
    if applied.forced:
        kept["forced"] = list(applied.forced)
    return provenance.model_copy(update={"aggregation": kept})
