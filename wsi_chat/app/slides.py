"""The slides that are open in the page: each with its result, its pixels, its review and its conversation."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.mask import MASK, Mask, read_mask
from tilers import open_slide
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.app.export import system_of
from wsi_chat.app.layers import Grid, read_grid
from wsi_chat.app.review import ReviewStore
from wsi_chat.app.source import Collection, Entry, tile_rows
from wsi_chat.app.squares import SlideReader
from wsi_chat.app.talk import Talk
from wsi_chat.errors import OutputError, WsiChatError
from wsi_chat.names import shown_names
from wsi_chat.schema import FieldRecord, Finding
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from wsi_chat.chat.conversation import Conversation
    from wsi_chat.terminology import System

log = logging.getLogger(__name__)

OPEN_SLIDES = 8
CONVERSATIONS = 2
"""So many conversations hold a model at once; the one used longest ago gives it up first."""


@dataclass
class ShownSlide:
    """One slide as the page shows it. ``result`` is None where it was not analyzed; ``reader`` None where its pixels
    cannot be read, and ``trouble`` says why."""

    entry: Entry
    result: SlideResult | None
    reader: SlideReader | None
    trouble: str
    store: ReviewStore
    talk: Talk
    listeners: list[Callable[[], None]] = field(default_factory=list)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return () if self.result is None else self.result.findings

    @cached_property
    def grid(self) -> Grid | None:
        return None if self.result is None else read_grid(self.entry.folder)

    @cached_property
    def mask(self) -> Mask | None:
        """The foreground mask of the run; None where nothing was analyzed or the picture is gone."""
        return None if self.result is None else read_mask(self.entry.folder / MASK)

    @cached_property
    def tiles(self) -> dict[str, dict[str, Any]]:
        """Rows of tiles.parquet by the tile's id."""
        return {row["tile_id"]: row for row in tile_rows(self.result)}

    @cached_property
    def system(self) -> System:
        """The reporting system of the run; that for no specimen where it is not known here."""

        if self.result is None:
            return load_system(None)
        try:
            return system_of(self.result)
        except WsiChatError as error:
            log.warning("%s: %s", self.entry.id, error)
            return load_system(None)

    @property
    def size(self) -> tuple[int, int] | None:
        """Level-0 pixels, from the file or else from the report."""
        if self.reader is not None:
            return self.reader.slide.size
        return None if self.result is None else (self.result.report.slide.width, self.result.report.slide.height)

    @property
    def fields(self) -> tuple[FieldRecord, ...]:
        """The photographs of a specimen of several, with their places on the canvas; empty for a slide."""
        if self.reader is not None:
            return self.reader.slide.fields
        return () if self.result is None else self.result.report.slide.fields

    @property
    def mpp(self) -> float | None:
        """µm per level-0 pixel; None where the slide does not say, or the analysis had to assume it."""
        if self.result is not None:
            record = self.result.report.slide
            return record.mpp if record.scale_known else None
        return None if self.reader is None else self.reader.slide.mpp

    def changed(self) -> None:
        """Tell every browser that shows the slide."""
        for listener in list(self.listeners):
            listener()

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.store.close()
        self.talk.close()


class Shelf:
    """Opens slides when they are asked for and closes the one that was used longest ago.

    Args:
        collection: what may be opened; nothing else ever is.
        converse: opens a conversation about a run's result or a slide file.
    """

    def __init__(
        self, collection: Collection, converse: Callable[[SlideResult | Path], Conversation], *, most: int = OPEN_SLIDES
    ) -> None:
        self.collection = collection
        self._converse = converse
        self._most = most
        self._open: OrderedDict[str, ShownSlide] = OrderedDict()
        self._talking: OrderedDict[str, Talk] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wsi-chat-talk")

    def get(self, name: str) -> ShownSlide | None:
        """The slide with this id, opened; None where there is none. May take a while: call it on a thread.

        Raises:
            OutputError: its report or its review is damaged.
        """
        entry = self.collection.entries.get(name)
        if entry is None:
            return None
        with self._lock:
            found = self._open.get(name)
            if found is None:
                found = self._opened(entry)
                self._open[name] = found
            self._open.move_to_end(name)
            idle = [key for key, slide in self._open.items() if not slide.listeners and not slide.talk.busy]
            gone = [self._open.pop(key) for key in idle[: max(0, len(self._open) - self._most)] if key != name]
        for slide in gone:
            slide.close()
        return found

    def opened(self, name: str) -> ShownSlide | None:
        """The slide with this id if it is open already."""
        return self._open.get(name)

    def _opened(self, entry: Entry) -> ShownSlide:
        result = entry.load()
        path = entry.slide if result is None else result.slide_path
        reader, trouble = _read(path, result, entry)
        source: SlideResult | Path = result if result is not None else (path or entry.folder)
        talk = Talk(lambda: self._conversation(entry.id, source), entry.folder, self._thread)
        return ShownSlide(entry, result, reader, trouble, ReviewStore(entry.folder), talk)

    def _conversation(self, name: str, source: SlideResult | Path) -> Conversation:
        """On the thread that asks models: make room, then open."""
        slide = self._open.get(name)
        while len(self._talking) >= CONVERSATIONS:
            _, old = self._talking.popitem(last=False)
            old.close()
        conversation = self._converse(source)
        if slide is not None:
            self._talking[name] = slide.talk
        return conversation

    def stores(self) -> dict[str, ReviewStore]:
        """The review of every slide that has one, by id. Those that are not open are opened to read."""
        found = {}
        for name, entry in self.collection.entries.items():
            if SlideFolder(entry.folder).review_path.is_file():
                open_ = self._open.get(name)
                try:
                    found[name] = open_.store if open_ is not None else ReviewStore(entry.folder)
                except OutputError as error:
                    log.warning("%s", error)
        return found

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for slide in self._open.values():
            slide.close()
        self._open.clear()


def _read(path: Path | None, result: SlideResult | None, entry: Entry) -> tuple[SlideReader | None, str]:
    """The slide's pixels, or why there are none: the slide that was analyzed is shown, or none."""
    why = entry.row.get("reason", "") if result is None else ""
    record = None if result is None else result.report.slide
    if path is None or not path.exists():
        name = record.file_name if record is not None else entry.title
        return None, f"{name} is not where it was. Start the page with --slide PATH. {why}".strip()
    names = shown_names(path, entry.title)
    try:
        slide = open_slide(path, mpp=None if record is None else record.mpp, names=names)
    except WsiChatError as error:
        return None, names.hide(str(error))
    if record is not None and slide.fingerprint != record.fingerprint:
        slide.close()
        return None, f"{slide.name} is not the slide that was analyzed: its content differs."
    return SlideReader(slide), ""
