"""What of the slide is in view of a conversation: a finding, a tile, a region, or nothing; and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reports.language import Words
from tilers import open_slide
from tilers.field import Field, FieldReader
from wsi_chat.analysis.result import SlideResult
from wsi_chat.chat.record import ID, RecordAnswer, SlideFacts, corners
from wsi_chat.errors import SettingError, SlideError, SlideNotFound
from wsi_chat.names import shown_names
from wsi_chat.schema import Box, Remark
from wsi_chat.settings import plane_of

if TYPE_CHECKING:
    from tilers import Slide
    from wsi_chat.engines.model import Model
    from wsi_chat.terminology import System

SAME = 0.95
"""A region that fills this much of a field is the field: nothing in it is pointed out."""


class Sight:
    """The open slide and the field in view.

    Attributes:
        reader: reads fields; None where the slide is missing, and ``missing`` says why.
        words: the language of what is said.
        shown: the field in view; ``pointed`` the region in it that is meant, in level-0 pixels.

    Raises:
        SlideError: an image or slide without a record cannot be opened.
    """

    def __init__(
        self,
        source: str | Path | SlideResult,
        model: Model,
        system: System,
        facts: SlideFacts | None,
        words: Words | None = None,
    ) -> None:
        self._facts = facts
        self.words = words or Words("en", system)
        self.missing: Remark | None = None
        self.shown: Field | None = None
        self.pointed: Box | None = None
        self._slide = self._opened(source, model)
        self.reader: FieldReader | None = None
        if self._slide is not None:
            settings, dialect = model.settings, model.dialect
            self.reader = FieldReader(
                self._slide, px=settings.tile_px or dialect.tile_px, mpp=settings.tile_mpp or dialect.mpp_for(system)
            )

    def _opened(self, source: str | Path | SlideResult, model: Model) -> Slide | None:
        settings = model.settings
        if not isinstance(source, SlideResult):
            return open_slide(
                source, mpp=settings.mpp, reader=settings.reader, z=plane_of(settings.z), trial=settings.trial
            )
        record, alone = source.report.slide, Remark("sight.record_alone")
        if source.slide_path is None or not source.slide_path.exists():
            self.missing = Remark("sight.not_there", file=record.file_name, record=alone)
            return None
        try:
            names = shown_names(source.slide_path, record.file_name)
            slide = open_slide(
                source.slide_path,
                mpp=settings.mpp or record.mpp,
                reader=settings.reader,
                z=plane_of(settings.z),
                names=names,
                trial=settings.trial,
            )
        except SlideError as error:
            self.missing = Remark("sight.not_opened", error=names.hide(error.message), record=alone)
            return None
        if slide.fingerprint != record.fingerprint:
            slide.close()
            self.missing = Remark("sight.other_content", name=slide.name, record=alone)
            return None
        return slide

    # ------------------------------------------------------------------------------------------ looking

    def look_at(self, what: str | Box) -> Field:
        """Put a finding, a tile or a region (level-0 px) in view, at the magnification that suits the model.

        A finding or a region smaller than a field is pointed out in a field around it; a tile is shown as it is.

        Raises:
            SettingError: there is no such id, or the region lies outside the slide.
            SlideError: the slide is missing, or the place cannot be read.
        """
        finding = self._facts.finding(what) if self._facts and isinstance(what, str) else None
        tile = self._facts.tile(what) if self._facts and isinstance(what, str) else None
        if isinstance(what, str) and finding is None and tile is None:
            raise SettingError(Remark("sight.no_such", what=what), hint=Remark("sight.some_exist"))
        if self.reader is None:
            raise SlideNotFound(self.missing or "")
        if tile is not None:
            self.shown, self.pointed = self.reader.tile(tile), None
            return self.shown
        if isinstance(what, Box):
            region, name = self.reader.inside(what), ""
        else:
            assert finding is not None
            region, name = finding.box, finding.id
        self.shown, self.pointed = self.reader.around(region, name=name), region
        if max(region.width, region.height) >= SAME * self.shown.box.width:
            self.pointed = None
        return self.shown

    def clear(self) -> None:
        self.shown = self.pointed = None

    def ensure(self, question: str, notes: list[Remark]) -> Remark | None:
        """Make sure that something is in view; why not, in a sentence, where nothing can be.

        An id in the question is looked at. Otherwise, where nothing is in view, what carries the verdict is taken,
        or the picture itself where it is no larger than a field.
        """
        if self.reader is None:
            return Remark("sight.needs_picture", why=self.missing or "")
        named = [name for name in ID.findall(question) if self._facts is not None and self._facts.exists(name)]
        if named:
            self.look_at(named[0])
            return None
        if self.shown is not None:
            return None
        carrying = self._facts.carrying() if self._facts is not None else None
        if carrying is not None:
            self.look_at(carrying)
            notes.append(Remark("sight.carrying", id=carrying))
            return None
        side, longest = self.reader.side, max(self.reader.slide.size)
        if side is not None and longest > 2 * side:
            name = self.reader.slide.name
            if self._facts is not None:
                return Remark("sight.larger", name=name)
            return Remark("sight.larger_not_analyzed", name=name)
        self.shown = self.reader.whole() if side is None else self.reader.around(self.reader.bounds)
        self.pointed = None
        notes.extend(self.reader.notes)
        return None

    def describe(self) -> RecordAnswer:
        """What is in view, in words, with the ids of the record that lie there."""
        assert self.shown is not None
        shown, reader = self.shown, self.reader
        coarse = reader is not None and reader.side and shown.mpp and shown.mpp > reader.mpp * 1.05
        cites = self._facts.ids_in(self.pointed or shown.box) if self._facts else ()
        said = Remark(
            "sight.view",
            corners=corners(shown.box),
            scale=Remark("sight.scale", mpp=shown.mpp) if shown.mpp else "",
            coarse=Remark("sight.coarse", mpp=reader.mpp, side=reader.side or 0) if reader and coarse else "",
            pointed=Remark("sight.pointed", corners=corners(self.pointed)) if self.pointed is not None else "",
            there=Remark("sight.there", names=", ".join(cites)) if cites else "",
        )
        return RecordAnswer(self.words.remark(said), cites)

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None
