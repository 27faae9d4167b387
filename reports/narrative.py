"""The narrative: sentences made from the findings by template, each with the ids of its evidence.

Every number in a sentence is read from the report; a sentence about a missing value is not written. The wording
never goes beyond the verdict: a slide is flagged, a pattern is suggestive, and nothing is ever diagnosed. A
model's own words are quoted as such, after a check, and only for tiles that carry the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports import blood
from reports.language import Words
from reports.wording import (
    CERTAINTY,
    quotable,
    score_pair,
    seen_first,
)
from wsi_chat.remarks import percent
from wsi_chat.schema import Report, Sentence, TileVerdict
from wsi_chat.terminology import System

QUOTES = 2
MAX_QUOTE = 240  # characters; longer answers are in tiles.parquet
CITED = 12  # ids behind the sentence on the verdict; all of them are in verdict.carrying


def narrate(
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    system: System,
    *,
    quotes: int = QUOTES,
    words: Words | None = None,
) -> tuple[Sentence, ...]:
    """Say in sentences what the report holds. Deterministic; the report's own ``narrative`` is not read.

    Args:
        quotes: at most this many descriptions by the model are quoted.
        words: the language; by default that of the report.
    """
    words = words or Words(report.language, system)
    return (
        *_verdict(report, system, words),
        *_category(report, words),
        *_cells(report, words),
        *blood.sentences(report, words),
        *_quotes(report, tile_verdicts, system, quotes, words),
        *_ancillary(report, words),
        *_adequacy(report, words),
        *_screening(report, words),
        *_gaps(report, words),
    )


def _say(text: str, *evidence: str) -> Sentence:
    return Sentence(text=text, evidence=evidence)


def _screening(report: Report, words: Words) -> Iterator[Sentence]:
    funnel = report.funnel
    if not funnel.foreground:
        yield _say(words("narrative.no_foreground"), "funnel.foreground")
        return
    if funnel.selected < funnel.foreground:
        yield _say(
            words("narrative.selected", selected=funnel.selected, foreground=funnel.foreground),
            "funnel.selected",
            "funnel.foreground",
        )
    key = "narrative.screened_all" if funnel.selected == funnel.foreground else "narrative.screened_selected"
    text = words(
        key,
        screened=funnel.screened,
        selected=funnel.selected,
        coverage=percent(report.verdict.coverage),
        **({} if key.endswith("_all") else {"whole": percent(funnel.coverage_foreground)}),
        detailed=funnel.detailed,
    )
    of = () if key.endswith("_all") else ("funnel.coverage_foreground",)
    yield _say(text, "funnel.screened", "funnel.selected", "verdict.coverage", *of, "funnel.detailed")


def _verdict(report: Report, system: System, words: Words) -> Iterator[Sentence]:
    verdict = report.verdict
    if not report.specimen.given:
        yield _say(words("narrative.no_specimen"), "specimen")
    cited = verdict.carrying[:CITED] if verdict.status == "abnormal" else ()
    candidates = [finding.id for finding in verdict.findings if finding.abnormal]
    if verdict.status == "normal" and candidates:
        yield _say(words("narrative.normal_with_candidates", n=len(candidates)), "verdict.status", *candidates[:CITED])
    elif verdict.status == "abnormal" and not candidates:
        yield _say(words("narrative.abnormal_by_score"), "verdict.status", *cited)
    else:
        yield _say(words.wording(verdict.status, system), "verdict.status", *cited)
    if verdict.grounds and verdict.status in ("indeterminate", "unsatisfactory"):
        grounds = [words.remark(ground.headline) for ground in verdict.grounds]
        yield _say(words("narrative.grounds", n=len(grounds), grounds="; ".join(grounds)), "verdict.grounds")
    yield from score_sentence(report, words)
    if verdict.status == "indeterminate" and verdict.coverage < verdict.coverage_floor:
        yield _say(
            words("narrative.coverage_low", coverage=percent(verdict.coverage), floor=percent(verdict.coverage_floor)),
            "verdict.coverage",
            "verdict.coverage_floor",
        )


def score_sentence(report: Report, words: Words) -> Iterator[Sentence]:
    """Where the score lies, on a slide that the score decides."""
    verdict = report.verdict
    if verdict.status in ("abnormal", "normal") and verdict.score is not None and verdict.threshold is not None:
        score, threshold = score_pair(verdict.score, verdict.threshold)
        key = "narrative.score_reaches" if verdict.status == "abnormal" else "narrative.score_below"
        kind = words.remark(verdict.score_kind)
        yield _say(words(key, score=score, kind=kind, threshold=threshold), "verdict.score", "verdict.threshold")


def _category(report: Report, words: Words) -> Iterator[Sentence]:
    verdict = report.verdict
    if not verdict.category or verdict.status not in ("abnormal", "normal"):
        return
    name = words.category(verdict)
    if verdict.status == "abnormal":
        yield _say(words("narrative.category_abnormal", category=name), "verdict.category", *verdict.carrying[:CITED])
    else:
        yield _say(words("narrative.category_normal", category=name), "verdict.category", "verdict.status")


def _cells(report: Report, words: Words) -> Iterator[Sentence]:
    verdict = report.verdict
    if not report.funnel.detailed:
        return
    key = "narrative.cells_first"
    for row in seen_first(verdict.counts):
        if not row.seen:
            continue
        noun = words.noun(row)
        text = words(key, noun=noun if key == "narrative.cells_first" else _upper(noun), n=row.seen)
        key = "narrative.cells_next"
        yield _say(text, *(row.finding_ids or ("verdict.counts",)))
    none = [words.noun(row) for row in seen_first(verdict.counts) if row.asked and not row.seen]
    if none:
        yield _say(
            words("narrative.cells_none", n=report.funnel.detailed, nouns=words.listed(none)),
            "verdict.counts",
            "funnel.detailed",
        )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ancillary(report: Report, words: Words) -> Iterator[Sentence]:
    for text in report.ancillary:
        yield _say(words("narrative.ancillary", text=text.rstrip(".。 ")), "ancillary")


def _adequacy(report: Report, words: Words) -> Iterator[Sentence]:
    adequacy = report.verdict.adequacy
    if adequacy.status == "not_assessed":
        yield _say(words("narrative.adequacy_not_assessed"), "verdict.adequacy")
    elif adequacy.status == "unsatisfactory" or report.verdict.status == "unsatisfactory":
        status = words(f"adequacy.{adequacy.status}")
        reason = _plain(words.remark(adequacy.reason))
        yield _say(words("narrative.adequacy_unsatisfactory", status=status, reason=reason).strip(), "verdict.adequacy")
    else:
        yield _say(words("narrative.adequacy_satisfactory"), "verdict.adequacy")
    if adequacy.cells_estimate is None:
        return
    text = words("narrative.cells_estimated", n=round(adequacy.cells_estimate))
    evidence = ["verdict.adequacy.cells_estimate"]
    if adequacy.cells_interval is not None:
        low, high = round(adequacy.cells_interval.low), round(adequacy.cells_interval.high)
        level = percent(adequacy.cells_interval.level)
        text += words("narrative.cells_interval", level=level, low=low, high=high)
        evidence.append("verdict.adequacy.cells_interval")
    if adequacy.sampled_area_fraction is not None:
        text += words("narrative.cells_sampled", fraction=percent(adequacy.sampled_area_fraction))
        evidence.append("verdict.adequacy.sampled_area_fraction")
    yield _say(f"{text}{'。' if words.language == 'zh' else '.'}", *evidence)


def _plain(text: str) -> str:
    """A reason as written elsewhere in the report, unless it is surer than a report may be."""
    return "" if CERTAINTY.search(text) else text


def _gaps(report: Report, words: Words) -> Iterator[Sentence]:
    funnel = report.funnel
    gaps = [(getattr(funnel, name), name) for name in ("unreadable", "screen_failed", "detail_failed")]
    missing = [(count, name) for count, name in gaps if count]
    if missing:
        parts = [
            words(
                "narrative.gap_next" if position else "narrative.gap_first",
                n=count,
                what=words(f"narrative.gap_{name}"),
            )
            for position, (count, name) in enumerate(missing)
        ]
        total = sum(count for count, _ in missing)
        text = words("narrative.gaps", parts=words.listed(parts), n=total)
        yield _say(text, *(f"funnel.{name}" for _, name in missing))
    if funnel.truncated_answers:
        yield _say(words("narrative.truncated", n=funnel.truncated_answers), "funnel.truncated_answers")
    if funnel.dropped_boxes:
        yield _say(words("narrative.dropped", n=funnel.dropped_boxes), "funnel.dropped_boxes")


def _quotes(
    report: Report, tile_verdicts: Sequence[TileVerdict], system: System, quotes: int, words: Words
) -> Iterator[Sentence]:
    verdict = report.verdict
    if verdict.status not in ("abnormal", "normal"):
        return
    by_id = {row.tile.id: row for row in tile_verdicts}
    quoted_already: set[str] = set()
    for name in carrying_tiles(report):
        row = by_id.get(name)
        if row is None or row.truncated or len(quoted_already) >= quotes:
            continue
        text = " ".join(row.description.split())
        if text in quoted_already:
            continue
        if len(text) <= MAX_QUOTE and quotable(text, status=verdict.status, never_claim=system.never_claim):
            quoted_already.add(text)
            quoted = words("narrative.quote", tile=name, text=words.quoted(text))
            yield Sentence(text=quoted, evidence=(name,), source="model")


def carrying_tiles(report: Report) -> tuple[str, ...]:
    """Ids of the tiles behind the verdict, each once, in the verdict's order."""
    findings = {finding.id: finding for finding in report.verdict.findings}
    carrying: dict[str, None] = {}
    for name in report.verdict.carrying:
        carrying.update(dict.fromkeys(findings[name].tile_ids if name in findings else (name,)))
    return tuple(carrying)
