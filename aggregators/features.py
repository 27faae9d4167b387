"""What a fitted head sees of a slide: a vector for the whole slide, or one row for each screened tile.

Both are functions of the same evidence, whether it comes from tile verdicts in memory or from a run folder, and
neither depends on the order of the tiles. Tiles without a screening answer are no rows: coverage is judged apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregators.attention import top_rows, top_tiles
from aggregators.pooling import CLIP
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.schema import Finding, TileVerdict

Floats = NDArray[np.float64]

VERDICT_FEATURES = "verdict-1"
TILE_FEATURES = "tile-1"
TOP = (1, 3, 10, 30)
QUANTILES = (0.5, 0.9, 0.99)
CUTOFFS = (0.5, 0.9)
MISSING = 0.1
"""Share of the tiles that may be without image features; with more of them a slide is not read as if it had them."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """The model's own features of tiles, read from where they are kept only for the tiles that are wanted.

    ``width`` numbers of a ``kind`` for each tile, as ``model`` saw it. ``read`` takes (m,) tile indices and gives (m,
    width), rows of NaN for tiles without features. ``tiles`` are the indices of the n tiles of an `Evidence`.
    """

    width: int
    kind: str
    model: str
    read: Callable[[NDArray[np.intp]], NDArray[np.float32]]
    tiles: Sequence[int] = ()

    def rows(self, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
        """(m, width) features of the tiles at these places among the n."""

        return self.read(np.asarray(self.tiles, dtype=np.intp)[chosen])


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a slide's n screened tiles, in any order, and its merged findings.

    ``p`` (n,) probabilities of the screen question's positive option; ``cellularity`` (n,) 0..1 and ``focus``
    (n,) variance of the Laplacian, NaN where unknown; ``detailed`` (n,) whether cells were asked for;
    ``findings`` label -> merged findings of the slide; ``seen`` label -> (n,) findings that lie in each tile;
    ``abnormal`` the labels that count as abnormal; ``image`` the model's own image features, or None.
    """

    p: Floats
    cellularity: Floats
    focus: Floats
    detailed: NDArray[np.bool_]
    findings: Mapping[str, int]
    seen: Mapping[str, Floats]
    abnormal: frozenset[str]
    image: ImageFeatures | None = None

    @property
    def abnormal_findings(self) -> int:
        """Merged findings of abnormal classes, each cell once."""
        return sum(n for label, n in self.findings.items() if label in self.abnormal)


def evidence_of(
    tile_verdicts: Iterable[TileVerdict], findings: Sequence[Finding], *, image: ImageFeatures | None = None
) -> Evidence:
    """Evidence from the verdicts of a slide's tiles, its merged findings and, where there are any, image features."""
    rows = [verdict for verdict in tile_verdicts if verdict.p_screen is not None]
    columns: dict[str, Sequence[Any]] = {
        "tile_id": [row.tile.id for row in rows],
        "p_screen": [row.p_screen for row in rows],
        "cellularity": [row.tile.cellularity for row in rows],
        "focus": [row.focus for row in rows],
        "status": [row.status for row in rows],
    }
    columns["index"] = [row.tile.index for row in rows]
    return evidence_from_columns(columns, findings, image=image)


def evidence_from_columns(
    columns: Mapping[str, Sequence[Any]], findings: Sequence[Finding], *, image: ImageFeatures | None = None
) -> Evidence:
    """Evidence from the columns ``tile_id, p_screen, cellularity, focus, status`` of tiles.parquet.

    Args:
        columns: lists of one length, None where unknown; rows without ``p_screen`` are left out. Image features also
            need ``index``.
        image: of the slide's tiles, by index; or None.
    """

    p = np.array([np.nan if value is None else value for value in columns["p_screen"]], dtype=np.float64)
    rows: list[int] = np.flatnonzero(~np.isnan(p)).tolist()
    place = {columns["tile_id"][i]: n for n, i in enumerate(rows)}

    def column(name: str) -> Floats:
        values = columns[name]
        return np.array([np.nan if values[i] is None else values[i] for i in rows], dtype=np.float64)

    totals: dict[str, int] = {}
    seen: dict[str, Floats] = {}
    for finding in findings:
        totals[finding.label] = totals.get(finding.label, 0) + 1
        counts = seen.setdefault(finding.label, np.zeros(len(rows)))
        for tile_id in finding.tile_ids:
            if tile_id in place:
                counts[place[tile_id]] += 1
    return Evidence(
        p=p[rows],
        cellularity=column("cellularity"),
        focus=column("focus"),
        detailed=np.array([columns["status"][i] in ("detailed", "detail_failed") for i in rows], dtype=np.bool_),
        findings=totals,
        seen=seen,
        abnormal=frozenset(finding.label for finding in findings if finding.abnormal),
        image=None if image is None else replace(image, tiles=[columns["index"][i] for i in rows]),
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
        *(("image_unknown",) if image else ()),
        *(f"image:{i}" for i in range(image)),
    )


def tile_features(evidence: Evidence, labels: Sequence[str], *, image: int = 0) -> NDArray[np.float32]:
    """One row for each screened tile, shape (n, len(tile_feature_names(labels, image))).

    With image features these are the rows of `attention.top_tiles` alone, in its order, so that no more are read than
    are looked at; a tile without them has NaN there and ``image_unknown`` 1. All else is finite.

    Raises:
        SettingError: ``image`` features are wanted, but the slide has none or another number of them.
        OutputError: too few of the tiles have them (`MISSING`), or they cannot be read.
    """

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
    width = 0 if evidence.image is None else evidence.image.width
    if evidence.image is None or width != image:
        raise SettingError(
            f"a slide has {width or 'no'} image features, and {image} are wanted.",
            hint="Analyze it with --features and the model that the head was fitted with.",
        )
    chosen = _candidates(rows)
    found = evidence.image.rows(chosen)
    missing = np.logical_not(np.isfinite(found).all(axis=1, keepdims=True))
    if missing.sum() > MISSING * len(chosen):
        raise OutputError(
            f"{int(missing.sum())} of the {len(chosen)} highest tiles of a slide have no image features.",
            hint="Analyze it again with --features: known answers are not asked again.",
        )
    found = np.where(missing, np.float32(np.nan), found)
    return top_tiles(np.concatenate([rows[chosen], missing.astype(np.float32), found], axis=1))


def _candidates(rows: NDArray[np.float32]) -> NDArray[np.intp]:
    """The rows that `attention.top_tiles` takes, and all that are the same as the last of them."""

    if len(rows) == 0:
        return np.arange(0)
    chosen = top_rows(rows)
    found: NDArray[np.intp] = np.union1d(chosen, np.flatnonzero((rows == rows[chosen[-1]]).all(axis=1)))
    return found


def logit(p: Floats) -> Floats:
    """Log odds after clipping as in `aggregators.pooling`, so that 0 and 1 are finite; the shape of ``p``."""

    clipped = np.clip(p, CLIP, 1.0 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)
