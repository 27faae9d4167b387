"""An evaluation as one PNG: what was scored, with its intervals and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.errors import OutputError
from wsi_chat.evaluation.evaluate import Evaluation
from wsi_chat.evaluation.resampling import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, GREY, RED = "#8db4d2", "#5c6770", "#b23a48"
Bar = tuple[str, Estimate]
Mark = tuple[str, tuple[float, ...]]
"""A baseline: its name, and its value beside the first bar, the second, ..."""


def draw(result: Evaluation, path: Path) -> None:
    """Write the figure. Raises OutputError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(result)
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(7.0 * columns, 3.6 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    counts = result.counts
    figure.suptitle(
        f"{Path(result.file).name}: {counts.rows} rows, {result.images} images; {counts.truncated} cut off, "
        f"{counts.failed} failed, {counts.refused} refused, {counts.unparsed} unparsed",
        fontsize=11,
    )
    for number, (title, bars, marks) in enumerate(panels, start=1):
        _panel(figure.add_subplot(rows, columns, number), title, bars, marks)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}", hint="Choose another -o.") from error


def _panels(result: Evaluation) -> list[tuple[str, list[Bar], list[Mark]]]:
    """(title, bars, baselines) of each part that the file has."""
    panels: list[tuple[str, list[Bar], list[Mark]]] = []
    if result.choice is not None:
        all_ = result.choice.overall
        bars = [
            ("accuracy", all_.scores.accuracy),
            ("balanced accuracy", all_.scores.balanced_accuracy),
            ("macro-F1", all_.scores.macro_f1),
            ("MCC", all_.scores.mcc),
        ]
        marks: list[Mark] = [
            ("majority class", (all_.majority, all_.majority_balanced)),
            ("always the first", (all_.always_first, all_.always_first_balanced)),
        ]
        panels.append((f"Multiple choice, {all_.scores.rows} rows", bars, marks))
    if result.grounding is not None:
        found = result.grounding
        bars = [(f"F1 at IoU {at.iou:g}", at.f1) for at in found.at_iou]
        bars += [("F1, centre inside", found.centre.f1), ("mean IoU", found.mean_iou)]
        bars.append(("false alarm rate", found.negatives.false_alarm_rate))
        panels.append((f"Grounding, {found.questions} questions", bars, []))
        sizes = [(name, part.recall) for name, part in found.by_size.items() if part.truth]
        classes = sorted(found.by_class.items(), key=lambda item: -item[1].truth)[:8]
        bars = [(f"recall, {name}", value) for name, value in sizes]
        bars += [(f"F1, {name}", one.f1) for name, one in classes if one.truth]
        if bars:
            panels.append(("Grounding by cell size and class, IoU 0.5", bars, []))
    named: list[Bar] = []
    for name, scores in (("referring", result.referring), ("single phrase", result.phrase)):
        if scores is not None:
            named += [(f"{name}: accuracy", scores.accuracy), (f"{name}: macro-F1", scores.macro_f1)]
    if named:
        panels.append(("Classes named", named, []))
    texts: list[Bar] = []
    for kind, score in result.text.items():
        texts += [(f"{kind}: BLEU-4", score.bleu[3]), (f"{kind}: ROUGE-L", score.rouge_l)]
        texts.append((f"{kind}: METEOR", score.meteor))
    if texts:
        panels.append(("Text", texts, []))
    stated: list[Bar] = []
    for kind, one in result.fields.items():
        stated += [(f"{kind}: category", one.category)] * bool(one.category_rows)
        stated += [(f"{kind}: abnormal or not", one.negation)] * bool(one.negation_rows)
        stated += [(f"{kind}: organisms", one.organisms)] * bool(one.organism_rows)
    if stated:
        panels.append(("Stated as in the reference", stated, []))
    return panels


def _panel(axes: Axes, title: str, bars: Sequence[Bar], marks: Sequence[Mark]) -> None:
    axis: Any = axes
    places = list(range(len(bars)))
    values = [0.0 if bar.value is None else bar.value for _, bar in bars]
    low = min([0.0, *values, *(bar.interval.low for _, bar in bars if bar.interval)])
    axis.barh(places, values, color=BLUE, height=0.62)
    for place, (_, bar) in zip(places, bars, strict=True):
        end = 0.0 if bar.value is None else max(bar.value, 0.0)
        if bar.interval is not None:
            axis.plot([bar.interval.low, bar.interval.high], [place, place], color="black", linewidth=1.2)
            end = max(end, bar.interval.high)
        axis.text(
            end + 0.012, place, "not defined" if bar.value is None else f"{bar.value:.3f}", va="center", fontsize=8
        )
    for (name, values_of), colour in zip(marks, (RED, GREY), strict=False):
        for place, value in enumerate(values_of):
            label = f"{name} {value:.3f}" if place == 0 else None
            axis.vlines(value, place - 0.42, place + 0.42, color=colour, linestyle="--", linewidth=1.8, label=label)
    if marks:
        axis.legend(fontsize=8, loc="lower right", framealpha=0.9)
    axis.set_yticks(places, [name for name, _ in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(low, 1.12)
    axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
