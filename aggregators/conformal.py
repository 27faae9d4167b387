"""Thresholds with a finite-sample guarantee: how often an abnormal slide is called normal, and the reverse.

Conformal risk control (Angelopoulos, Bates, Fisch, Lei, Schuster, arXiv 2208.02814): with n calibration cases
exchangeable with the next one and a loss in 0..1 that falls with the threshold, any threshold whose empirical risk
R satisfies (n / (n + 1)) R + 1 / (n + 1) <= alpha has an expected risk on the next case of at most alpha. The
expectation is over calibration cohorts and the next case; a single cohort may do somewhat better or worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wsi_chat.errors import SettingError

# 1 / 0.05 - 1 must be 19 and not 20 for want of the last bit
_EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Band:
    """Scores below ``low`` are normal, at or above ``high`` abnormal, and those between indeterminate.

    Where both rates can be kept by one threshold, ``low == high`` and nothing is indeterminate.
    """

    low: float
    high: float

    def call(self, score: float) -> str:
        """``normal``, ``indeterminate`` or ``abnormal``."""
        return "abnormal" if score >= self.high else "normal" if score < self.low else "indeterminate"


def needed(rate: float) -> int:
    """The fewest calibration cases for which a rate can be promised: 19 for 0.05, 99 for 0.01.

    Raises:
        SettingError: the rate is not above 0 and below 1.
    """
    if not 0.0 < rate < 1.0:
        raise SettingError(f"the rate is {rate}.", hint="Set it above 0 and below 1, e.g. 0.05.")
    return max(1, math.ceil(1.0 / rate - 1.0 - _EPS))


def allowed(rate: float, n: int) -> int:
    """How many of n calibration cases may be wrong: the most m with (m + 1) / (n + 1) <= rate."""
    return math.floor(rate * (n + 1) - 1.0 + _EPS)


def miss_threshold(positives: ArrayLike, rate: float) -> float:
    """The highest threshold at which the expected rate of positives below it is at most ``rate``.

    Args:
        positives: (n,) scores of abnormal calibration cases; a case is missed where its score is below.

    Raises:
        SettingError: n is below ``needed(rate)``; the message names both.
    """

    scores = np.sort(np.asarray(positives, dtype=np.float64))
    if len(scores) < needed(rate):
        raise SettingError(
            f"a miss rate of {rate:g} needs {needed(rate)} abnormal patients to set the threshold on, and there are"
            f" {len(scores)}.",
            hint=f"Add {needed(rate) - len(scores)} or allow a higher rate.",
        )
    return float(scores[allowed(rate, len(scores))])


def alarm_threshold(negatives: ArrayLike, rate: float) -> float:
    """The lowest threshold at which the expected rate of negatives at or above it is at most ``rate``.

    It lies just above a score, since a score at the threshold is an alarm.

    Raises:
        SettingError: too few cases; the message names how many are needed.
    """

    scores = np.sort(np.asarray(negatives, dtype=np.float64))[::-1]
    if len(scores) < needed(rate):
        raise SettingError(
            f"a false-alarm rate of {rate:g} needs {needed(rate)} normal patients to set the threshold on, and there"
            f" are {len(scores)}.",
            hint=f"Add {needed(rate) - len(scores)} or allow a higher rate.",
        )
    return float(np.nextafter(scores[allowed(rate, len(scores))], np.inf))


def band(
    positives: ArrayLike, negatives: ArrayLike, *, miss_rate: float, false_alarm_rate: float | None = None
) -> Band:
    """The thresholds for both rates; without ``false_alarm_rate`` one threshold, and no slide is indeterminate.

    Where the false-alarm threshold is not above that of misses, the latter alone keeps both rates.
    """
    low = miss_threshold(positives, miss_rate)
    if false_alarm_rate is None:
        return Band(low, low)
    return Band(low, max(low, alarm_threshold(negatives, false_alarm_rate)))


def per_patient(
    scores: Sequence[float], positive: Sequence[bool], patients: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The lowest score of each patient's abnormal slides and the highest of each one's normal slides, sorted.

    Slides of one patient are not independent; patients are the cases. A patient is missed when any abnormal slide
    is, and raises a false alarm when any normal slide does, so the rates hold for slides too.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for score, truth, patient in zip(scores, positive, patients, strict=True):
        if truth:
            low[patient] = min(score, low.get(patient, math.inf))
        else:
            high[patient] = max(score, high.get(patient, -math.inf))
    return tuple(sorted(low.values())), tuple(sorted(high.values()))
