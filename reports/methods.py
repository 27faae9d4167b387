"""What report.pdf says of how a slide was analyzed: controls, calibration, the funnel, provenance and every detail."""

from __future__ import annotations

import json
import re
from typing import Any

from aggregators.fitted import METHODS
from reports.language import Words
from reports.printable import clean
from reports.wording import score_text
from wsi_chat.remarks import number, percent
from wsi_chat.schema import Remark, Report


def scope_text(report: Report, words: Words) -> str:
    """What the model was trained for, and why the slide is outside of it where it is."""
    scope = report.scope
    assert scope is not None
    outside = words("page.outside", why=words.remark(scope.outside)) if scope.outside else ""
    return words.spaced([text for text in (scope.statement, outside) if text])


def controls_text(report: Report, words: Words) -> str:
    """How the control questions went, in a line."""
    asked = report.controls
    assert asked is not None
    if asked.passed:
        return words.remark(Remark("controls.passed", n=len(asked.answers)))
    missing = Remark("controls.unanswered", missing=asked.missing, n=len(asked.answers))
    return words.spaced(map(words.remark, (*asked.failures, *([missing] if asked.missing else []))))


def controls(report: Report, words: Words) -> list[str]:
    """Every control question with what was expected and what was answered."""
    rows = []
    for answer in report.controls.answers if report.controls is not None else ():
        known = {"kind": words(f"controls.{answer.kind}"), "name": clean(answer.name, 40)}
        if answer.p is None:
            rows.append(words("controls.no_answer", **known))
            continue
        expected = words(f"controls.expect_{answer.expected}", p=score_text(answer.p_before or 0.0))
        mark = words("controls.as_expected" if answer.as_expected else "controls.not_as_expected")
        rows.append(words("controls.row", **known, p=score_text(answer.p), expected=expected, mark=mark))
    return [clean(row) for row in rows]


def calibration_text(report: Report, words: Words) -> str:
    """How the score was calibrated, by a fitted aggregator under its conditions alone; otherwise that it is not."""
    fitted = report.verdict.fitted
    if fitted is None or fitted.forced:
        return words("page.uncalibrated")
    return words("page.calibrated", method=clean(words.remark(METHODS.get(fitted.calibration, fitted.calibration))))


def funnel(report: Report, words: Words) -> list[dict[str, str]]:
    counts = report.funnel
    steps = [
        (counts.grid, "grid"),
        (counts.foreground, "with_cells"),
        (counts.selected, "selected"),
        (counts.screened, "screened"),
        (counts.detailed, "detailed"),
    ]
    return [{"count": number(count), "label": words(f"page.{label}")} for count, label in steps]


def gaps(report: Report, words: Words) -> dict[str, str]:
    """The share of the slide that was screened, beside the floor that it is held to, and what is missing.

    A negative result is held to the floor by all tiles that may hold cells, a count by the tiles selected. Where
    ``--limit`` left tiles out the two differ: each is shown with what it is a share of, first the one that is judged.
    """
    counts, verdict = report.funnel, report.verdict
    missing = words("page.missing", missing=counts.unreadable + counts.screen_failed, unreadable=counts.unreadable)
    judged, floor = verdict.coverage, words("page.floor", floor=percent(verdict.coverage_floor))
    if counts.selected < counts.foreground:
        shares = [("foreground", counts.coverage_foreground), ("selected", verdict.coverage)]
        if verdict.threshold is None:  # cells were counted, and abnormality was not asked about
            shares.reverse()
        (of, judged), (of_other, other) = shares
        floor = f"{words(f'page.of_{of}')}{words.between}{floor}"
        missing = f"{words(f'page.share_of_{of_other}', share=percent(other))}{words.between}{missing}"
    return {
        "coverage": percent(judged),
        "floor": floor,
        "low": words("page.too_low") if judged < verdict.coverage_floor else "",
        "missing": missing,
    }


def coverage_text(report: Report, words: Words) -> str:
    """The coverage on one line: of all tiles that may hold cells where ``--limit`` left some out."""
    if report.funnel.selected < report.funnel.foreground:
        return words("page.share_of_foreground", share=percent(report.funnel.coverage_foreground))
    return percent(report.verdict.coverage)


def provenance(report: Report, words: Words) -> list[dict[str, str]]:
    source, model = report.provenance, report.provenance.model
    decoding = ", ".join(f"{name} {_value(value)}" for name, value in sorted(model.decoding.items()))
    asked = {"dialect": clean(model.dialect, 30), "engine": clean(model.engine, 30), "decoding": clean(decoding, 80)}
    tiles: dict[str, object] = {
        "px": str(source.tile_px), "mpp": f"{source.tile_mpp:.3g}", "overlap": percent(source.overlap),
        "mask": clean(re.split(r"\s*[,，(（]", words.remark(source.mask), maxsplit=1)[0], 30), "seed": str(source.seed),
    }  # fmt: skip
    run = words("page.run_line", started=report.timings.started, reader=report.slide.reader)
    pairs = [
        ("model", words("page.model_line", name=clean(model.name, 60), revision=clean(model.revision, 20))),
        ("asked", words("page.asked_line", **asked)),
        ("prompts", f"SHA-256 {clean(model.prompts_sha256)[:16]}"),
        ("tiles", words("page.tiles_line" if report.slide.scale_known else "page.tiles_line_px", **tiles)),
        ("run", clean(run, 90)),
    ]
    return [{"label": words(f"page.{label}"), "value": value} for label, value in pairs]


def details(report: Report, words: Words) -> list[dict[str, str]]:
    slide, source, verdict, narrator = report.slide, report.provenance, report.verdict, report.narrator
    specimen, comma = report.specimen, words.between
    calibration = calibration_text(report, words) if verdict.score is not None else ""
    pairs: list[tuple[str, str]] = [
        ("id", clean(slide.id)),
        ("file_name", clean(slide.file_name)),
        ("fingerprint", clean(slide.fingerprint)),
        ("reader", clean(words("page.reader_line", reader=slide.reader, levels=slide.levels))),
        ("specimen", clean(f"{words.specimen(report)} ({specimen.code})")),
        (
            "system",
            clean(comma.join(dict.fromkeys((words.system_name(report), specimen.system, specimen.system_version)))),
        ),
        ("reason_verdict", clean(words.remark(verdict.reason))),
        ("reason_category", clean(words.remark(verdict.category_reason))),
        ("reason_adequacy", clean(words.remark(verdict.adequacy.reason))),
        ("scope", clean(scope_text(report, words)) if report.scope is not None else ""),
        ("adequacy_rule", clean(words.adequacy_rule(verdict.adequacy.rule))),
        ("calibration", calibration),
        ("ancillary", words.between.join(words("page.ancillary_line", text=clean(t)) for t in report.ancillary)),
        ("model", words("page.model_line", name=clean(source.model.name), revision=clean(source.model.revision))),
        ("narrator", _narrator(report, words) if narrator else ""),
        ("prompts_sha", clean(source.model.prompts_sha256)),
        ("decoding", _mapping(source.model.decoding)),
        ("aggregation", _mapping(source.aggregation)),
        ("versions", _mapping(source.versions)),
        ("settings", _mapping(source.config)),
        ("sources", clean("; ".join(specimen.sources))),
        ("schema", clean(report.schema_version)),
    ]
    return [{"label": words(f"page.{label}"), "value": value} for label, value in pairs if value]


def _narrator(report: Report, words: Words) -> str:
    """Who wrote the narrative, and why the template did where it had to."""
    narrator = report.narrator
    if narrator is None:
        return ""
    line = words(
        "page.narrator_line", model=clean(narrator.model), revision=clean(narrator.revision), kept=narrator.kept,
        replaced=narrator.replaced,
    )  # fmt: skip
    return clean(words.spaced([f"{line}{words.stop}", words.remark(narrator.note)]) if narrator.note else line)


def _mapping(values: dict[str, Any]) -> str:
    return clean(", ".join(f"{key} {_value(value)}" for key, value in sorted(values.items())), 1500)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
