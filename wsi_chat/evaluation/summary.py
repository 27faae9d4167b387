"""An evaluation in lines for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from wsi_chat.evaluation.classes import ChoiceScores, ClassScores
from wsi_chat.evaluation.evaluate import Evaluation
from wsi_chat.evaluation.grounding import GroundingScores
from wsi_chat.evaluation.resampling import Estimate
from wsi_chat.remarks import counted

SHOWN = 12


def shown(value: Estimate | None, *, digits: int = 3) -> str:
    """``0.512 [0.430, 0.590]``, a dash where it is not defined."""
    if value is None or value.value is None:
        return "-"
    if value.interval is None:
        return f"{value.value:.{digits}f}"
    return f"{value.value:.{digits}f} [{value.interval.low:.{digits}f}, {value.interval.high:.{digits}f}]"


def render(result: Evaluation) -> Group:
    """Tables of every part that the file has."""
    counts = result.counts
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.by_kind.items())
    file = str(result.file).replace("\n", "␊")
    head = Text(f"{file}: {counted(counts.rows, 'row')} on {counted(result.images, 'image')}: {kinds}")
    became = Text(
        f"{counts.truncated} cut off, {counts.failed} failed, {counts.refused} refused by the model, "
        f"{counts.unparsed} unparsed (all counted as they are); left out: {counts.unscored} that cannot be scored, "
        f"{counted(counts.skipped, 'line')} without a prediction"
    )
    parts: list[Text | Table] = [head, became]
    if result.choice is not None:
        parts.append(_choice(result))
    if result.grounding is not None:
        parts += _grounding(result.grounding)
    named = {"referring": result.referring, "single phrase": result.phrase}
    if any(named.values()):
        table = _table("classes named", "rows", "no answer", "accuracy", "balanced", "macro-F1")
        for name, scores in named.items():
            if scores is not None:
                table.add_row(name, *_class_cells(scores)[:5])
        parts.append(table)
    if result.text:
        parts += _text(result)
    parts += [Text(f"line {problem.line}: {problem.reason}") for problem in result.problems[:SHOWN]]
    if len(result.problems) > SHOWN:
        parts.append(Text(f"... and {len(result.problems) - SHOWN} more lines; all are in evaluation.json"))
    parts += [Text(note) for note in result.notes]
    if result.resamples:
        parts.append(Text(f"In brackets: 95 % bootstrap intervals, {result.resamples} resamples of images."))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, overflow="fold", max_width=44)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _class_cells(scores: ClassScores) -> tuple[str, ...]:
    return (
        str(scores.rows),
        str(scores.unparsed),
        shown(scores.accuracy),
        shown(scores.balanced_accuracy),
        shown(scores.macro_f1),
        shown(scores.mcc),
    )


def _choice(result: Evaluation) -> Table:
    assert result.choice is not None
    table = _table(
        "multiple choice", "rows", "no answer", "accuracy", "majority", "first", "gain", "balanced", "macro-F1", "MCC"
    )

    def add(name: str, scores: ChoiceScores) -> None:
        rows, unread, accuracy, balanced, f1, mcc = _class_cells(scores.scores)
        gain = shown(scores.gain)
        lazy = f"{scores.majority:.3f}", f"{scores.always_first:.3f}"
        table.add_row(name, rows, unread, accuracy, *lazy, gain, balanced, f1, mcc)

    add("all topics", result.choice.overall)
    topics = sorted(result.choice.by_topic.items(), key=lambda item: -item[1].scores.rows)
    for topic, scores in topics[:SHOWN] if len(topics) > 1 else []:
        add(f"  {topic}", scores)
    return table


def _grounding(scores: GroundingScores) -> list[Text | Table]:
    table = _table("grounding", "found", "true", "hits", "precision", "recall", "F1", "AP")
    for at in (*scores.at_iou, scores.centre):
        name = "centre inside" if at.iou is None else f"IoU {at.iou:g}"
        cells = shown(at.precision), shown(at.recall), shown(at.f1), shown(at.ap)
        table.add_row(name, str(at.found), str(at.truth), str(at.hits), *cells)
    for name, one in sorted(scores.by_class.items(), key=lambda item: -item[1].truth)[:SHOWN]:
        cells = shown(one.precision), shown(one.recall), shown(one.f1), shown(one.ap)
        table.add_row(f"  {name}, IoU 0.5", str(one.found), str(one.truth), str(one.hits), *cells)
    for size, part in scores.by_size.items():
        if part.truth:
            table.add_row(f"  {size}, IoU 0.5", "", str(part.truth), str(part.hits), "", shown(part.recall), "", "")
    no, count = scores.negatives, scores.counting
    lines = [
        Text(f"mean IoU of true boxes {shown(scores.mean_iou)}"),
        Text(
            f"asked for what is not there: {no.questions}, denied {no.denied}, false alarms {no.false_alarms} "
            f"({no.boxes} boxes), unanswered {no.unanswered}; false alarm rate {shown(no.false_alarm_rate)}"
        ),
        Text(
            f"counting: mean error {shown(count.mean_absolute_error, digits=2)}, bias {shown(count.bias, digits=2)}, "
            f"exact {shown(count.exact)}"
        ),
    ]
    return [table, *lines]


def _text(result: Evaluation) -> list[Text | Table]:
    table = _table("text", "rows", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR*", "exact")
    for kind, scores in result.text.items():
        cells = [_short(value) for value in (*scores.bleu, scores.rouge_l, scores.cider, scores.meteor, scores.exact)]
        table.add_row(kind, str(scores.rows), *cells)
    fields = _table("stated as in the reference", "category", "rows", "abnormal or not", "rows", "organisms", "rows")
    some = False
    for kind, one in result.fields.items():
        if one.category_rows + one.negation_rows + one.organism_rows:
            some = True
            fields.add_row(
                kind,
                shown(one.category), str(one.category_rows),
                shown(one.negation), str(one.negation_rows),
                shown(one.organisms), str(one.organism_rows),
            )  # fmt: skip
    note = Text("* METEOR without its synonym stage (WordNet is not at hand); intervals of all are in evaluation.json")
    return [table, note, *([fields] if some else [])]


def _short(value: Estimate) -> str:
    return "-" if value.value is None else f"{value.value:.3f}"
