"""Image features beside screening: of every screened tile once, without a second look at what was just seen.

A tile whose answer is known from the journal and whose features are not stored is only looked at, never asked again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsi_chat.analysis.feature_store import FeatureStore, identity_of
from wsi_chat.engines.protocol import EngineCrashed, FeatureEngine, feature_engine
from wsi_chat.errors import EngineDied, EngineError, SettingError

if TYPE_CHECKING:
    from PIL.Image import Image

    from aggregators.features import ImageFeatures
    from tilers import Slide, TilePlan
    from wsi_chat.analysis.run_folder import SlideFolder
    from wsi_chat.analysis.slide_score import SlideScore
    from wsi_chat.dialects import Dialect
    from wsi_chat.engines import Engine
    from wsi_chat.schema import Provenance, Query, Tile

log = logging.getLogger(__name__)


def open_keeper(
    folder: SlideFolder,
    engine: Engine,
    dialect: Dialect,
    *,
    slide: Slide,
    plan: TilePlan,
    provenance: Provenance,
    score: SlideScore,
) -> FeatureKeeper:
    """A keeper over the slide's store. One blank picture is looked at, to learn how many features there are.

    Raises:
        SettingError: the engine gives none, or not as many as the aggregator was fitted with; nothing was asked.
        OutputError: the store cannot be written.
    """
    from PIL import Image

    giver = feature_engine(engine, why="--features")
    blank = Image.new("RGB", dialect.frame((plan.tile_px, plan.tile_px)).sent, (240, 240, 240))
    width = int(giver.image_features([blank]).shape[1])
    record = None if score.applied is None else score.applied.aggregator.record
    if record is not None and record.image_features not in (0, width):
        raise SettingError(
            f"the aggregator reads {record.image_features} image features of a tile, and this model gives {width}.",
            hint=f"Use the model of the fit, {record.image_model}, or fit it again.",
        )
    of = identity_of(slide.record(folder.id), provenance)
    store = FeatureStore(folder, of=of, tiles=plan.grid, width=width, overwrite=score.settings.overwrite)
    return FeatureKeeper(giver, store, lookahead=engine.lookahead)


@dataclass(slots=True)
class FeatureKeeper:
    """Collects the pictures of tiles as they are asked about, and stores their features once they are answered.

    Pictures are held only until then. Fresh ones are looked at in small groups, while the engine still remembers them;
    those of answers that were known, in groups as large as the engine likes.
    """

    engine: FeatureEngine
    store: FeatureStore
    lookahead: int = 32
    failed: int = 0
    _seen: set[int] = field(default_factory=set)
    _shown: dict[int, Image] = field(default_factory=dict)
    _fresh: list[tuple[int, Image]] = field(default_factory=list)
    _known: list[tuple[int, Image]] = field(default_factory=list)

    def shown(self, tile: Tile, query: Query, *, known: bool) -> None:
        """The question about a tile was built, and its answer may be known. Of its pictures the first is the tile.

        Raises:
            OutputError: the features cannot be written.
            EngineDied: the engine died while it looked.
        """
        if tile.index in self._seen or tile.index in self.store or not query.images:
            return
        self._seen.add(tile.index)
        if not known:
            self._shown[tile.index] = query.images[0]
            return
        # at once: the known answers of a whole slide may be listed before the next question is asked
        self._known.append((tile.index, query.images[0]))
        if len(self._known) >= self.lookahead:
            self._look(self._known)

    def answered(self, tile: Tile, *, usable: bool) -> None:
        """The question about the tile is answered; without a usable answer it is no evidence. Raises as `shown`."""
        image = self._shown.pop(tile.index, None)
        if image is None or not usable:
            return
        self._fresh.append((tile.index, image))
        if len(self._fresh) >= max(1, self.lookahead // 8):
            self._look(self._fresh)

    def finish(self) -> None:
        """Every tile was answered: look at what is left, and write it."""
        self._look(self._known)
        self._look(self._fresh)
        self._shown.clear()
        self.store.flush()
        if self.failed:
            log.warning("%d screened tiles have no image features; the same command tries them again", self.failed)

    def close(self) -> None:
        """Write what was computed, also where the run ends early."""
        self.store.flush()

    def read(self) -> ImageFeatures:
        """What is stored, for an aggregator."""
        return self.store.read()

    def _look(self, waiting: list[tuple[int, Image]]) -> None:
        chosen, waiting[:] = list(waiting), []
        if not chosen:
            return
        try:
            rows = self.engine.image_features([image for _, image in chosen])
        except (EngineDied, EngineCrashed):
            raise
        except EngineError as error:
            if len(chosen) == 1:
                log.warning("no image features of tile t%06d: %s", chosen[0][0], error.message)
                self.failed += 1
                return
            for one in chosen:
                self._look([one])
            return
        self.store.put([index for index, _ in chosen], rows)
