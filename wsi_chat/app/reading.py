"""What several reviewers' decisions come to: each cell's reviewed class, and how far two names agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wsi_chat.app.review import SLIDE, Decision, ReviewStore
from wsi_chat.schema import Box, Finding

Outcome = Literal["unreviewed", "accepted", "rejected", "relabelled", "drawn", "disputed"]
REJECTED = ""
SAME_CELL = 0.5
"""Two drawn boxes of one class with at least this IoU are one cell that two reviewers saw."""


@dataclass(frozen=True, slots=True)
class ReviewedCell:
    """A finding or a drawn cell after review. ``label`` is the reviewed class, None where there is none: unreviewed,
    rejected or disputed. ``said`` has each reviewer's class, empty for a rejection. ``model`` is the model's own."""

    id: str
    box: Box
    outcome: Outcome
    label: str | None
    model: str | None
    said: Mapping[str, str]
    at: str = ""


def own_label(decision: Decision, original: str) -> str:
    """The class that a decision gives a cell, empty for a rejection. ``original`` is what the cell was called."""
    if decision.action == "reject":
        return REJECTED
    return decision.label if decision.action in ("relabel", "draw") else original


def reviewed_cells(findings: Sequence[Finding], store: ReviewStore) -> list[ReviewedCell]:
    """Every finding, then every drawn cell that stands, with what all reviewers together say.

    Reviewers who agree give a cell its class. Where they do not it is disputed and has none: it is for them to settle,
    not for a vote.
    """
    by_cell: dict[str, dict[str, Decision]] = {}
    for decision in store.history():
        if decision.action in ("accept", "reject", "relabel", "draw"):
            by_cell.setdefault(decision.about, {})[decision.reviewer] = decision
    cells = [_of_finding(finding, by_cell.get(finding.id, {})) for finding in findings]
    drawn = [_of_drawn(name, first, by_cell[name]) for name, first in store.drawn().items()]
    kept: list[ReviewedCell] = []
    for cell in drawn:
        if cell.outcome == "rejected":
            continue
        twin = next((k for k in kept if k.label == cell.label and k.box.iou(cell.box) >= SAME_CELL), None)
        if twin is None:
            kept.append(cell)
        else:
            merged = {**twin.said, **cell.said}
            kept[kept.index(twin)] = ReviewedCell(
                twin.id, twin.box, "drawn", twin.label, None, merged, max(twin.at, cell.at)
            )
    return [*cells, *kept]


def _of_finding(finding: Finding, decisions: Mapping[str, Decision]) -> ReviewedCell:
    said = {name: own_label(decision, finding.label) for name, decision in decisions.items()}
    at = max((decision.at for decision in decisions.values()), default="")
    outcome: Outcome
    label: str | None = None
    if not said:
        outcome = "unreviewed"
    elif len(set(said.values())) > 1:
        outcome = "disputed"
    else:
        given = next(iter(said.values()))
        label = given or None
        outcome = "rejected" if given == REJECTED else "accepted" if given == finding.label else "relabelled"
    return ReviewedCell(finding.id, finding.box, outcome, label, finding.label, said, at)


def _of_drawn(name: str, first: Decision, decisions: Mapping[str, Decision]) -> ReviewedCell:
    assert first.box is not None
    said = {who: own_label(decision, first.label) for who, decision in decisions.items()}
    at = max(decision.at for decision in decisions.values())
    if len(set(said.values())) > 1:
        return ReviewedCell(name, first.box, "disputed", None, None, said, at)
    given = next(iter(said.values()))
    outcome: Outcome = "rejected" if given == REJECTED else "drawn"
    return ReviewedCell(name, first.box, outcome, given or None, None, said, at)


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the model's findings a reviewer has decided."""

    done: int
    of: int


def progress(findings: Iterable[Finding], decisions: Mapping[str, Decision]) -> Progress:
    ids = [finding.id for finding in findings]
    return Progress(sum(name in decisions for name in ids), len(ids))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two reviewers' classes for the findings that both decided. ``kappa`` is Cohen's; None where it is undefined: no
    finding in common, or both gave one and the same class throughout. ``apart`` are the findings they differ on."""

    first: str
    second: str
    common: int
    same: int
    kappa: float | None
    apart: tuple[str, ...]


def agreement(findings: Sequence[Finding], store: ReviewStore, first: str, second: str) -> Agreement:
    """How far two reviewers agree about the model's findings, a rejection being a class of its own.

    Cohen J. A coefficient of agreement for nominal scales. Educ Psychol Meas 1960;20:37-46.
    """
    one, two = store.by(first), store.by(second)
    common = [finding for finding in findings if finding.id in one and finding.id in two]
    a = [own_label(one[finding.id], finding.label) for finding in common]
    b = [own_label(two[finding.id], finding.label) for finding in common]
    apart = tuple(finding.id for finding, x, y in zip(common, a, b, strict=True) if x != y)
    kappa: float | None = None
    if common and len({*a, *b}) > 1:
        from sklearn.metrics import cohen_kappa_score

        kappa = float(cohen_kappa_score(a, b))
    return Agreement(first, second, len(common), len(common) - len(apart), kappa, apart)


def slide_label(store: ReviewStore) -> tuple[str | None, dict[str, str]]:
    """The class that the reviewers gave the slide, None where none did or they differ; and what each said."""
    said = {d.reviewer: d.label for d in store.history() if d.about == SLIDE and d.action == "label"}
    return (next(iter(said.values())) if len(set(said.values())) == 1 else None), said
