"""How well a checkpoint knows types of white blood cell: on whole photographs, and on cells cut out alone.

Donors are not known in this data set, so its splits are by picture and figures from it are optimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.evaluate import Speaker
from wsi_chat.training.embedded.fields import Sample
from wsi_chat.training.embedded.pbc import Pbc
from wsi_chat.training.embedded.questions import refer

FIVE = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
"""Types that the fields hold."""


def confusion(speaker: Speaker, samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """True type -> what the region question about the (only) cell answered -> how often."""
    rng = np.random.default_rng(4)
    asked = [refer(sample, 0, rng) for sample in samples]
    answers = speaker.answer([sample.image for sample in samples], [question.prompt for question in asked], limit=16)
    table: dict[str, dict[str, int]] = {}
    for sample, answer in zip(samples, answers, strict=True):
        row = table.setdefault(sample.labels[0], {})
        name = answer.strip()
        row[name] = row.get(name, 0) + 1
    return table


def singles(speaker: Speaker, pbc: Pbc, per_type: int = 120) -> dict[str, Any]:
    """Recall of each type of nucleated cell on cut-outs of the split, their mean, and the confusions."""
    samples = [sample for kind in wording.NUCLEATED for sample in pbc.singles(kind, per_type)]
    table = confusion(speaker, samples)
    recall = {name: row.get(name, 0) / sum(row.values()) for name, row in table.items()}
    return {"balanced_accuracy": float(np.mean(list(recall.values()))), "by_type": recall, "confusion": table}


def in_fields(speaker: Speaker, samples: Sequence[Sample]) -> dict[str, Any]:
    """Balanced accuracy of the five types, asked about the annotated cell in its own field."""
    rng = np.random.default_rng(6)
    asked = [(s, i) for s in samples for i, label in enumerate(s.labels) if label in FIVE]
    questions = [refer(sample, i, rng) for sample, i in asked]
    answers = speaker.answer([s.image for s, _ in asked], [q.prompt for q in questions], limit=16)
    right: dict[str, list[bool]] = {}
    for (sample, i), answer in zip(asked, answers, strict=True):
        right.setdefault(sample.labels[i], []).append(answer.strip() == sample.labels[i])
    shares = {name: float(np.mean(values)) for name, values in right.items()}
    return {"balanced_accuracy": float(np.mean(list(shares.values()))), "by_type": shares, "cells": len(asked)}
