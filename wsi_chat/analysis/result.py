"""What analyze() returns: the verdict, the way to the cells behind it, and a picture of both in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilers.remote import slide_path
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.errors import SettingError, SlideNotFound
from wsi_chat.schema import Box, Finding, Report

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.axes import Axes
    from PIL.Image import Image


MEASURED = ("confidence", "tile_p", "votes")


@dataclass(frozen=True, slots=True)
class SlideResult:
    """One slide's finished result. ``folder`` holds its documents; ``slide_path`` is None where it is not known.

    ``unwritten`` names the documents that were asked for and could not be made, with the reason;
    ``notes`` says what an extra would write besides.
    """

    report: Report
    folder: Path
    slide_path: Path | None = None
    unwritten: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """``normal``, ``abnormal``, ``indeterminate``, ``unsatisfactory`` or ``counted``."""
        return self.report.verdict.status

    @property
    def score(self) -> float | None:
        """The slide score on the scale that ``report.verdict.score_kind`` names; no probability of disease."""
        return self.report.verdict.score

    @property
    def category(self) -> str | None:
        return self.report.verdict.category_name

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.report.verdict.findings

    @property
    def tiles(self) -> pyarrow.Table:
        """One row per tile, as written to tiles.parquet. Raises OutputError where it cannot be read."""
        return self.files.tiles_table()

    def findings_frame(self) -> pandas.DataFrame:
        """One row per finding, as in findings.csv: class, field, place and size in µm and px, confidence, tiles.

        Numbers are numbers; what is not known is missing.

        Raises:
            SettingError: pandas is not installed.
        """
        from reports.tables import FINDING_COLUMNS, finding_rows

        frame = _pandas().DataFrame(finding_rows(self.report), columns=list(FINDING_COLUMNS))
        numbers = [name for name in FINDING_COLUMNS if name.endswith(("_um", "_px")) or name in MEASURED]
        frame[numbers] = frame[numbers].apply(_pandas().to_numeric, errors="coerce")
        frame["abnormal"] = frame["abnormal"] == "yes"
        return frame

    def tiles_frame(self) -> pandas.DataFrame:
        """One row per tile, as in tiles.parquet.

        Raises:
            SettingError: pandas is not installed. OutputError: the table cannot be read.
        """
        _pandas()
        return self.tiles.to_pandas()

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the scan with a mark for each finding, by class; of several photographs side by side.

        Args:
            ax: where to draw; None makes a figure.

        Raises:
            OutputError: the stored scan cannot be read.
        """
        from reports.figures import plot_findings

        axes: Axes = plot_findings(self.report, self.folder, ax=ax)
        return axes

    @property
    def files(self) -> SlideFolder:
        """Where each document is."""
        return SlideFolder(self.folder)

    def finding(self, finding_id: str) -> Finding:
        """The finding with this id.

        Raises:
            SettingError: there is none.
        """
        for finding in self.findings:
            if finding.id == finding_id:
                return finding
        raise SettingError(
            f"There is no finding {finding_id!r}.",
            hint=f"This slide has {len(self.findings)}: see result.findings.",
        )

    def zoom(self, where: str | Box, *, px: int = 512, context: float = 1.0) -> Image:
        """The region around a finding or a box, read from the slide.

        Args:
            where: a finding's id or a box in level-0 pixels.
            px: side of the picture in pixels.
            context: margin on each side, as a multiple of the box's longer side.

        Raises:
            SlideNotFound: the slide is not where it was.
        """
        from PIL import Image

        from tilers import open_slide

        if self.slide_path is None or not self.slide_path.exists():
            raise SlideNotFound(
                f"The slide {self.report.slide.file_name} is not at {self.slide_path}.",
                hint="Put it back, or load the result with load_result(folder, slide=...).",
            )
        box = self.finding(where).box if isinstance(where, str) else where
        side = max(box.width, box.height, 1.0) * (1 + 2 * context)
        cx, cy = box.center
        view = Box(cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)
        with open_slide(self.slide_path, mpp=self.report.slide.mpp) as slide:
            return Image.fromarray(slide.crop(view, px))

    def __repr__(self) -> str:
        verdict = self.report.verdict
        score = "no score" if verdict.score is None else f"score {verdict.score:.3f} ({verdict.score_kind})"
        return f"<SlideResult {self.report.slide.id}: {verdict.status}, {score}, {len(self.findings)} findings>"

    def _repr_html_(self) -> str:
        from reports.html import verdict_html

        return verdict_html(self.report, self.folder)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise SettingError("pandas is not installed.", hint="Install it with: pip install pandas") from error
    return pandas


def load_result(folder: str | Path, *, slide: str | Path | None = None) -> SlideResult:
    """A finished result from its folder ``OUT/<slide id>``.

    Args:
        slide: where the slide file is now; None takes the place that run.json remembers.

    Raises:
        OutputError: the folder holds no report.json, or one that cannot be read.
    """
    files = SlideFolder(Path(folder))
    report = files.read_report()
    place = files.slide_file(slide_path(slide) if slide else None)
    return SlideResult(report=report, folder=files.path, slide_path=place)
