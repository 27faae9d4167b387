"""The narrative: sentences made from the findings by template, each with the ids of its evidence.

Every number in a sentence is read from the report; a sentence about a missing value is not written. The wording
never goes beyond the verdict: a slide is flagged, a pattern is suggestive, and nothing is ever diagnosed. A
model's own words are quoted as such, after a check, and only for tiles that carry the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.wording import (
    CERTAINTY,
    listed,
    number,
    percent,
    plural,
    quotable,
    score_pair,
    seen_first,
)
from wsi_chat.errors import TerminologyError
from wsi_chat.schema import Count, Report, Sentence, TileVerdict
from wsi_chat.terminology import System

QUOTES = 2
MAX_QUOTE = 240  # characters; longer answers are in tiles.parquet


def narrate(
    report: Report, tile_verdicts: Sequence[TileVerdict], system: System, *, quotes: int = QUOTES
) -> tuple[Sentence, ...]:
    """Say in sentences what the report holds. Deterministic; the report's own ``narrative`` is not read.

    Args:
        quotes: at most this many descriptions by the model are quoted.
    """
    return (
        *_verdict(report, system),
        *_category(report),
        *_cells(report, system),
        *_quotes(report, tile_verdicts, system, quotes),
        *_adequacy(report),
        *_screening(report),
        *_gaps(report),
    )


def _say(text: str, *evidence: str) -> Sentence:
    return Sentence(text=text, evidence=evidence)


def _screening(report: Report) -> Iterator[Sentence]:
    funnel = report.funnel
    if not funnel.foreground:
        yield _say("No tile with cells was found on the slide.", "funnel.foreground")
        return
    if funnel.selected < funnel.foreground:
        yield _say(
            f"{number(funnel.selected)} of {plural(funnel.foreground, 'tile')} with cells "
            f"{'was' if funnel.selected == 1 else 'were'} selected for reading.",
            "funnel.selected",
            "funnel.foreground",
        )
    whose = "with cells" if funnel.selected == funnel.foreground else "selected"
    yield _say(
        f"{number(funnel.screened)} of {plural(funnel.selected, 'tile')} {whose} "
        f"{'was' if funnel.screened == 1 else 'were'} screened, a coverage of {percent(report.verdict.coverage)}; "
        f"{number(funnel.detailed)} {'was' if funnel.detailed == 1 else 'were'} read closely.",
        "funnel.screened",
        "funnel.selected",
        "verdict.coverage",
        "funnel.detailed",
    )


def _verdict(report: Report, system: System) -> Iterator[Sentence]:
    verdict = report.verdict
    if not report.specimen.given:
        yield _say("The specimen type was not given, so no reporting system's category is named.", "specimen")
    wording: str = getattr(system.wording, verdict.status)
    carrying = verdict.carrying[:12]
    if verdict.status in ("abnormal", "normal"):
        cited = carrying if verdict.status == "abnormal" else ()
        yield _say(wording, "verdict.status", *cited)
        if verdict.score is not None and verdict.threshold is not None:
            score, threshold = score_pair(verdict.score, verdict.threshold)
            relation = "reaches" if verdict.score >= verdict.threshold else "stays below"
            outcome = "was flagged for review" if verdict.status == "abnormal" else "was not flagged"
            yield _say(
                f"The slide score of {score} ({verdict.score_kind}) {relation} the threshold of {threshold}; "
                f"the slide {outcome}.",
                "verdict.score",
                "verdict.threshold",
            )
        return
    yield _say(wording, "verdict.status")
    if verdict.status == "indeterminate" and verdict.coverage < verdict.coverage_floor:
        yield _say(
            f"The coverage of {percent(verdict.coverage)} lies below the floor of "
            f"{percent(verdict.coverage_floor)}, and tiles that were not read are not counted as free of findings.",
            "verdict.coverage",
            "verdict.coverage_floor",
        )


def _category(report: Report) -> Iterator[Sentence]:
    verdict = report.verdict
    if not verdict.category or verdict.status not in ("abnormal", "normal"):
        return
    name = verdict.category_name or verdict.category
    if verdict.status == "abnormal":
        yield _say(
            f"The pattern is suggestive of {name}, to be judged by a cytologist.",
            "verdict.category",
            *verdict.carrying[:12],
        )
    else:
        yield _say(f"The corresponding category, for review, is {name}.", "verdict.category", "verdict.status")


def _cells(report: Report, system: System) -> Iterator[Sentence]:
    verdict = report.verdict
    if not report.funnel.detailed:
        return
    first = True
    for row in seen_first(verdict.counts):
        if not row.seen:
            continue
        noun, places = _noun(row, system), plural(row.seen, "place")
        text = f"In the closely read tiles {noun} were marked in {places}." if first else f"{_upper(noun)} in {places}."
        first = False
        yield _say(text, *(row.finding_ids or ("verdict.counts",)))
    none = [_noun(row, system) for row in seen_first(verdict.counts) if row.asked and not row.seen]
    if none:
        yield _say(
            f"Asked for and not marked in the {plural(report.funnel.detailed, 'closely read tile')}: {listed(none)}.",
            "verdict.counts",
            "funnel.detailed",
        )


def _noun(row: Count, system: System) -> str:
    try:
        return system.label(row.label).plural
    except TerminologyError:
        return f"objects called {row.name!r}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _adequacy(report: Report) -> Iterator[Sentence]:
    adequacy = report.verdict.adequacy
    if adequacy.status == "not_assessed":
        yield _say("Adequacy was not assessed.", "verdict.adequacy")
    elif adequacy.status == "unsatisfactory" or report.verdict.status == "unsatisfactory":
        yield _say(f"Adequacy: {adequacy.status}. {_plain(adequacy.reason)}".strip(), "verdict.adequacy")
    else:
        yield _say("The specimen was taken as satisfactory for evaluation.", "verdict.adequacy")
    if adequacy.cells_estimate is None:
        return
    text = f"The number of cells is estimated at {number(round(adequacy.cells_estimate))}"
    evidence = ["verdict.adequacy.cells_estimate"]
    if adequacy.cells_interval is not None:
        low, high = round(adequacy.cells_interval.low), round(adequacy.cells_interval.high)
        text += f" ({percent(adequacy.cells_interval.level)} interval {number(low)} to {number(high)})"
        evidence.append("verdict.adequacy.cells_interval")
    if adequacy.sampled_area_fraction is not None:
        text += f", extrapolated from {percent(adequacy.sampled_area_fraction)} of the area"
        evidence.append("verdict.adequacy.sampled_area_fraction")
    yield _say(f"{text}.", *evidence)


def _plain(text: str) -> str:
    """A reason as written elsewhere in the report, unless it is surer than a report may be."""
    return "" if CERTAINTY.search(text) else text


def _gaps(report: Report) -> Iterator[Sentence]:
    funnel = report.funnel
    gaps = [
        (funnel.unreadable, "funnel.unreadable", "could not be read"),
        (funnel.screen_failed, "funnel.screen_failed", "gave no usable screening answer"),
        (funnel.detail_failed, "funnel.detail_failed", "gave no usable close reading"),
    ]
    told = [(count, field, text) for count, field, text in gaps if count]
    if told:
        parts = [
            f"{plural(count, 'tile') if position == 0 else number(count)} {text}"
            for position, (count, _, text) in enumerate(told)
        ]
        yield _say(
            f"{listed(parts)}; {'it is' if sum(t[0] for t in told) == 1 else 'they are'} counted as missing.",
            *(field for _, field, _ in told),
        )
    if funnel.truncated_answers:
        cut = plural(funnel.truncated_answers, "answer was", "answers were")
        yield _say(
            f"{cut} cut off by the model's length limit; the boxes complete until then were kept.",
            "funnel.truncated_answers",
        )
    if funnel.dropped_boxes:
        dropped = plural(funnel.dropped_boxes, "box", "boxes")
        yield _say(f"{dropped} in the model's answers could not be used.", "funnel.dropped_boxes")


def _quotes(report: Report, tile_verdicts: Sequence[TileVerdict], system: System, quotes: int) -> Iterator[Sentence]:
    verdict = report.verdict
    if verdict.status not in ("abnormal", "normal"):
        return
    findings = {finding.id: finding for finding in verdict.findings}
    carrying: dict[str, None] = {}  # in order, each tile once
    for name in verdict.carrying:
        carrying.update(dict.fromkeys(findings[name].tile_ids if name in findings else (name,)))
    by_id = {row.tile.id: row for row in tile_verdicts}
    said: set[str] = set()
    for name in carrying:
        row = by_id.get(name)
        if row is None or row.truncated or len(said) >= quotes:
            continue
        text = " ".join(row.description.split())
        if text in said:
            continue
        if len(text) <= MAX_QUOTE and quotable(text, status=verdict.status, never_claim=system.never_claim):
            said.add(text)
            yield Sentence(text=f"Of tile {name} the model wrote: “{text}”", evidence=(name,), source="model")
