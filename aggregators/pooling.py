"""Slide scores from the probabilities of tiles, without anything fitted.

Every pool is symmetric in its tiles, never falls when a tile's probability rises, and gives None for no tiles
at all. None of the scores is calibrated: `POOLS` gives each one together with the words that say so.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from wsi_chat.errors import SettingError
from wsi_chat.schema import Remark

# Beyond this a probability from a softmax says how far the network has saturated, not how sure one may be; in
# logits it is 9.2, so that a single saturated tile cannot outvote nine confidently normal ones among ten.
CLIP = 1e-4

Scored = tuple[float | None, Remark]
Pool = Callable[..., Scored]


def topk_mean_logit(p: Iterable[float], k: int = 10) -> float | None:
    """The mean logit of the k highest probabilities, turned back into a probability.

    Max pooling rings on every large slide (at a false-alarm rate of 1 % per tile, 500 tiles ring with
    1 - 0.99**500 = 99.3 %); k tiles must agree here. With fewer than k tiles all of them count. Probabilities
    are clipped to ``CLIP .. 1 - CLIP`` first, so that 0 and 1 have finite logits.

    Args:
        p: probabilities of the screen question's positive option, one per screened tile, 0..1.
        k: how many of the highest to average, at least 1.

    Returns:
        The score, between the lowest and the highest clipped probability; None without tiles.

    Raises:
        SettingError: ``k`` is below 1, or a probability lies outside 0..1.
    """
    if k < 1:
        raise SettingError(f"k is {k}.", hint="Average at least one tile: set k to 1 or more.")
    top = heapq.nlargest(k, _checked(p))
    if not top:
        return None
    return _expit(math.fsum(_logit(value) for value in top) / len(top))


def mean(p: Iterable[float]) -> float | None:
    """The mean probability; dilutes the few abnormal tiles of a large slide. None without tiles."""
    values = _checked(p)
    return min(1.0, math.fsum(values) / len(values)) if values else None


def maximum(p: Iterable[float]) -> float | None:
    """The highest probability; rings on large slides (see `topk_mean_logit`). None without tiles."""
    return max(_checked(p), default=None)


def fraction_above(p: Iterable[float], cutoff: float = 0.5) -> float | None:
    """The fraction of tiles at or above ``cutoff``. None without tiles.

    Raises:
        SettingError: ``cutoff`` or a probability lies outside 0..1.
    """
    if not 0.0 <= cutoff <= 1.0:
        raise SettingError(f"cutoff is {cutoff}.", hint="Set it between 0 and 1.")
    values = _checked(p)
    return sum(value >= cutoff for value in values) / len(values) if values else None


def noisy_or_corrected(p: Iterable[float], false_alarm: float = 0.01, spread: float = 2.0) -> float | None:
    """The probability that any tile is truly positive, after the alarms that a normal slide rings are taken off.

    Plain noisy-OR is 1 - prod(1 - p_i). On a normal slide of n tiles with false-alarm rate f, the alarms
    S = sum(p_i) have mean n f, and, whatever the distribution of p within 0..1, a variance of at most
    n f (1 - f) (that of all-or-none answers). So up to F = n f + spread * sqrt(n f (1 - f)) alarms are expected
    to be false, which is the share F / S of those seen (the plug-in false discovery proportion of Storey,
    J R Stat Soc B 2002;64:479), and each tile keeps the rest:

        p'_i = p_i * max(0, 1 - F / S)        score = 1 - prod(1 - p'_i)

    With f = 0 this is plain noisy-OR. Taking f off tile by tile, p' = max(0, (p - f) / (1 - f)), is not enough:
    it silences tiles that all sit at exactly f, but not a hundredth of tiles that answer 1.

    Args:
        p: probabilities of the positive option, one per screened tile, 0..1.
        false_alarm: mean p over tiles of normal slides, 0 <= f < 1. Measure it for the model in use.
        spread: how many standard deviations of chance alarms are allowed for; 2 keeps about 97 % of normal
            slides silent where answers are all or none, more where they are graded.

    Returns:
        The score, 0..1, at most the plain noisy-OR; None without tiles.

    Raises:
        SettingError: a setting or a probability is out of range.
    """
    if not 0.0 <= false_alarm < 1.0:
        raise SettingError(f"false_alarm is {false_alarm}.", hint="Set it to a rate from 0 to below 1.")
    if not 0.0 <= spread < math.inf:
        raise SettingError(f"spread is {spread}.", hint="Set it to 0 or more.")
    values = _checked(p)
    if not values:
        return None
    n, alarms = len(values), math.fsum(values)
    expected = n * false_alarm + spread * math.sqrt(n * false_alarm * (1.0 - false_alarm))
    if alarms <= expected:
        return 0.0
    share = 1.0 - expected / alarms
    remaining = [1.0 - value * share for value in values]
    if min(remaining) <= 0.0:
        return 1.0
    return -math.expm1(math.fsum(math.log(value) for value in remaining))


def findings_share(findings: int, k: int = 10) -> float:
    """The number of merged abnormal findings on a scale of 0 to below 1: n / (n + k), 0.5 at n = k.

    The count itself would be no worse a score; the scale only lets one threshold setting serve every pool. Cells
    are asked for in the detailed tiles alone, so slides are comparable only where as many were detailed.

    Raises:
        SettingError: ``k`` is below 1, or ``findings`` below 0.
    """
    if k < 1 or findings < 0:
        raise SettingError(f"{findings} findings with k {k}.", hint="Give k of 1 or more and no negative count.")
    return findings / (findings + k)


def _topk_logit(p: Sequence[float], *, k: int = 10, **_: float) -> Scored:
    n = len(p)
    kind = Remark("score.topk", k=k) if n >= k else Remark("score.topk_fewer", n=n, k=k)
    return topk_mean_logit(p, k), kind


def _mean(p: Sequence[float], **_: float) -> Scored:
    return mean(p), Remark("score.mean")


def _max(p: Sequence[float], **_: float) -> Scored:
    return maximum(p), Remark("score.max")


def _noisy_or(p: Sequence[float], *, false_alarm: float = 0.01, **_: float) -> Scored:
    return noisy_or_corrected(p, false_alarm), Remark("score.noisy_or", rate=false_alarm)


def _fraction_above(p: Sequence[float], *, cutoff: float = 0.5, **_: float) -> Scored:
    return fraction_above(p, cutoff), Remark("score.fraction_above", cutoff=cutoff)


def _findings(p: Sequence[float], *, k: int = 10, findings: int = 0, **_: float) -> Scored:
    score = findings_share(findings, k) if _checked(p) else None
    return score, Remark("score.findings", n=findings, k=k)


#: name -> function of the probabilities (and of the keywords ``k``, ``false_alarm``, ``cutoff`` and ``findings``, the
#: number of merged abnormal findings, of which each uses its own) that gives the score, None without tiles, and the
#: words for its kind.
POOLS: Mapping[str, Pool] = {
    "topk_logit": _topk_logit,
    "mean": _mean,
    "max": _max,
    "noisy_or": _noisy_or,
    "fraction_above": _fraction_above,
    "findings": _findings,
}


def find_pool(name: str) -> Pool:
    """The pool with this name.

    Raises:
        SettingError: there is none; the message lists the names.
    """
    if name not in POOLS:
        raise SettingError(f"pool {name!r} is not known.", hint=f"Choose one of: {', '.join(POOLS)}.")
    return POOLS[name]


def _checked(p: Iterable[float]) -> list[float]:
    values = [float(value) for value in p]
    for value in values:
        if not 0.0 <= value <= 1.0:  # also true of NaN
            raise SettingError(f"a tile's probability is {value}.", hint="Give probabilities from 0 to 1.")
    return values


def _logit(p: float) -> float:
    p = min(1.0 - CLIP, max(CLIP, p))
    return math.log(p) - math.log1p(-p)


def _expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))
