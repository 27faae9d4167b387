"""``--narrative model``: an engine writes the narrative from the findings and the top patches; then it is checked.

What the model writes is only ever a draft: `reports.check_narrative` holds every sentence against the finding that
it is about. Whatever goes wrong (a refusal, a cut-off or empty answer, a dead engine), the template's sentences
stand, and the report says why.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from PIL import Image

from wsi_chat.dialects.dialect import query_key
from wsi_chat.dialects.frame import fit
from wsi_chat.engines.protocol import failed
from wsi_chat.errors import EngineError, SlideUnreadable
from wsi_chat.schema import Answer, Language, Narrator, Query, Remark, Report, Sentence, TileVerdict, Turn

if TYPE_CHECKING:
    from pathlib import Path

    from tilers import Slide
    from wsi_chat.dialects import Dialect
    from wsi_chat.engines import Engine
    from wsi_chat.journal import Journal
    from wsi_chat.terminology import System

log = logging.getLogger(__name__)

PICTURES = 4
TOKENS = 1600
SHOWN_IDS = 6  # ids of evidence named in the prompt; the sentence keeps all of them
_FORBIDDEN = re.compile(r"<\|[a-z_]+\|>|<image>|</?s>")

INSTRUCTIONS: dict[Language, str] = {
    "en": (
        "Write the narrative of a research report on a cytology slide, in English, from the numbered findings below.\n"
        "For each finding write one line: its number, a full stop, and one sentence in your own words. Keep every "
        "number of the finding, in its order; keep the names of categories and classes, every 'not' and 'no', and "
        "how sure the finding is. State nothing that the finding does not say: no diagnosis, no advice, no other "
        "test, nothing about the patient.\n"
        "After the findings you may add up to three lines that begin with + and describe, without numbers or names "
        "of diseases, how the cells of one picture look; end such a line with the picture's id in square brackets."
    ),
    "zh": (
        "请根据下列编号的所见，用中文撰写细胞学切片研究报告的叙述。\n"
        "每条所见写一行：编号、句点、一句话。保留该所见的每个数字及其顺序，保留分类和类别的名称、每个“未”“不”以及"
        "肯定的程度。不得写所见中没有的内容：不作诊断，不给建议，不提其他检测，不谈患者。\n"
        "所见之后可另加至多三行，以 + 开头，描述某一图片中细胞的形态，不写数字和疾病名称，行末用方括号注明图片编号。"
    ),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A patch that the model is shown, under the id of the tile or finding that remarks cite."""

    id: str
    image: Image.Image


def pictures_of(report: Report, slide: Slide, tile_verdicts: Sequence[TileVerdict], *, px: int) -> list[Picture]:
    """The top tiles behind the verdict, read from the slide; those that cannot be read are left out."""

    from reports.narrative import carrying_tiles

    boxes = {row.tile.id: row.tile.box for row in tile_verdicts}
    found: list[Picture] = []
    for name in carrying_tiles(report):
        if name not in boxes or len(found) >= PICTURES:
            continue
        try:
            found.append(Picture(name, Image.fromarray(slide.crop(boxes[name], px))))
        except SlideUnreadable as error:
            log.warning("narrative: %s", error)
    return found


def stored_pictures(report: Report, folder: Path) -> list[Picture]:
    """The gallery's crops in place of tiles, where the slide itself is not at hand."""

    found = []
    for name in report.verdict.carrying:
        try:
            with Image.open(folder / "gallery" / f"{name}.png") as picture:
                found.append(Picture(name, picture.convert("RGB")))
        except (OSError, SyntaxError, ValueError):
            continue
        if len(found) >= PICTURES:
            break
    return found


def write_narrative(
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    system: System,
    *,
    engine: Engine | None,
    dialect: Dialect,
    journal: Journal | None = None,
    pictures: Sequence[Picture] = (),
    decoding: Mapping[str, Any] | None = None,
) -> Report:
    """The report with a narrative that the model wrote, as far as it passed the check, and a record of that.

    Args:
        engine: who writes; not asked where the dialect's family writes no narratives.
        journal: answers of this run; the same question is not asked twice.
        pictures: what the model is shown.

    Returns:
        The report in its own language. Nothing is raised for what a model does.
    """
    from reports import narrate
    from reports.check_narrative import check_narrative, read_lines
    from reports.language import Words

    words = Words(report.language, system)
    template = narrate(report, tile_verdicts, system, words=words)
    if not dialect.narrates or engine is None:
        if dialect.narrates:
            note = Remark("narrator.no_engine")
        else:
            note = Remark("narrator.writes_none", dialect=dialect.name)
        log.warning("%s", note)
        record = Narrator(model=report.provenance.model.name, revision=report.provenance.model.revision, note=note)
        return report.model_copy(update={"narrative": template, "narrator": record})

    findings = narrate(report, tile_verdicts, system, quotes=0, words=words)
    query = build_query(
        findings, report.language, dialect, pictures, model_id=engine.model_id, decoding=dict(decoding or {})
    )
    prompt = sha256("\n".join(turn.text for turn in query.turns).encode()).hexdigest()
    record = Narrator(model=engine.model_name, revision=engine.model_id, prompt_sha256=prompt)
    answer = _asked(query, engine, journal)
    lines = read_lines(dialect.read_text(answer), truncated=answer.status == "truncated")
    if answer.status == "failed" or not lines:
        reason = _reason(answer)
        log.warning("the model gave no narrative (%s)", reason)
        note = Remark("narrator.no_narrative", why=reason)
        record = record.model_copy(update={"note": note, "replaced": len(findings)})
        return report.model_copy(update={"narrative": template, "narrator": record})
    sentences = check_narrative(
        lines,
        findings,
        system=system,
        language=report.language,
        shown=[picture.id for picture in pictures],
        remark=words("narrative.quote", tile="{tile}", text=words.quoted("{text}")),
    )
    kept = sum(sentence.source == "model" for sentence in sentences)
    replaced = sum(sentence.source == "template_after_check" for sentence in sentences)
    record = record.model_copy(update={"kept": kept, "replaced": replaced})
    return report.model_copy(update={"narrative": sentences, "narrator": record})


def build_query(
    findings: Sequence[Sentence],
    language: Language,
    dialect: Dialect,
    pictures: Sequence[Picture],
    *,
    model_id: str,
    decoding: Mapping[str, Any],
) -> Query:
    """The one question: pictures, instructions, and the numbered findings with some of their evidence."""

    lines = [
        f"{number}. {_plain(finding.text)} [{', '.join(finding.evidence[:SHOWN_IDS])}]"
        for number, finding in enumerate(findings, start=1)
    ]
    shown = "".join(f"<image>{picture.id}\n" for picture in pictures)
    text = f"{shown}{INSTRUCTIONS[language]}\n\n" + "\n".join(lines)
    turns: tuple[Turn, ...] = (Turn("user", text),)
    if dialect.spec.system:
        turns = (Turn("system", dialect.spec.system), *turns)
    images = tuple(fit(picture.image, dialect.frame(picture.image.size).sent) for picture in pictures)
    key = query_key(
        task="narrative", turns=turns, images=images, choices=(), max_tokens=TOKENS, decoding=decoding,
        model_id=model_id, dialect=dialect.identity,
    )  # fmt: skip
    return Query(key=key, task="narrative", turns=turns, images=images, max_tokens=TOKENS)


def _plain(text: str) -> str:
    """Text that came from a user or a model, without anything that a prompt would take for a mark."""
    while _FORBIDDEN.search(text):
        text = _FORBIDDEN.sub("", text)
    return text


def _asked(query: Query, engine: Engine, journal: Journal | None) -> Answer:
    earlier = journal.get(query.key) if journal is not None else None
    if earlier is not None:
        return earlier
    try:
        answer = next(iter(engine.answer([query])), failed(query, "no answer came back"))
    except EngineError as error:
        return failed(query, error.message)
    if journal is not None:
        journal.put(answer)
    return answer


def _reason(answer: Answer) -> Remark:
    if answer.status == "failed":
        return Remark("narrator.failed_because", error=answer.error) if answer.error else Remark("narrator.failed")
    return Remark("narrator.unnumbered") if answer.text.strip() else Remark("narrator.empty")
