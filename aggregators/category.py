"""The category of a slide: the gravest one with enough merged findings on each axis, only on an abnormal slide.

Boxes are hints, so they never make a slide abnormal by themselves and a category needs ``min_findings`` of
them, at its own grade or graver (see `aggregators.support`). Where no category has that support none is given, and the
reason says what was seen instead. A graver category with findings too few for it is left open beside the one
given ("LSIL; HSIL cannot be excluded") where the system's wording allows that.

Adding a finding never lowers a category on its axis, findings of the category given never lower the confidence in
it, and the order of findings changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aggregators.support import PRECISION, Evidence, gather
from wsi_chat.remarks import together
from wsi_chat.schema import CategorySupport, Finding, Remark, TileVerdict
from wsi_chat.terminology import Category, System


class CategoryCall(NamedTuple):
    """A category and why. ``code`` joins the axes with ``+`` (``hsil+agc``), the squamous first.

    ``supporting`` holds the ids of the findings behind it, ``confidence`` the lowest of its axes' (None where it
    rests on the absence of findings), ``support`` every category that has any finding.
    """

    code: str | None
    name: Remark | None
    reason: Remark
    supporting: tuple[str, ...] = ()
    confidence: float | None = None
    confidence_kind: Remark | str = ""
    support: tuple[CategorySupport, ...] = ()


def call_category(
    findings: Sequence[Finding],
    system: System,
    *,
    status: str,
    sampled: bool = False,
    tile_verdicts: Sequence[TileVerdict] = (),
    adequacy: str = "not_assessed",
    age: int | None = None,
    precision: Mapping[str, float] | float = PRECISION,
) -> CategoryCall:
    """The category that the slide's verdict and its merged findings support.

    Abnormal slide: on each axis the category of highest order with at least ``min_findings`` findings of its
    labels or graver ones. Normal slide: the system's negative category with its organisms, unless only a sample of
    the slide was screened or the specimen was found inadequate, since that category speaks for the whole specimen.
    Either: categories of neither (endometrial cells), where the age was supplied and reaches ``min_age``.
    Unsatisfactory slide: the system's inadequate category where it has one.

    Args:
        status: of the slide's verdict.
        sampled: whether fewer tiles were selected than the foreground holds (``--limit``).
        tile_verdicts: show how often tiles agree on a finding, for the confidence.
        adequacy: status of the specimen's adequacy.
        age: of the patient in years, where the user supplied it.
        precision: of a box, by label or for all.
    """
    if system.kind == "counts":
        return CategoryCall(None, None, Remark("category.counted"))
    if system.kind == "generic":
        return CategoryCall(None, None, Remark("category.no_specimen"))
    if status in ("abnormal", "normal"):
        beside = [category for category in system.categories if _may_stand_beside(category, age)]
        extra = [
            next((entry for entry in graded if entry.enough), None)
            for graded in gather(findings, beside, system, tile_verdicts, precision=precision).values()
        ]
        others = [entry for entry in extra if entry is not None]
        if status == "normal":
            return _negative(findings, system, others, sampled=sampled, adequacy=adequacy)
        axes = gather(
            findings, [c for c in system.categories if c.abnormal], system, tile_verdicts, precision=precision
        )
        return _abnormal(findings, system, axes, others, precision)
    if status == "unsatisfactory" and system.inadequate_category is not None:
        category = system.category(system.inadequate_category)
        return CategoryCall(category.code, _name(category), Remark("category.no_cells"))
    if status == "unsatisfactory":
        return CategoryCall(None, None, Remark("category.unsatisfactory"))
    return CategoryCall(None, None, Remark("category.indeterminate"))


def _name(category: Category) -> Remark:
    return Remark("name.category", code=category.code, name=category.name)


def _system_name(system: System) -> Remark:
    return Remark("name.system", code=system.code, name=system.name)


def _may_stand_beside(category: Category, age: int | None) -> bool:
    """Whether a category that is neither negative nor abnormal may be named, from what is known of the patient."""
    if category.abnormal or not category.from_labels:
        return False
    return category.min_age is None or (age is not None and age >= category.min_age)


def _abnormal(
    findings: Sequence[Finding],
    system: System,
    axes: Mapping[str, Sequence[Evidence]],
    others: Sequence[Evidence],
    precision: Mapping[str, float] | float,
) -> CategoryCall:
    if not axes:
        return CategoryCall(None, None, Remark("category.unmapped", system=_system_name(system)))
    given = [next((entry for entry in graded if entry.enough), None) for graded in axes.values()]
    chosen = [entry for entry in given if entry is not None]
    left_open = {entry.category.code: _left_open(entry, axes[entry.category.axis]) for entry in chosen}
    rows = _rows([entry for graded in axes.values() for entry in graded], chosen, left_open)
    if not chosen:
        return CategoryCall(None, None, _unsupported(findings, system), support=rows)
    chosen += others
    parts = [_support(entry, system) for entry in chosen]
    names = [_open_name(entry.category, left_open.get(entry.category.code, ())) for entry in chosen]
    open_ = [
        Remark("category.left_open", category=_name(graver), hints=_hints(entry, axes[entry.category.axis]))
        for entry in chosen
        for graver in left_open.get(entry.category.code, ())
    ]
    lowest = min(chosen, key=lambda entry: entry.confidence)
    return CategoryCall(
        "+".join(entry.category.code for entry in chosen),
        _joined(names),
        together(Remark("category.given", parts=parts), *open_),
        tuple(sorted({finding.id for entry in chosen for finding in entry.findings})),
        lowest.confidence,
        _kind(lowest, precision),
        (*rows, *(entry.record(chosen=True) for entry in others)),
    )


def _support(entry: Evidence, system: System) -> Remark:
    """How many findings stand behind a category; by class where graver ones are among them."""
    known: dict[str, Any] = {
        "category": _name(entry.category), "n": len(entry.findings), "needed": entry.category.min_findings,
    }  # fmt: skip
    if all(finding.label in entry.category.from_labels for finding in entry.findings):
        return Remark("category.support", **known)
    counted = [(label, sum(f.label == label.code for f in entry.findings)) for label in system.labels]
    classes = [
        Remark("part.name_and_number", name=Remark("name.label", code=label.code, name=label.name), n=n)
        for label, n in counted
        if n
    ]
    return Remark("category.support_graver", classes=classes, **known)


def _left_open(entry: Evidence, graded: Sequence[Evidence]) -> tuple[Category, ...]:
    """Graver categories that the wording allows to leave open, where any finding is or may be graver."""
    hedge = entry.category.cannot_exclude
    if hedge is None or not _graver(entry, graded):
        return ()
    return tuple(other.category for other in graded if other.category.code in hedge.categories)


def _graver(entry: Evidence, graded: Sequence[Evidence]) -> list[tuple[Finding, str]]:
    """Supporting findings that were called, or by some tile were called, something graver than the category."""
    order = {label: other.category.order for other in reversed(graded) for label in other.category.from_labels}
    found = []
    for finding in entry.findings:
        called = [label for label in (finding.label, *finding.other_labels) if label in order]
        worst = max(called, key=lambda label: order[label])
        if order[worst] > entry.category.order:
            found.append((finding, worst))
    return found


def _hints(entry: Evidence, graded: Sequence[Evidence]) -> list[Remark]:
    categories = {label: other.category for other in reversed(graded) for label in other.category.from_labels}
    seen: dict[str, int] = {}
    for _, label in _graver(entry, graded):
        seen[label] = seen.get(label, 0) + 1
    by_category: dict[str, int] = {}
    for label, n in seen.items():
        by_category[categories[label].code] = by_category.get(categories[label].code, 0) + n
    named = {category.code: category for category in categories.values()}
    return [
        Remark("category.called", n=by_category[code], category=_name(named[code]))
        for code in sorted(by_category, key=lambda code: named[code].name)
    ]


def _open_name(category: Category, graver: Sequence[Category]) -> Remark:
    if not graver:
        return _name(category)
    return Remark("category.hedged", category=_name(category), graver=[_name(other) for other in graver])


def _joined(names: Sequence[Remark]) -> Remark:
    return names[0] if len(names) == 1 else Remark("category.names", parts=names)


def _kind(entry: Evidence, precision: Mapping[str, float] | float) -> Remark:
    needed, n = entry.category.min_findings, len(entry.findings)
    if isinstance(precision, Mapping) or precision != PRECISION:
        return Remark("confidence.given", needed=needed, n=n)
    return Remark("confidence.published", needed=needed, n=n)


def _rows(
    entries: Sequence[Evidence], chosen: Sequence[Evidence], left_open: Mapping[str, Sequence[Category]]
) -> tuple[CategorySupport, ...]:
    given = {entry.category.code for entry in chosen}
    open_ = {category.code for graver in left_open.values() for category in graver}
    return tuple(
        entry.record(chosen=entry.category.code in given, left_open=entry.category.code in open_)
        for entry in entries
        if entry.findings
    )


def _unsupported(findings: Sequence[Finding], system: System) -> Remark:
    abnormal = [finding for finding in findings if finding.abnormal]
    if not abnormal:
        return Remark("category.none_located")
    seen = []
    for label in system.labels:
        n = sum(finding.label == label.code for finding in abnormal)
        needed = [c.min_findings for c in system.categories if c.abnormal and label.code in c.from_labels]
        name = Remark("name.label", code=label.code, name=label.name)
        if n and needed:
            seen.append(Remark("category.few", label=name, n=n, needed=min(needed)))
        elif n:
            seen.append(Remark("category.in_none", label=name, n=n))
    return Remark("category.too_few", seen=seen)


def _negative(
    findings: Sequence[Finding], system: System, others: Sequence[Evidence], *, sampled: bool, adequacy: str
) -> CategoryCall:
    if system.negative_category is None:
        return CategoryCall(None, None, Remark("category.no_negative", system=_system_name(system)))
    category = system.category(system.negative_category)
    if sampled:
        return CategoryCall(None, None, Remark("category.sampled", category=_name(category)))
    if adequacy == "unsatisfactory":
        return CategoryCall(None, None, Remark("category.inadequate", category=_name(category)))
    organisms = []
    supporting: list[str] = []
    for label in system.labels:
        ids = [finding.id for finding in findings if finding.label == label.code]
        if label.axis == "organism" and ids:
            name = Remark("name.label", code=label.code, name=label.name)
            organisms.append(Remark("part.class_and_number", name=name, n=len(ids)))
            supporting += ids
    satisfactory = adequacy == "satisfactory"
    reasons = [Remark("category.below_satisfactory") if satisfactory else Remark("category.below_not_assessed")]
    if organisms:
        reasons.append(Remark("category.organisms", organisms=organisms))
    for entry in others:
        reasons.append(Remark("category.beside", category=_name(entry.category), n=len(entry.findings)))
        supporting += [finding.id for finding in entry.findings]
    return CategoryCall(
        "+".join([category.code, *(entry.category.code for entry in others)]),
        _joined([_name(category), *(_name(entry.category) for entry in others)]),
        together(*reasons),
        tuple(sorted(supporting)),
        support=tuple(entry.record(chosen=True) for entry in others),
    )
