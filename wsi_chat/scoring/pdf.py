"""validation.pdf through Typst, tagged for accessibility: the figures of validation.json that fit its pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_chat._version import __version__
from wsi_chat.atomic import replacing
from wsi_chat.errors import OutputError
from wsi_chat.scoring.validation import Judged

INK, ACCENT, WARM = "#1d2a30", "#17687e", "#b5410e"


def write_validation_pdf(payload: Mapping[str, Any], judged: Judged, path: Path) -> Path:
    """Write the PDF of a validation.

    Raises:
        OutputError: it cannot be written, or Typst refuses the page.
    """
    import typst

    make: Any = typst.compile
    template = resources.files(__package__).joinpath("validation.typ").read_bytes()
    # names from a manifest may be in any script; the template sets them as strings, never as markup
    data = {**payload, "tool": __version__}
    with replacing(path) as place:
        root = place.parent
        data["pictures"] = _draw(payload, judged, root)
        inputs = {"data": json.dumps(data, ensure_ascii=False)}
        profiles: tuple[Any, ...] = (["ua-1"], [])
        for standards in profiles:
            try:
                pdf: bytes = make(template, root=str(root), sys_inputs=inputs, format="pdf", pdf_standards=standards,
                                    timestamp=0)  # fmt: skip
                break
            except typst.TypstError as error:
                # PDF/UA refuses a name in a script without a font; the page matters more than its profile
                if not standards:
                    raise OutputError(f"Cannot make {path}: Typst says: {error}.", hint="Use --no-pdf.") from error
        place.write_bytes(pdf)
    return path


def _draw(payload: Mapping[str, Any], judged: Judged, root: Path) -> list[dict[str, str]]:
    """ROC curve, calibration and scores as SVG; none where no slide of either class has a score."""
    if payload["auc"] is None:
        return []
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    scored = [o for o in judged.outcomes if o.score is not None]
    truth = [o.positive for o in scored]
    score = [float(o.score or 0.0) for o in scored]
    pictures = []
    style: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
             "text.color": INK, "axes.labelcolor": INK, "svg.fonttype": "path", "svg.hashsalt": "wsi-chat"}  # fmt: skip
    drawings = [("roc.svg", _roc, f"ROC curve with an area of {payload['auc']['value']:.3f}."),
                ("calibration.svg", _calibration, "Observed share of positive slides over predicted probability."),
                ("scores.svg", _scores, "Scores of negative and of positive slides, with the threshold.")]  # fmt: skip
    with mpl.rc_context(style):
        for name, draw, alt in drawings:
            figure, axes = plt.subplots(figsize=(2.35, 2.2), layout="constrained")
            draw(axes, truth, score, payload)
            figure.savefig(root / name, metadata={"Date": None})
            plt.close(figure)
            pictures.append({"file": name, "alt": alt})
    return pictures


def _roc(axes: Any, truth: Sequence[bool], score: Sequence[float], payload: Mapping[str, Any]) -> None:
    from sklearn.metrics import roc_curve

    alarms, hits, _ = roc_curve(truth, score)
    axes.plot([0, 1], [0, 1], color="#c4cdd1", linewidth=0.8)
    axes.step(alarms, hits, where="post", color=ACCENT, linewidth=1.4)
    decided = payload["at_threshold"]["decided"]
    x, y = decided["specificity"]["value"], decided["sensitivity"]["value"]
    if x is not None and y is not None:
        axes.plot([1 - x], [y], "o", color=WARM, markersize=4, label="at the threshold")
        axes.legend(frameon=False, loc="lower right", fontsize=7)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _calibration(axes: Any, truth: Sequence[bool], score: Sequence[float], payload: Mapping[str, Any]) -> None:
    curve = payload["calibration"]["curve"]
    x, y = [b["predicted"] for b in curve], [b["observed"] for b in curve]
    low = [max(0.0, b["observed"] - b["low"]) for b in curve]
    high = [max(0.0, b["high"] - b["observed"]) for b in curve]
    axes.plot([0, 1], [0, 1], color="#c4cdd1", linewidth=0.8)
    axes.errorbar(x, y, yerr=[low, high], color=ACCENT, marker="o", markersize=3, linewidth=1.0, elinewidth=0.6)
    axes.set(xlabel="predicted", ylabel="observed share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def _scores(axes: Any, truth: Sequence[bool], score: Sequence[float], payload: Mapping[str, Any]) -> None:
    import numpy as np

    low, high = min(*score, 0.0), max(*score, 1.0)
    for kind, colour, hatch in ((False, ACCENT, ""), (True, WARM, "///")):
        values = [s for s, t in zip(score, truth, strict=True) if t == kind]
        axes.hist(values, bins=np.linspace(low, high, 21), color=colour, alpha=0.6, hatch=hatch,
                  label="positive" if kind else "negative")  # fmt: skip
    for line in {payload["threshold"]["normal_below"], payload["threshold"]["abnormal_from"]} - {None}:
        axes.axvline(line, color=INK, linewidth=0.8, linestyle="--")
    axes.legend(frameon=False, fontsize=7)
    axes.set(xlabel="score", ylabel="slides")
