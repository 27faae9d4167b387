"""How a run scores its slides: by a pool of tile scores, or by an aggregator that was fitted on labelled slides.

`SlideScore` is loaded once, before anything is asked, and is then made the score of one slide, whose conditions are
compared with those of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.engines import find_checkpoint
from wsi_chat.engines.protocol import FEATURES, feature_engine
from wsi_chat.errors import SettingError
from wsi_chat.schema import Provenance, Remark
from wsi_chat.settings import Settings, fit_conditions

if TYPE_CHECKING:
    from aggregators.fitted import Applied, FittedAggregator
    from wsi_chat.engines.model import Model

#: Folder inside a checkpoint with the aggregator that was fitted on its answers.
OWN = "aggregator"

#: Engines of the settings that give image features.
LOCAL = ("transformers",)


def conditions_of(provenance: Provenance, *, system: str, system_version: str) -> dict[str, Any]:
    """What must be the same for slides of one aggregator: model, prompts, tiles, reporting system, depth of reading."""
    model = provenance.model
    conditions = fit_conditions(provenance.config)
    if provenance.masked is not None:  # what auto came to on this slide
        conditions["mask"] = provenance.masked
    return {
        "model": model.revision,
        "dialect": model.dialect,
        "prompts": model.prompts_sha256[:16],
        "tile_px": provenance.tile_px,
        "tile_mpp": round(provenance.tile_mpp, 4),
        "overlap": provenance.overlap,
        "reporting system": f"{system} {system_version}",
        **conditions,
    }


def folder_of_aggregator(settings: Settings) -> Path | None:
    """The folder that the settings name, or for ``auto`` the checkpoint's own; None where no aggregator is wanted.

    ``auto`` gives way to a pool that the user chose.
    """
    if settings.aggregator == "none":
        return None
    if settings.aggregator != "auto":
        return Path(settings.aggregator)
    chosen = any(getattr(settings, name) != _default(name) for name in ("pool", "pool_k"))
    if chosen or settings.base_url is not None or settings.adapter is not None:
        return None
    own = find_checkpoint(settings.model) / OWN
    return own if own.is_dir() else None


@dataclass(frozen=True, slots=True)
class SlideScore:
    """The score of a run's slides.

    Attributes:
        settings: of the run: pool, threshold, aggregator, rates.
        aggregator: the fitted aggregator that was loaded, None where the pool scores.
        applied: the aggregator with this run's thresholds, once a slide's conditions are known; None where the pool
            scores the slide.
        not_applied: why the checkpoint's own aggregator does not score the slide, as a sentence for the reader; None
            where it does, and where the slide is nothing like those that it was fitted for.
    """

    settings: Settings
    aggregator: FittedAggregator | None = None
    applied: Applied | None = None
    not_applied: Remark | None = None

    @classmethod
    def load(cls, settings: Settings) -> SlideScore:
        """The score that the settings name; before anything is asked.

        Raises:
            SettingError: the aggregator cannot be read, or a rate is set without one.
        """
        from aggregators.fitted import load_fitted

        folder = folder_of_aggregator(settings)
        if folder is not None:
            return cls(settings, load_fitted(folder))
        for name in ("miss_rate", "false_alarm_rate"):
            if getattr(settings, name) is not None:
                raise SettingError(
                    f"--{name.replace('_', '-')} needs a fitted aggregator.",
                    hint="Fit one with wsi-chat fit, and name its folder with --aggregator.",
                )
        return cls(settings)

    # ------------------------------------------------------------------------------------------ image features

    @property
    def reads_features(self) -> bool:
        """Whether the aggregator reads the model's own image features."""
        return self.aggregator is not None and self.aggregator.record.image_features > 0

    @property
    def keeps_features(self) -> bool:
        """Whether a slide's image features are computed: by ``--features``, or because its score reads them."""
        return self.settings.features or (self.applied is not None and self.reads_features)

    def require_features(self, model: Model) -> None:
        """Check that the model gives image features, where the settings or the aggregator want them.

        Raises:
            SettingError: it gives none, or those of another kind; before anything is loaded or asked.
        """
        if not (self.settings.features or self.reads_features):
            return
        reason = f"{self._name} reads image features" if self.reads_features else "--features"
        if model.given is not None:
            feature_engine(model.given, why=reason)
        elif model.start is None and model.choice.name not in LOCAL:
            instead = "take another --aggregator (none: a pool)." if self.reads_features else "leave --features out."
            raise SettingError(
                f"{reason}: the {model.choice.name} engine gives no image features.",
                hint=f"Run the checkpoint here with --engine transformers, or {instead}",
            )
        kind = self.aggregator.record.image_kind if self.aggregator is not None else ""
        if self.reads_features and kind != FEATURES:
            raise SettingError(
                f"{self._name} reads image features of the kind {kind!r}, but {FEATURES!r} is computed.",
                hint="Fit it again with wsi-chat fit.",
            )

    @property
    def _name(self) -> str:
        named = self.settings.aggregator
        return "the checkpoint's own aggregator" if named == "auto" else f"--aggregator {named}"

    # ------------------------------------------------------------------------------------------ one slide

    def under(self, conditions: Mapping[str, Any]) -> SlideScore:
        """The score of a slide that is analyzed under these conditions.

        The checkpoint's own aggregator, which nobody named, leaves a slide under other conditions to the pool, and
        ``not_applied`` says why where the run came close to them (the same model, the same reporting system).

        Raises:
            SettingError: an aggregator that the user named was fitted under other conditions (both values are named)
                and ``force`` is off; the rates cannot be kept, or are set beside a threshold.
        """
        if self.aggregator is None:
            return self
        differences = self.aggregator.differences(conditions)
        if not differences or self.settings.force:
            return replace(self, applied=self._with_thresholds(self.aggregator, tuple(differences)))
        if self.settings.aggregator != "auto":
            raise SettingError(
                f"--aggregator {self.settings.aggregator} was fitted under other conditions: {'; '.join(differences)}.",
                hint="Use the settings of the fit, fit it again on slides analyzed like this one, or add --force.",
            )
        if self.settings.miss_rate is not None or self.settings.false_alarm_rate is not None:
            raise SettingError(
                "no aggregator was fitted for this run, and the thresholds of the checkpoint's own do not hold for"
                f" it: {'; '.join(differences)}.",
                hint="Fit one with wsi-chat fit, and name its folder with --aggregator.",
            )
        if not all(self.aggregator.meets(key, conditions.get(key)) for key in ("model", "reporting system")):
            return self
        return replace(self, not_applied=Remark("aggregator.other_settings", differences=differences))

    def _with_thresholds(self, aggregator: FittedAggregator, differences: tuple[Remark, ...]) -> Applied:
        from aggregators.conformal import Band
        from aggregators.fitted import Applied

        settings = self.settings
        by_hand = settings.threshold != _default("threshold")
        if by_hand and settings.miss_rate is not None:
            raise SettingError(
                f"--threshold {settings.threshold:g} and --miss-rate {settings.miss_rate:g} contradict each other.",
                hint="Give one of them.",
            )
        chosen = None
        if not by_hand:
            chosen = aggregator.thresholds(miss_rate=settings.miss_rate, false_alarm_rate=settings.false_alarm_rate)
        band, guarantee = chosen or (Band(settings.threshold, settings.threshold), "")
        unasked = settings.aggregator == "auto" and not settings.force
        return Applied(aggregator, band, guarantee, differences, unasked)

    def described_in(self, provenance: Provenance) -> Provenance:
        """The provenance with the aggregator that scores the slide, its thresholds, and the differences forced."""
        applied = self.applied
        if applied is None:
            return provenance
        # one that nobody named may leave the slide to the pool, which then belongs to the record
        gone = () if applied.unasked else ("pool", "k")
        record = {name: value for name, value in provenance.aggregation.items() if name not in gone}
        record |= {
            "head": applied.aggregator.record.head,
            "aggregator": applied.aggregator.sha256,
            "threshold": applied.band.high,
            "normal_below": applied.band.low,
        }
        if applied.guarantee and not applied.forced:
            record["guarantee"] = applied.guarantee
        if applied.forced:
            record["forced"] = list(applied.forced)
        return provenance.model_copy(update={"aggregation": record})


def _default(name: str) -> Any:
    return Settings.model_fields[name].default
