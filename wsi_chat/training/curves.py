"""The curves of a fine-tuning run as a picture: loss above, the evaluation's metrics below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsi_chat.atomic import replacing

SHOWN = {
    "ground_f1": "grounding F1 at IoU 0.5",
    "choice_accuracy": "choice accuracy",
    "refer_accuracy": "region class accuracy",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73")
_SMOOTH = 0.9


def draw(rows: Sequence[dict[str, Any]], path: Path, *, best: int | None = None, title: str = "") -> None:
    """Write the PNG from rows of metrics.jsonl. ``best`` is the step of the best checkpoint, drawn as a line."""
    from matplotlib.figure import Figure

    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    named = [name for name in SHOWN if any(f"eval_{name}" in row for row in rows)]
    figure = Figure(figsize=(8, 6 if named else 4), dpi=120, layout="constrained")
    axes = figure.subplots(2 if named else 1, 1, sharex=True, squeeze=False)[:, 0]
    if losses:
        steps, values = zip(*losses, strict=True)
        axes[0].plot(steps, values, color="#bbbbbb", linewidth=1, label="training, as logged")
        axes[0].plot(steps, _smoothed(values), color="black", linewidth=1.6, label="training, smoothed")
    if held:
        axes[0].plot(*zip(*held, strict=True), "o-", color=_COLOURS[1], markersize=4, label="evaluation set")
    axes[0].set_ylabel("loss per answer token (nats)")
    axes[0].set_ylim(bottom=0)
    for name, colour in zip(named, _COLOURS, strict=False):
        points = [(row["step"], row[f"eval_{name}"]) for row in rows if f"eval_{name}" in row]
        axes[1].plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=SHOWN[name])
    if named:
        axes[1].set_ylim(-0.02, 1.02)
        axes[1].set_ylabel("metric")
    for axis in axes:
        if best is not None:
            axis.axvline(best, color="#999999", linestyle=":", linewidth=1.2, label=f"best, step {best}")
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("optimiser step")
    if title:
        figure.suptitle(title, fontsize=10)
    with replacing(path) as scratch:
        figure.savefig(scratch)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean without the bias of its start."""
    smooth, weight, out = 0.0, 0.0, []
    for value in values:
        smooth = _SMOOTH * smooth + (1 - _SMOOTH) * value
        weight = _SMOOTH * weight + 1 - _SMOOTH
        out.append(smooth / weight)
    return out
