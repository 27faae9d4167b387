"""Splits that keep every patient on one side, with each class on both; refused with numbers where that cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_chat.errors import SettingError

Indices = NDArray[np.intp]


class Fold(NamedTuple):
    """Indices of the slides to fit on and of those held out."""

    train: Indices
    test: Indices


def patients_of_class(y: NDArray[np.intp], patients: Sequence[str], classes: int) -> list[int]:
    """For each class, how many patients have a slide of it."""
    return [len({patient for label, patient in zip(y, patients, strict=True) if label == c}) for c in range(classes)]


def check_patients(train: Iterable[str], test: Iterable[str], *, where: str) -> None:
    """Refuse a patient on both sides.

    Raises:
        SettingError: names the patients (five at most) and ``where`` it happened.
    """
    both = sorted(set(train) & set(test))
    if both:
        named = ", ".join(both[:5]) + (f" and {len(both) - 5} more" if len(both) > 5 else "")
        raise SettingError(
            f"{where}: {len(both)} patient{'s are' if len(both) > 1 else ' is'} on both sides: {named}.",
            hint="Keep all slides of a patient on one side.",
        )


def grouped_folds(y: NDArray[np.intp], patients: Sequence[str], *, k: int, seed: int) -> list[Fold]:
    """k folds, stratified by class and grouped by patient.

    Raises:
        SettingError: a class has fewer than k patients, or a training side would lack a class.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = int(y.max()) + 1
    fewest = min(patients_of_class(y, patients, count))
    if fewest < k:
        raise SettingError(
            f"{k} folds need {k} patients of each class, and one class has {fewest}.",
            hint="Add patients of that class, or use fewer folds.",
        )
    groups = np.asarray(patients)
    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    folds = [Fold(train, test) for train, test in splitter.split(np.zeros(len(y)), y, groups)]
    for number, fold in enumerate(folds, start=1):
        check_patients(groups[fold.train], groups[fold.test], where=f"fold {number}")
        if len(np.unique(y[fold.train])) < count:
            raise SettingError(
                f"the training side of fold {number} of {k} lacks a class.",
                hint="One patient holds most slides of a class: add patients of it.",
            )
    return folds


def hold_out(y: NDArray[np.intp], patients: Sequence[str], *, positives: int, negatives: int, seed: int) -> Fold:
    """Hold out whole patients at random until ``positives`` with an abnormal and ``negatives`` with a normal slide.

    Patients are drawn without a look at their scores, so those held out stay exchangeable with new ones.
    """

    truth: dict[str, set[bool]] = {}
    for label, patient in zip(y, patients, strict=True):
        truth.setdefault(patient, set()).add(bool(label > 0))
    names = sorted(truth)
    want = {True: positives, False: negatives}
    drawn = set()
    for i in np.random.default_rng([seed, 77]).permutation(len(names)):
        kinds = truth[names[i]]
        # a patient with slides of both kinds goes where either kind still lacks
        if any(want[kind] > 0 for kind in kinds):
            drawn.add(names[i])
            for kind in kinds:
                want[kind] -= 1
    inside = np.array([patient in drawn for patient in patients], dtype=bool)
    return Fold(np.flatnonzero(~inside), np.flatnonzero(inside))
