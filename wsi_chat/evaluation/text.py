"""Free text against its reference: BLEU-1..4, ROUGE-L, CIDEr and METEOR, each by the library in use for it.

BLEU: sacrebleu (13a tokens, lower case, no smoothing), over the whole corpus. ROUGE-L: rouge-score, F-measure, no
stemming. CIDEr: pycocoevalcap (CIDEr-D as there, 0..10). METEOR: nltk, exact and stem stages: the synonym stage needs
WordNet, which no package carries, and is left out. CIDEr and METEOR see lower-case words without punctuation. ROUGE-L,
CIDEr and METEOR are means over rows; an answer that failed counts as empty text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_chat.errors import SettingError
from wsi_chat.evaluation.resampling import RESAMPLES, Estimate, estimate
from wsi_chat.schema import Record

ORDERS = 4
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TextPair:
    """An answer and its reference."""

    image: str
    predicted: str
    truth: str


class TextScores(Record):
    """0..1 but for CIDEr (0..10). ``bleu`` holds BLEU-1 to BLEU-4; None where no text has n words.

    ``exact``: share of answers equal to the reference but for case and space. ``cider`` is None with fewer than
    two rows: it weighs words by how many references hold them.
    """

    rows: int
    empty: int
    exact: Estimate
    bleu: tuple[Estimate, ...]
    rouge_l: Estimate
    cider: Estimate
    meteor: Estimate


def score_text(pairs: Sequence[TextPair], *, resamples: int = RESAMPLES, seed: int = 0) -> TextScores:
    """Score answers against one reference each. Raises SettingError where a library is not installed."""

    groups = [pair.image for pair in pairs]

    def mean(values: Sequence[float]) -> Estimate:
        rows = np.asarray([values, np.ones(len(values))], dtype=float).T.reshape(-1, 2)
        return estimate(groups, rows, lambda s: s[:, 0] / s[:, 1], resamples=resamples, seed=seed)

    try:
        return TextScores(
            rows=len(pairs),
            empty=sum(not pair.predicted.strip() for pair in pairs),
            exact=mean([float(_plain(pair.predicted) == _plain(pair.truth)) for pair in pairs]),
            bleu=_bleu(pairs, groups, resamples=resamples, seed=seed),
            rouge_l=mean(_rouge(pairs)),
            cider=mean(_cider(pairs)) if len(pairs) > 1 else Estimate(value=None),
            meteor=mean(_meteor(pairs)),
        )
    except ImportError as error:
        raise SettingError(
            f"scores of text need the package {error.name}", hint="pip install 'wsi-chat[evaluate]'"
        ) from error


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _WORD.findall(text.lower())


def _bleu(pairs: Sequence[TextPair], groups: Sequence[str], *, resamples: int, seed: int) -> tuple[Estimate, ...]:
    from sacrebleu.metrics.bleu import BLEU

    metric: Any = BLEU(lowercase=True, effective_order=True)
    rows = np.zeros((len(pairs), 2 * ORDERS + 2))
    for n, pair in enumerate(pairs):
        found = metric.sentence_score(pair.predicted, [pair.truth])
        rows[n] = [*found.counts, *found.totals, found.sys_len, found.ref_len]
    made = []
    for order in range(1, ORDERS + 1):
        sums = rows.sum(axis=0)
        if not len(pairs) or sums[ORDERS + order - 1] == 0:
            made.append(Estimate(value=None))
            continue
        whole = metric.compute_bleu(
            correct=[int(value) for value in sums[:ORDERS]],
            total=[int(value) for value in sums[ORDERS : 2 * ORDERS]],
            sys_len=int(sums[-2]),
            ref_len=int(sums[-1]),
            smooth_method="none",
            max_ngram_order=order,
        )
        drawn = estimate(groups, rows, _of_order(order), resamples=resamples, seed=seed)
        made.append(Estimate(value=whole.score / 100, interval=drawn.interval))
    return tuple(made)


def _of_order(order: int) -> Any:
    """BLEU of an order from summed counts, for the resamples."""

    def bleu(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        correct, total = sums[:, :order], sums[:, ORDERS : ORDERS + order]
        brevity = np.exp(np.minimum(0.0, 1 - sums[:, -1] / sums[:, -2]))
        logs = np.log(correct / total).mean(axis=1)
        return np.where((correct > 0).all(axis=1), brevity * np.exp(logs), 0.0)

    return bleu


def _rouge(pairs: Sequence[TextPair]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer(["rougeL"], use_stemmer=False)
    return [float(scorer.score(pair.truth, pair.predicted)["rougeL"].fmeasure) for pair in pairs]


def _cider(pairs: Sequence[TextPair]) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    truth = {n: [" ".join(words(pair.truth))] for n, pair in enumerate(pairs)}
    predicted = {n: [" ".join(words(pair.predicted))] for n, pair in enumerate(pairs)}
    if not any(text for (text,) in truth.values()):
        return [0.0] * len(pairs)
    _, each = Cider().compute_score(truth, predicted)
    return [float(value) for value in each]


class _NoSynonyms:
    """Stands for WordNet in nltk's METEOR: knows no synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _meteor(pairs: Sequence[TextPair]) -> list[float]:
    from nltk.translate.meteor_score import single_meteor_score

    scores = []
    for pair in pairs:
        truth, predicted = words(pair.truth), words(pair.predicted)
        both = bool(truth and predicted)
        scores.append(float(single_meteor_score(truth, predicted, wordnet=_NoSynonyms())) if both else 0.0)
    return scores
