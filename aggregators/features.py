"""What a fitted head sees of a slide: a vector for the whole slide, or one row for each screened tile.

Both are functions of the same evidence, whether it comes from tile verdicts in memory or from a run folder, and
neither depends on the order of the tiles. Tiles without a screening answer are no rows: coverage is judged apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aggregators.pool import CLIP
from wsi_chat.errors import SettingError
from wsi_chat.schema import Finding, TileVerdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

VERDICT_FEATURES = "verdict-1"
TILE_FEATURES = "tile-1"
TOP = (1, 3, 10, 30)
QUANTILES = (0.5, 0.9, 0.99)
CUTOFFS = (0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a slide's n screened tiles, in any order, and its merged findings.

    ``p`` (n,) probabilities of the screen question's positive option; ``cellularity`` (n,) 0..1 and ``focus``
    (n,) variance of the Laplacian, NaN where unknown; ``detailed`` (n,) whether cells were asked for;
    ``findings`` label -> merged findings of the slide; ``seen`` label -> (n,) findings that lie in each tile;
    ``abnormal`` the labels that count as abnormal; ``image`` (n, d) the model's own image features, or None.
    """

    p: Floats
    cellularity: Floats
    focus: Floats
    detailed: NDArray[np.bool_]
    findings: Mapping[str, int]
    seen: Mapping[str, Floats]
    abnormal: frozenset[str]
    image: NDArray[np.float32] | None = None

    @property
    def abnormal_findings(self) -> int:
        """Merged findings of abnormal classes, each cell once."""
        return sum(n for label, n in self.findings.items() if label in self.abnormal)


def evidence_of(tile_verdicts: Iterable[TileVerdict], findings: Sequence[Finding]) -> Evidence:
    """Evidence from the verdicts of a slide's tiles and its merged findings."""
    rows = [verdict for verdict in tile_verdicts if verdict.p_screen is not None]
    columns: dict[str, Sequence[Any]] = {
        "tile_id": [row.tile.id for row in rows],
        "p_screen": [row.p_screen for row in rows],
        "cellularity": [row.tile.cellularity for row in rows],
        "focus": [row.focus for row in rows],
        "status": [row.status for row in rows],
    }
    return evidence_from_columns(columns, findings)


def evidence_from_columns(
    columns: Mapping[str, Sequence[Any]], findings: Sequence[Finding], *, image: NDArray[np.float32] | None = None
) -> Evidence:
    """Evidence from the columns ``tile_id, p_screen, cellularity, focus, status`` of tiles.parquet.

    Args:
        columns: lists of one length, None where unknown; rows without ``p_screen`` are left out.
        image: (rows, d) image features in the order of the columns, or None.
    """
    import numpy as np

    p = np.array([np.nan if value is None else value for value in columns["p_screen"]], dtype=np.float64)
    kept: list[int] = np.flatnonzero(~np.isnan(p)).tolist()
    place = {columns["tile_id"][i]: n for n, i in enumerate(kept)}

    def column(name: str) -> Floats:
        values = columns[name]
        return np.array([np.nan if values[i] is None else values[i] for i in kept], dtype=np.float64)

    totals: dict[str, int] = {}
    seen: dict[str, Floats] = {}
    for finding in findings:
        totals[finding.label] = totals.get(finding.label, 0) + 1
        counts = seen.setdefault(finding.label, np.zeros(len(kept)))
        for tile_id in finding.tile_ids:
            if tile_id in place:
                counts[place[tile_id]] += 1
    return Evidence(
        p=p[kept],
        cellularity=column("cellularity"),
        focus=column("focus"),
        detailed=np.array([columns["status"][i] in ("detailed", "detail_failed") for i in kept], dtype=np.bool_),
        findings=totals,
        seen=seen,
        abnormal=frozenset(finding.label for finding in findings if finding.abnormal),
        image=None if image is None else image[kept],
    )


def verdict_feature_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Names of `verdict_features`, in order."""
    return (
        *(f"logit_top{k}" for k in TOP),
        "logit_mean",
        *(f"logit_q{q * 100:g}" for q in QUANTILES),
        *(f"log_share_above_{c:g}" for c in CUTOFFS),
        "log_tiles",
        "log_findings_abnormal",
        *(f"log_findings:{label}" for label in labels),
    )


def verdict_features(evidence: Evidence, labels: Sequence[str]) -> Floats:
    """One vector for the slide, shape (len(verdict_feature_names(labels)),), all finite.

    Mean logits of the k highest tiles (all of them where there are fewer), mean logit, quantiles of logits,
    log10 of the share of tiles at or above two cutoffs (one half tile added), log10 of the number of tiles,
    log1p of merged findings.

    Raises:
        SettingError: the slide has no screened tile.
    """
    import numpy as np

    n = len(evidence.p)
    if n == 0:
        raise SettingError("a slide without a screened tile has no features.", hint="Leave the slide out.")
    logits = np.sort(logit(evidence.p))[::-1]
    tops = [logits[:k].mean() for k in TOP]
    shares = [np.log10(((evidence.p >= cutoff).sum() + 0.5) / (n + 0.5)) for cutoff in CUTOFFS]
    counts = [evidence.abnormal_findings, *(evidence.findings.get(label, 0) for label in labels)]
    return np.array(
        [*tops, logits.mean(), *np.quantile(logits, QUANTILES), *shares, np.log10(n), *np.log1p(counts)],
        dtype=np.float64,
    )


def tile_feature_names(labels: Sequence[str], image: int = 0) -> tuple[str, ...]:
    """Names of the columns of `tile_features`; ``image`` is the number of image features, 0 for none."""
    return (
        "logit",
        "cellularity",
        "cellularity_unknown",
        "log_focus",
        "focus_unknown",
        "detailed",
        *(f"log_findings:{label}" for label in labels),
        *(f"image:{i}" for i in range(image)),
    )


def tile_features(evidence: Evidence, labels: Sequence[str], *, image: int = 0) -> NDArray[np.float32]:
    """One row for each screened tile, shape (n, len(tile_feature_names(labels, image))), all finite.

    Raises:
        SettingError: ``image`` features are wanted, but the slide has none or another number of them.
    """
    import numpy as np

    unknown = [np.isnan(evidence.cellularity), np.isnan(evidence.focus)]
    none = np.zeros(len(evidence.p))
    columns = [
        logit(evidence.p),
        np.where(unknown[0], 0.0, evidence.cellularity),
        unknown[0],
        np.where(unknown[1], 0.0, np.log1p(np.maximum(evidence.focus, 0.0))),
        unknown[1],
        evidence.detailed,
        *(np.log1p(evidence.seen.get(label, none)) for label in labels),
    ]
    rows = np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)
    if not image:
        return rows
    width = 0 if evidence.image is None else evidence.image.shape[1]
    if evidence.image is None or width != image:
        raise SettingError(
            f"a slide has {width or 'no'} image features, and {image} are wanted.",
            hint="Give every slide's Evidence the image features that the head was fitted with.",
        )
    return np.concatenate([rows, evidence.image.astype(np.float32)], axis=1)


def logit(p: Floats) -> Floats:
    """Log odds after clipping as in `aggregators.pool`, so that 0 and 1 are finite; the shape of ``p``."""
    import numpy as np

    clipped = np.clip(p, CLIP, 1.0 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)
