"""The category of a slide: the gravest one with enough merged findings on each axis, only on an abnormal slide.

Boxes are hints, so they never make a slide abnormal by themselves and a category needs ``min_findings`` of
them. Where no category has that support none is given, and the reason says what was seen instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from wsi_chat.schema import Finding

if TYPE_CHECKING:
    from wsi_chat.terminology import Category, System


class CategoryCall(NamedTuple):
    """A category and why. ``code`` joins both axes with ``+`` (``hsil+agc``), the squamous first.

    ``supporting`` holds the ids of the findings behind it.
    """

    code: str | None
    name: str | None
    reason: str
    supporting: tuple[str, ...] = ()


def call_category(findings: Sequence[Finding], system: System, *, status: str, sampled: bool = False) -> CategoryCall:
    """The category that the slide's verdict and its merged findings support.

    Abnormal slide: on each axis the category of highest order with at least ``min_findings`` findings of its
    labels. Normal slide: the system's negative category with its organisms, unless only a sample of the slide
    was screened, since that category speaks for the whole specimen. Unsatisfactory slide: the system's
    inadequate category where it has one.

    Args:
        status: of the slide's verdict.
        sampled: whether fewer tiles were selected than the foreground holds (``--limit``).
    """
    if system.kind == "counts":
        return CategoryCall(None, None, "Cells were counted; categories do not apply.")
    if system.kind == "generic":
        return CategoryCall(None, None, "The specimen type was not given, so no category is named.")
    if status == "abnormal":
        return _abnormal(findings, system)
    if status == "normal":
        return _negative(findings, system, sampled=sampled)
    if status == "unsatisfactory" and system.inadequate_category is not None:
        category = system.category(system.inadequate_category)
        return CategoryCall(category.code, category.name, "No cells were found on the slide.")
    return CategoryCall(None, None, f"The slide is {status}, so no category is given.")


def _abnormal(findings: Sequence[Finding], system: System) -> CategoryCall:
    candidates = [category for category in system.categories if category.abnormal and category.from_labels]
    if not candidates:
        return CategoryCall(None, None, f"No class that the model names maps to a category of {system.name}.")
    chosen: list[tuple[Category, list[Finding]]] = []
    for axis in dict.fromkeys(category.axis for category in candidates):
        graded = sorted((c for c in candidates if c.axis == axis), key=lambda c: -c.order)
        for category in graded:
            support = [finding for finding in findings if finding.label in category.from_labels]
            if len(support) >= category.min_findings:
                chosen.append((category, support))
                break
    if not chosen:
        return CategoryCall(None, None, _unsupported(findings, candidates, system))
    parts = [
        f"{category.name}: {len(support)} finding{'s' if len(support) > 1 else ''} (at least {category.min_findings}"
        " needed)"
        for category, support in chosen
    ]
    ids = sorted({finding.id for _, support in chosen for finding in support})
    return CategoryCall(
        "+".join(category.code for category, _ in chosen),
        "; ".join(category.name for category, _ in chosen),
        f"Gravest category with enough findings on its axis. {'; '.join(parts)}.",
        tuple(ids),
    )


def _unsupported(findings: Sequence[Finding], candidates: Sequence[Category], system: System) -> str:
    abnormal = [finding for finding in findings if finding.abnormal]
    if not abnormal:
        return "No abnormal cell was located in the detailed tiles, so no category has support."
    seen = []
    for label in system.labels:
        n = sum(finding.label == label.code for finding in abnormal)
        needed = [c.min_findings for c in candidates if label.code in c.from_labels]
        if n:
            seen.append(f"{label.name} {n}" + (f" of {min(needed)} needed" if needed else " (in no category)"))
    return f"No category has enough findings: {', '.join(seen)}."


def _negative(findings: Sequence[Finding], system: System, *, sampled: bool) -> CategoryCall:
    if system.negative_category is None:
        return CategoryCall(None, None, f"A screen alone gives no category of {system.name}.")
    category = system.category(system.negative_category)
    if sampled:
        reason = f"Only a sample of the slide was screened, and {category.name} speaks for the whole specimen."
        return CategoryCall(None, None, reason)
    organisms = []
    supporting: list[str] = []
    for label in system.labels:
        ids = [finding.id for finding in findings if finding.label == label.code]
        if label.axis == "organism" and ids:
            organisms.append(f"{label.name} ({len(ids)})")
            supporting += ids
    reason = "The slide score is below the threshold, and adequacy was not assessed."
    if organisms:
        reason += f" Candidate organisms: {', '.join(organisms)}."
    return CategoryCall(category.code, category.name, reason, tuple(sorted(supporting)))
