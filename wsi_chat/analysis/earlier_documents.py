"""Documents of an earlier run of a slide, until the run under way is known to differ from it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_chat.analysis.run_folder import RUN_HINT, SlideFolder
from wsi_chat.errors import OutputError, WsiChatError

log = logging.getLogger(__name__)


class EarlierDocuments:
    """What an earlier run left in a slide's folder, until the run under way is known to differ from it.

    A verdict that another setting, another model or another scan gave is not left where the new one will stand: its
    documents move to ``superseded/`` before the first question of a run that differs, once its slide is open and its
    model is loaded, and go when the new report is written. A run that cannot begin moves nothing. The journal stays,
    so nothing that was answered is lost.
    """

    def __init__(self, folder: SlideFolder) -> None:
        self._folder = folder
        self._report: Any = None
        self._differs = False
        if folder.report_path.exists():
            try:
                self._report = json.loads(folder.report_path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                self._report = {}  # half a report is nobody's verdict: it agrees with nothing

    @property
    def there(self) -> bool:
        """Whether a report of an earlier run stands in the folder."""
        return self._report is not None

    def agree(self, block: str, values: Mapping[str, Any]) -> bool:
        """Whether the earlier report has these values in one of its blocks."""
        earlier = self._report.get(block) if isinstance(self._report, dict) else None
        if not isinstance(earlier, dict):
            return False
        wanted = json.loads(json.dumps(dict(values)))  # as it reads after writing: tuples are lists
        return all(name in earlier and earlier[name] == value for name, value in wanted.items())

    def expect(self, block: str, values: Mapping[str, Any]) -> None:
        """The run has these values in ``block`` of its report: where the earlier one has others, the runs differ."""
        self._differs = self._differs or not self.agree(block, values)

    def make_way(self) -> None:
        """The run begins now: set the documents aside where it differs. Raises OutputError."""
        if self._differs:
            self.set_aside()

    def is_of(self, path: Path) -> bool:
        """Whether the earlier report is of the scan that is at ``path``, read as it was read then."""
        from tilers import open_slide

        if not self.there:
            return False
        report = self._report if isinstance(self._report, dict) else {}
        try:
            config, slide = report["provenance"]["config"], report["slide"]
            with open_slide(path, mpp=slide["mpp"], reader=config.get("reader")) as found:
                return bool(found.fingerprint == slide["fingerprint"])
        except (WsiChatError, KeyError, TypeError, AttributeError):
            return False

    def set_aside(self) -> None:
        """Move the documents to ``superseded/``, the report first, since it is what marks a finished slide.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self.there:
            return
        place = self._folder.superseded_path
        report = self._folder.report_path
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for path in sorted(self._folder.documents, key=lambda path: path != report):
                path.rename(place / path.name)
        except OSError as error:
            raise OutputError(f"{place}: cannot be written ({error.strerror}).", hint=RUN_HINT) from error
        self._report = None
        log.info("%s: the documents of an earlier run are in %s until the new ones are there", place.parent.name, place)

    def forget(self) -> None:
        """The new documents are complete: what they replace goes, and so does the traceback of an earlier failure."""
        shutil.rmtree(self._folder.superseded_path, ignore_errors=True)
        self._folder.traceback_path.unlink(missing_ok=True)
