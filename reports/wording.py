"""How scores and ids are written, and what may not be written: for the narrative, the PDF and the HTML card."""

from __future__ import annotations

import re
from collections.abc import Iterable

from wsi_chat.schema import Count, SlideVerdict, VerdictStatus

VERDICT_WORDS: dict[VerdictStatus, str] = {
    "abnormal": "Flagged as abnormal",
    "normal": "Not flagged",
    "indeterminate": "Indeterminate",
    "unsatisfactory": "Unsatisfactory",
    "counted": "Cells counted",
}

# Words that a research tool's output must not carry, whoever wrote them.
CERTAINTY = re.compile(
    r"\b(diagnos\w*|confirm\w*|definit\w*|certain(ly)?|prov(en|es|ed)|pathognomonic|conclusive\w*|rule[sd]? out)\b",
    re.IGNORECASE,
)
_REASSURING = re.compile(
    r"\b(normal|benign|nilm|negative|healthy|unremarkable|no (evidence|signs?|abnormal\w*))\b", re.IGNORECASE
)
# Results that no image shows; a released checkpoint learned from reports that mention them all the same.
_ANCILLARY = re.compile(
    r"\b(hpv\w*|p16\w*|ki-?67|pd-?l1|immuno\w+|ihc|molecular\w*|methylat\w+|genotyp\w+|gene|genes|genetic\w*|"
    r"mutation\w*|pcr|brca\w*|her2|egfr|braf)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*", re.UNICODE)
_STOP = frozenset(["a", "an", "and", "any", "by", "for", "from", "in", "of", "or", "per", "the", "to", "with"])
_GENERAL = frozenset(["cell", "cells", "other", "status", "test", "tests", "type", "types"])
_NUMBERED = re.compile(r"^([a-z]+)(\d+)$")


def score_text(value: float) -> str:
    """A score with two decimals, never shown as 0 or 1 where it is neither: ``0.87``, ``> 0.99``."""
    if 0.995 <= value < 1:
        return "> 0.99"
    if 0 < value < 0.005:
        return "< 0.01"
    return f"{value:.2f}"


def score_pair(score: float, threshold: float) -> tuple[str, str]:
    """Both with three decimals, as the verdict's reason has them, or with as many as it takes to tell them apart."""
    for digits in range(3, 17):
        texts = f"{score:.{digits}f}", f"{threshold:.{digits}f}"
        if texts[0] != texts[1] or score == threshold:
            return texts
    return repr(score), repr(threshold)


def id_ranges(ids: Iterable[str]) -> str:
    """Ids with runs shortened: ``f0001–f0004, f0009, t000042``; other names as they are."""
    parts: list[list[str]] = []
    previous: tuple[str, int, int] | None = None
    for name in ids:
        match = _NUMBERED.match(name)
        here = (match[1], len(match[2]), int(match[2])) if match else None
        if here and previous and here[:2] == previous[:2] and here[2] == previous[2] + 1:
            parts[-1] = [parts[-1][0], name]
        else:
            parts.append([name])
        previous = here
    return ", ".join("–".join(part) for part in parts)


def seen_first(counts: Iterable[Count]) -> list[Count]:
    """Rows of the findings table: abnormal classes first, then by count, then by name."""
    return sorted(counts, key=lambda row: (not row.abnormal, -row.seen, row.name))


def included(verdict: SlideVerdict) -> dict[str, list[Count]]:
    """By label, the rows whose cells its row counts too, being kinds of it: lymphocytes among the white cells."""
    own = {finding.id: finding.label for finding in verdict.findings}
    found: dict[str, list[Count]] = {}
    for whole in verdict.counts:
        labels = {own[name] for name in whole.finding_ids if name in own} - {whole.label}
        if labels:
            found[whole.label] = [row for row in verdict.counts if row.label in labels]
    return found


def quotable(text: str, *, status: VerdictStatus, never_claim: Iterable[str]) -> bool:
    """Whether a model's sentence may be quoted in a report with this verdict.

    It may not when it is surer than the verdict can be, states a result that no image shows, uses a word of what
    the reporting system says is never to be claimed, or reassures where the verdict does not.
    """
    if not text.strip() or CERTAINTY.search(text) or _ANCILLARY.search(text):
        return False
    if status != "normal" and _REASSURING.search(text):
        return False
    forbidden = {word.casefold() for phrase in never_claim for word in _WORD.findall(phrase)} - _STOP - _GENERAL
    return not any(word.casefold() in forbidden for word in _WORD.findall(text))
