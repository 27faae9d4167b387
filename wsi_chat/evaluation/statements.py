"""What a report sentence states: category, abnormal or not, organisms; and how far two texts agree in it.

Names of classes are those of the packaged reporting systems. A mention is negated by a word such as 'no' before it
in the same sentence. What a text does not state is not taken as its opposite.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from wsi_chat.evaluation.recognition import class_names
from wsi_chat.evaluation.resampling import RESAMPLES, Estimate, estimate
from wsi_chat.evaluation.text import TextPair
from wsi_chat.schema import Record
from wsi_chat.terminology import load_system, specimens

_SENTENCE = re.compile(r"(?<=[.;!?])\s+|\b(?:but|however|although|whereas)\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence|negative for|free of|neither|nor|never|none|lack(?:s|ing)?)\b", re.IGNORECASE
)
_NILM = re.compile(
    r"negative for intraepithelial lesion|\bnilm\b|\bno malignan\w+|negative for malignan\w+|within normal limits",
    re.IGNORECASE,
)
_ABNORMAL = re.compile(r"\b(?:abnormal|atypical|malignant|suspicious)\b(?: \w+)? cells?|\babnormalit(?:y|ies)\b", re.I)
_YES_NO = re.compile(r"\A\s*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """``category``: code of the gravest abnormal class, ``negative``, or empty. ``organisms``: codes asserted."""

    category: str
    abnormal: bool | None
    organisms: frozenset[str]


class FieldScores(Record):
    """Agreement with the reference, over the rows whose reference states the field (``rows`` of each).

    ``organisms``: the same set named, over rows where either names one.
    """

    category: Estimate
    category_rows: int
    negation: Estimate
    negation_rows: int
    organisms: Estimate
    organism_rows: int


@cache
def _classes() -> dict[str, tuple[bool, str, int]]:
    """code -> abnormal, axis, severity, from the first system that has it; cervix before the others."""
    known: dict[str, tuple[bool, str, int]] = {}
    for system in (load_system("cervix"), *specimens()):
        for label in system.labels:
            known.setdefault(label.code, (label.abnormal, label.axis, system.severity(label.code)))
    return known


@cache
def _mention() -> re.Pattern[str]:
    classes = _classes()
    wanted = [
        name
        for name, code in class_names().items()
        if code in classes and len(name) > 2 and (classes[code][0] or classes[code][1] == "organism")
    ]
    return re.compile(r"\b(?:" + "|".join(re.escape(n) for n in sorted(wanted, key=len, reverse=True)) + r")\b", re.I)


def stated(text: str) -> Statement:
    """What a text states."""
    classes, names = _classes(), class_names()
    graver: dict[str, int] = {}
    organisms: set[str] = set()
    abnormal: bool | None = None
    negative = False
    for sentence in _SENTENCE.split(text):
        if _NILM.search(sentence):
            negative = True
            sentence = _NILM.sub(" ", sentence)
        for found in _mention().finditer(sentence):
            denied = _NEGATION.search(sentence, 0, found.start()) is not None
            code = names[" ".join(found.group().casefold().split())]
            is_abnormal, axis, severity = classes[code]
            if axis == "organism":
                organisms |= set() if denied else {code}
            elif is_abnormal and not denied:
                graver[code] = severity
        for found in _ABNORMAL.finditer(sentence):
            denied = _NEGATION.search(sentence, 0, found.start()) is not None
            negative |= denied
            abnormal = True if not denied else abnormal
    if graver:
        category, abnormal = max(sorted(graver), key=lambda code: graver[code]), True
    else:
        category = "negative" if negative and not abnormal else ""
        abnormal = True if abnormal else (False if negative else None)
    if abnormal is None and (predicted := _YES_NO.match(text)) and len(text.split()) == 1:
        abnormal = predicted[1].lower() == "yes"
    return Statement(category, abnormal, frozenset(organisms))


def score_fields(pairs: Sequence[TextPair], *, resamples: int = RESAMPLES, seed: int = 0) -> FieldScores:
    """Agreement of answers with their references in what they state."""

    read = [(pair.image, stated(pair.predicted), stated(pair.truth)) for pair in pairs]

    def share(rows: Sequence[tuple[str, bool]]) -> Estimate:
        values = np.asarray([[float(good), 1.0] for _, good in rows]).reshape(-1, 2)
        return estimate([i for i, _ in rows], values, lambda s: s[:, 0] / s[:, 1], resamples=resamples, seed=seed)

    category = [(image, a.category == b.category) for image, a, b in read if b.category]
    negation = [(image, a.abnormal == b.abnormal) for image, a, b in read if b.abnormal is not None]
    organisms = [(image, a.organisms == b.organisms) for image, a, b in read if a.organisms or b.organisms]
    return FieldScores(
        category=share(category),
        category_rows=len(category),
        negation=share(negation),
        negation_rows=len(negation),
        organisms=share(organisms),
        organism_rows=len(organisms),
    )
