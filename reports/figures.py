"""overview.png and heatmap.png: the scan with its findings, and the scan with the screening probabilities.

A tile without a screening answer is grey and hatched, never drawn as low. The colour map grows evenly darker
(magma, reversed), so it reads the same without colour vision and in print. Both pictures have one layout and one
size, so that they can be laid side by side, and carry no timestamps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reports.language import Words
from reports.scan import read_scan
from reports.wording import VERDICT_WORDS, seen_first
from wsi_chat.atomic import replacing
from wsi_chat.errors import OutputError
from wsi_chat.schema import Report, TileVerdict

# As wide as half a page of the report, where the pictures are set at this size and their text stays legible.
WIDTH_IN = 3.4
MAX_HEIGHT_IN = 2.05
LEGEND_IN = 0.4
DPI = 300
INK = "#1d2a30"
ABNORMAL = "#b5410e"
OTHER = "#17687e"
# Where cells are only counted: a mark and a colour for each class. The marks tell them apart without colour, and the
# colours differ by 12 or more in CAM02-UCS, whatever colours one cannot see (tests/reports/test_colours.py).
COUNTED = (
    ("D", "#1d1d1b"), ("o", OTHER), ("s", ABNORMAL), ("v", "#603aaa"), ("^", "#5b6445"), ("p", "#71251f"),
    ("h", "#928945"), ("<", "#6a5ae4"), (">", "#2492a2"), ("X", "#a96b79"),
)  # fmt: skip
CYCLE = tuple(color for _, color in COUNTED)
HEAT_MAP = "magma_r"
HEAT_ALPHA = 0.78
MISSING_GREY, STRIPE_GREY = 158, 74
GRID_PX = 1200  # longest side of the raster on which tiles are painted
NICE_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
# Past this many marks, dots hide the scan: they are drawn smaller.
CROWDED = 120


def draw_overview(
    overview_rgb: NDArray[np.uint8],
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    path: Path | str,
    *,
    outline: Sequence[Sequence[tuple[float, float]]] = (),
    words: Words | None = None,
    font: Path | None = None,
) -> Path:
    """Draw the scan with a mark for each finding: triangles for abnormal classes, rings for the others.

    Args:
        overview_rgb: [h, w, 3] uint8 picture of the whole level-0 image, any size.
        outline: rings of the deposit in level-0 pixels, drawn as thin lines.
        words: the legend's language, English by default.
        font: a font file for the legend, where its language needs one.

    Raises:
        OutputError: if the file cannot be written.
    """
    words = words or Words()
    figure, axes, legend = _canvas(overview_rgb, report, outline=outline)
    findings = report.verdict.findings
    size = 9.0 if len(findings) > CROWDED else 22.0
    groups = [
        ([f for f in findings if not f.abnormal], "o", OTHER, words("figures.finding_other")),
        ([f for f in findings if f.abnormal], "^", ABNORMAL, words("figures.finding_abnormal")),
    ]
    if not any(row.abnormal for row in report.verdict.counts):  # no class of the system is abnormal: none is to be told
        groups = [(list(findings), "o", OTHER, words("figures.finding"))]
    names = sorted({(f.name, f.label) for f in findings})
    if report.verdict.status == "counted" and len(names) <= len(COUNTED):
        groups = [
            ([f for f in findings if (f.name, f.label) == (name, code)], marker, color, words.label(code, name))
            for (name, code), (marker, color) in zip(names, COUNTED, strict=False)
        ]
    handles = []
    for group, marker, color, text in groups:
        if not group:
            continue
        style: dict[str, Any] = {
            "marker": marker,
            "s": size,
            "facecolors": color if marker == "^" else "none",
            "edgecolors": "white" if marker == "^" else color,
            "linewidths": 0.4 if marker == "^" else 0.7,
            "zorder": 5,
        }
        xs, ys = zip(*(finding.box.center for finding in group), strict=True)
        axes.scatter(xs, ys, **style)
        handles.append(legend.scatter([], [], **{**style, "s": 20.0}, label=f"{text} ({len(group)})"))
    if handles:
        legend.legend(
            handles=handles, loc="center left", ncols=2 if len(handles) <= 4 else 4, frameon=False, prop=_text(font),
            labelcolor=INK, handletextpad=0.3, columnspacing=1.2, borderpad=0, bbox_to_anchor=(-0.01, 0.62),
        )  # fmt: skip
    else:
        legend.text(0.0, 0.62, words("figures.no_findings"), fontproperties=_text(font), color=INK, va="center")
    return _save(figure, path)


def draw_heatmap(
    overview_rgb: NDArray[np.uint8],
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    path: Path | str,
    *,
    outline: Sequence[Sequence[tuple[float, float]]] = (),
    question: str = "",
    words: Words | None = None,
    font: Path | None = None,
) -> Path:
    """Draw the scan, faded, under the tiles' screening probabilities (``p_screen``); see `draw_overview`.

    Where tiles overlap the highest probability is shown. A place is missing when none of its tiles has an answer.

    Args:
        question: what the screening question asked, for the colour bar; e.g. ``Is any abnormal cell present?``
    """
    import matplotlib as mpl
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    words = words or Words()
    heat, missing = rasterize(report, tile_verdicts)
    colors = mpl.colormaps[HEAT_MAP]
    figure, _, legend = _canvas(_painted(overview_rgb, heat, missing, colors), report, outline=outline)
    bar = legend.inset_axes((0.008, 0.4, 0.56, 0.17))
    scale = figure.colorbar(
        mpl.cm.ScalarMappable(Normalize(0, 1), colors), cax=bar, orientation="horizontal", alpha=HEAT_ALPHA
    )
    scale.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    scale.outline.set_linewidth(0.4)
    bar.tick_params(labelsize=5.5, length=1.5, width=0.4, pad=1, colors=INK)
    asked = words("figures.positive", question=words.question(question))
    title = asked if question else words("figures.probability")
    bar.set_title(title, fontproperties=_text(font), color=INK, loc="left", pad=2)
    legend.add_patch(
        Rectangle(
            (0.7, 0.36),
            0.045,
            0.26,
            facecolor=str(MISSING_GREY / 255),
            edgecolor=str(STRIPE_GREY / 255),
            hatch="//////",
            lw=0.3,
        )
    )
    legend.text(0.76, 0.49, words("figures.no_answer"), fontproperties=_text(font), color=INK, va="center")
    return _save(figure, path)


def rasterize(report: Report, tile_verdicts: Sequence[TileVerdict]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Paint the tiles on a raster over the whole level-0 image.

    Returns:
        heat: [h, w] float32, the highest ``p_screen`` of the tiles over each place, NaN where there is none;
        missing: [h, w] bool, True where tiles were planned and none of them has an answer.
    """

    slide = report.slide
    scale = min(1.0, GRID_PX / max(slide.width, slide.height))
    shape = (max(1, round(slide.height * scale)), max(1, round(slide.width * scale)))
    heat = np.full(shape, np.nan, dtype=np.float32)
    planned = np.zeros(shape, dtype=bool)
    for verdict in tile_verdicts:
        tile = verdict.tile
        x0, y0 = int(tile.x * scale), int(tile.y * scale)
        x1 = max(x0 + 1, round((tile.x + tile.width) * scale))
        y1 = max(y0 + 1, round((tile.y + tile.height) * scale))
        area = (slice(y0, y1), slice(x0, x1))
        planned[area] = True
        if verdict.p_screen is not None:
            heat[area] = np.fmax(heat[area], np.float32(verdict.p_screen))
    return heat, planned & np.isnan(heat)


def _painted(
    overview_rgb: NDArray[np.uint8], heat: NDArray[np.float32], missing: NDArray[np.bool_], colors: Any
) -> NDArray[np.uint8]:
    """The scan in pale grey under the heat, [h, w, 3] uint8; missing places grey with diagonal stripes."""

    grey = Image.fromarray(np.ascontiguousarray(overview_rgb[..., :3])).convert("L")
    shape = heat.shape
    scan = 110 + np.asarray(grey.resize((shape[1], shape[0])), dtype=np.float32) * (145 / 255)
    picture = np.repeat(scan[..., None], 3, axis=2)
    known = ~np.isnan(heat)
    tint = colors(heat[known])[:, :3].astype(np.float32) * 255
    picture[known] = HEAT_ALPHA * tint + (1 - HEAT_ALPHA) * picture[known]
    rows, columns = np.indices(shape)
    period = max(4, max(shape) // 75)
    striped = (rows + columns) % period < max(1, period // 4)
    picture[missing] = MISSING_GREY
    picture[missing & striped] = STRIPE_GREY
    return picture.round().astype(np.uint8)


def _canvas(
    overview_rgb: NDArray[np.uint8],
    report: Report,
    *,
    outline: Sequence[Sequence[tuple[float, float]]] = (),
) -> tuple[Any, Any, Any]:
    """A figure with the scan in level-0 coordinates, its scale bar, and a strip beneath for the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slide = report.slide
    height_in = min(MAX_HEIGHT_IN, WIDTH_IN * slide.height / slide.width) + LEGEND_IN
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    strip = LEGEND_IN / height_in
    axes = figure.add_axes((0.005, strip, 0.99, 0.995 - strip))
    legend = figure.add_axes((0.005, 0.0, 0.99, strip))
    legend.set_axis_off()
    legend.set_xlim(0, 1)
    legend.set_ylim(0, 1)
    picture = np.asarray(overview_rgb)
    axes.set_anchor("NW")
    axes.imshow(picture, extent=(0, slide.width, slide.height, 0), interpolation="auto")
    for ring in outline:
        axes.plot(*zip(*ring, strict=True), color=INK, linewidth=0.5, alpha=0.6, zorder=1)
    axes.set_xlim(0, slide.width)
    axes.set_ylim(slide.height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#9aa5aa", linewidth=0.5)
    _scale_bar(axes, report)
    return figure, axes, legend


def _scale_bar(axes: Any, report: Report) -> None:
    from matplotlib.patheffects import withStroke

    slide = report.slide
    if slide.fields or not slide.scale_known:  # a canvas has no length, and an assumed scale measures nothing
        return
    limit = slide.width * slide.mpp / 1000 / 4
    length_mm = max((mm for mm in NICE_MM if mm <= limit), default=NICE_MM[0])
    length = length_mm * 1000 / slide.mpp
    margin = 0.03 * max(slide.width, slide.height)
    x1, y = slide.width - margin, slide.height - margin
    halo = [withStroke(linewidth=2.2, foreground="white")]
    axes.plot([x1 - length, x1], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt", zorder=8, path_effects=halo)
    axes.annotate(
        f"{length_mm:g} mm", (x1 - length / 2, y), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom",
        fontsize=5.5, color=INK, zorder=8, path_effects=halo, annotation_clip=False,
    )  # fmt: skip


def plot_findings(report: Report, folder: Path, *, ax: Any = None) -> Any:
    """Draw the stored scan with a mark for each finding into matplotlib axes, and give these back.

    Coordinates are level-0 pixels (of several photographs, those of the canvas that shows them side by side).

    Raises:
        OutputError: the folder has no scan that can be read.
    """
    import matplotlib.pyplot as plt

    scan = read_scan(folder)
    if scan is None:
        raise OutputError(f"{folder} has no scan.jpg that can be read.", hint="Analyze the slide again.")
    axes = plt.subplots(figsize=(8, 6), layout="constrained")[1] if ax is None else ax
    slide = report.slide
    axes.imshow(scan, extent=(0, slide.width, slide.height, 0))
    for at, count in enumerate(seen_first(report.verdict.counts)):
        found = [finding.box.center for finding in report.verdict.findings if finding.label == count.label]
        if found:
            marker = "^" if count.abnormal else "o"
            xs, ys = zip(*found, strict=True)
            axes.scatter(
                xs, ys, s=28, marker=marker, facecolors="none", edgecolors=CYCLE[at % len(CYCLE)],
                label=f"{count.name} ({len(found)})", linewidths=1.2,
            )  # fmt: skip
    for field in slide.fields:
        axes.annotate(str(field.number), (field.x, field.y), xytext=(2, -2), textcoords="offset points", va="top")
    if report.verdict.findings:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    axes.set_title(f"{slide.file_name}: {VERDICT_WORDS[report.verdict.status]}")
    axes.set_axis_off()
    return axes


def _text(font: Path | None) -> Any:
    """Small legend text, in the default font or in one from a file."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=str(font), size=5.5) if font is not None else FontProperties(size=5.5)


def _save(figure: Any, path: Path | str) -> Path:
    with replacing(path) as scratch:
        figure.savefig(scratch, format="png", metadata={"Software": None})
    return Path(path)
