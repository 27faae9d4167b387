"""The model of a run: which engine and dialect the settings name, loaded when the first question needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wsi_chat import engines
from wsi_chat.dialects import Dialect, detect_dialect, get_dialect
from wsi_chat.settings import Settings


@dataclass(slots=True)
class Model:
    """An engine that is loaded when the first question needs it, and the dialect it is asked in.

    Opening the slide and planning come first, so that a bad file fails before any weights are read. ``given`` is
    an engine that is already loaded and stays the caller's; ``start`` loads one in place of the settings.
    """

    settings: Settings
    given: engines.Engine | None = None
    start: Callable[[], engines.Engine] | None = None
    several: bool = False
    """Whether it answers about several slides: one engine for all, whichever of them comes first."""
    _engine: engines.Engine | None = None
    _dialect: Dialect | None = None
    _choice: engines.EngineChoice | None = None
    _tiles: int | None = None

    def expect(self, tiles: int) -> None:
        """So many tiles of a slide will be asked about: what `choice` goes by, as long as nothing is loaded."""
        if self._engine is None and not self.several:
            self._tiles, self._choice = tiles, None

    @property
    def choice(self) -> engines.EngineChoice:
        """Which engine the settings take, and why."""
        if self._choice is None:
            s = self.settings
            if self.given is not None or self.start is not None:
                self._choice = engines.EngineChoice(s.engine, "given by the caller", s.device)
            else:
                folder = None if s.base_url else engines.find_checkpoint(s.model)
                self._choice = engines.choose_engine(
                    s.engine, base_url=s.base_url, folder=folder, device=s.device, gpus=s.gpus, tiles=self._tiles
                )
        return self._choice

    @property
    def dialect(self) -> Dialect:
        if self._dialect is None:
            s = self.settings
            name = s.dialect
            if name == "auto" and s.base_url and self.given is None:
                name = engines.served_dialect(s.base_url, s.model)
            elif name == "auto":
                name = detect_dialect(engines.find_checkpoint(s.model))
            self._dialect = get_dialect(name)
        return self._dialect

    @dialect.setter
    def dialect(self, dialect: Dialect) -> None:
        """Another dialect, before anything is asked: the engine sizes pictures by it."""
        self._dialect = dialect

    @property
    def engine(self) -> engines.Engine:
        if self.given is not None:
            return self.given
        if self._engine is None and self.start is not None:
            self._engine = self.start()
        if self._engine is None:
            s = self.settings
            self._engine = engines.load_engine(
                s.model,
                engine=self.choice,
                adapter=s.adapter,
                dtype=s.dtype,
                device=s.device,
                batch_size=s.batch_size,
                seed=s.seed,
                base_url=s.base_url,
                gpus=s.gpus,
                concurrency=s.concurrency,
                timeout=s.timeout,
                images=self.dialect.image_px,
            )
        return self._engine

    def check(self) -> None:
        """Find what would keep the model from being loaded, as far as no weights are read and no server is asked.

        Raises:
            SettingError, EngineError: as `dialect` and `engines.load_engine`.
        """
        s = self.settings
        if not (s.base_url and s.dialect == "auto"):
            _ = self.dialect
        if self.given is None and self.start is None:
            engines.check_engine(self.choice, model=s.model, adapter=s.adapter, dtype=s.dtype, gpus=s.gpus)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
