"""evaluate(): a file of predictions in, every metric that its rows allow out. No row is ever dropped uncounted."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from wsi_chat._version import __version__
from wsi_chat.dialects import Dialect, Frame, get_dialect
from wsi_chat.dialects.choice import chosen_option
from wsi_chat.dialects.grammars import GRAMMARS
from wsi_chat.dialects.options import options_of, topic_of
from wsi_chat.dialects.refusal import declines
from wsi_chat.errors import AnswerError, SettingError
from wsi_chat.evaluation.classes import Choices, Chosen, ClassScores, Named, score_choices, score_classes
from wsi_chat.evaluation.grounding import GroundingCase, GroundingScores, score_grounding
from wsi_chat.evaluation.predictions import Prediction, grammar_of, known_dialect, main_dialect, read_predictions
from wsi_chat.evaluation.recognition import BOX, KINDS, class_names, target_of
from wsi_chat.evaluation.resampling import RESAMPLES
from wsi_chat.evaluation.statements import FieldScores, score_fields
from wsi_chat.evaluation.text import TextPair, TextScores, score_text
from wsi_chat.remarks import counted
from wsi_chat.schema import Answer, LabelledBox, Record
from wsi_chat.tasks import Ask

log = logging.getLogger(__name__)

TEXT_KINDS = ("describe", "vqa", "multi-turn", "region", "narrative")
NOMINAL_PX = 512
"""Side of a picture whose size the file does not say: CytoChat's benchmark. Only classes of cell size rest on it."""
UNBOUNDED = 1_000_000.0


class Counts(Record):
    """Rows by what became of them. All but ``skipped`` and ``unscored`` are in the scores, ``failed`` as wrong.

    ``refused``: an answer in which the model declines to answer, and names nothing. ``unparsed``: any other that names
    no option or class, or holds neither a box nor words for none. ``unscored``: the row itself cannot be scored (an
    option listed twice, a label that is none of the options).
    """

    rows: int
    by_kind: dict[str, int]
    truncated: int
    failed: int
    unparsed: int
    refused: int
    unscored: int
    skipped: int


class Problem(Record):
    """A row that was skipped or cannot be scored."""

    line: int
    reason: str


class Evaluation(Record):
    """All metrics of a file. Parts are None or empty where it has no such row."""

    version: str = __version__
    file: str
    counts: Counts
    images: int
    resamples: int
    choice: Choices | None = None
    grounding: GroundingScores | None = None
    referring: ClassScores | None = None
    phrase: ClassScores | None = None
    text: dict[str, TextScores] = Field(default_factory=dict)
    fields: dict[str, FieldScores] = Field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def evaluate(
    path: str | Path,
    *,
    dialect: str | None = None,
    image_size: tuple[int, int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Score a file of predictions: what `infer` writes, or any JSONL or JSON array of prompt, predict and label.

    Args:
        dialect: whose boxes the predictions hold; default: as the rows say, else as the texts show.
        image_size: (width, height) of the pictures in pixels, where the rows do not say.
        resamples: of the bootstrap over images; 0 gives no intervals.

    Raises:
        SettingError: the file cannot be read or holds no prediction, a dialect is not known, or a library that
            scores text is not installed.
    """
    read = read_predictions(Path(path))
    rows = read.rows
    problems = [Problem(line=line, reason=reason) for line, reason in read.skipped]
    notes: list[str] = []
    if not read.named:
        notes.append("The rows name no image: intervals take each row for an image of its own.")
    kinds = {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
    picked, unscored = _chosen(kinds["mcq"])
    boxes = _Boxes(rows, dialect, image_size)
    cases, misfits = boxes.cases(kinds["ground"])
    problems += [*unscored, *misfits]
    notes += boxes.notes
    referred = [_named(row) for row in kinds["refer"]]
    phrased = [_phrase(row) for row in kinds["phrase"]]
    chosen = [choice for _, choice in picked]
    named = zip((*kinds["refer"], *kinds["phrase"]), (*referred, *phrased), strict=True)
    silent = [row for row, choice in picked if choice.predicted is None]
    silent += [row for row, name in named if name.predicted is None]
    unread = [row for row in (*silent, *boxes.unread) if row.status != "failed"]
    refused = sum(declines(row.predict) for row in unread)
    if boxed := [row.line for kind in TEXT_KINDS for row in kinds[kind] if BOX.search(row.predict)]:  # type: ignore[index]
        notes.append(
            f"{counted(len(boxed), 'answer')} scored as free text also {'holds' if len(boxed) == 1 else 'hold'} boxes, "
            f"which no label locates (line {', '.join(map(str, boxed[:5]))}{', ...' if len(boxed) > 5 else ''}): "
            "their coordinates count as words."
        )
    texts = {kind: [_pair(row) for row in kinds[kind]] for kind in TEXT_KINDS if kinds[kind]}  # type: ignore[index]
    scores = {kind: score_text(pairs, resamples=resamples, seed=seed) for kind, pairs in texts.items()}
    return Evaluation(
        file=str(path),
        counts=Counts(
            rows=len(rows),
            by_kind={kind: len(some) for kind, some in kinds.items() if some},
            truncated=sum(row.status == "truncated" for row in rows),
            failed=sum(row.status == "failed" for row in rows),
            unparsed=len(unread) - refused,
            refused=refused,
            unscored=len(unscored) + len(misfits),
            skipped=len(read.skipped),
        ),
        images=len({row.image for row in rows}),
        resamples=resamples,
        choice=score_choices(chosen, resamples=resamples, seed=seed) if chosen else None,
        grounding=score_grounding(cases, resamples=resamples, seed=seed) if cases else None,
        referring=score_classes(referred, resamples=resamples, seed=seed) if referred else None,
        phrase=score_classes(phrased, resamples=resamples, seed=seed) if phrased else None,
        text=scores,
        fields={kind: score_fields(pairs, resamples=resamples, seed=seed) for kind, pairs in texts.items()},
        problems=tuple(sorted(problems, key=lambda problem: problem.line)),
        notes=tuple(notes),
    )


# -------------------------------------------------------------------------------------------- one class


def _chosen(rows: Sequence[Prediction]) -> tuple[list[tuple[Prediction, Chosen]], list[Problem]]:
    """Each row that can be scored with what was chosen there, and why the others cannot."""
    found: list[tuple[Prediction, Chosen]] = []
    unscored: list[Problem] = []
    for row in rows:
        options = tuple(text for _, text in options_of(row.question))
        try:
            ask = Ask("mcq", topic=topic_of(row.question), options=options)
        except SettingError as error:
            unscored.append(Problem(line=row.line, reason=error.message))
            continue
        truth = chosen_option(row.label, options)
        if truth is None:
            unscored.append(Problem(line=row.line, reason=f"the label {row.label[:60]!r} is none of the options"))
            continue
        choice = None if row.status == "failed" else chosen_option(row.predict, options)
        said = None if choice is None else options[choice]
        found.append((row, Chosen(row.image, ask.topic, options, options[truth], said)))
    return found, unscored


def _named(row: Prediction) -> Named:
    """The class that a referring answer names, as a code where the name is known."""
    dialect = known_dialect(row.dialect) or known_dialect("cytochat")
    assert dialect is not None

    def code(answer: Answer) -> str:
        name = dialect.read_label(answer).casefold()
        return class_names().get(" ".join(name.split()), name)

    named = "" if declines(row.predict) else code(row.answer)
    return Named(row.image, code(Answer("", "refer", row.label)), named or None)


def _phrase(row: Prediction) -> Named:
    predicted = "" if declines(row.predict) else _bare(row.predict)
    return Named(row.image, _bare(row.label), predicted if predicted and row.status != "failed" else None)


def _bare(text: str) -> str:
    """A phrase without case, articles, hyphens and final dot, as EndoChat compares them."""
    plain = re.sub(r"\bthe\b", " ", text.casefold().replace("-", " ")).replace(".", " ")
    return " ".join(plain.split())


def _pair(row: Prediction) -> TextPair:
    return TextPair(row.image, "" if row.status == "failed" else row.predict, row.label)


# -------------------------------------------------------------------------------------------- boxes


class _Boxes:
    """Reads the boxes of predictions and labels, which may be written in different grammars, into one frame."""

    def __init__(self, rows: Sequence[Prediction], dialect: str | None, image_size: tuple[int, int] | None) -> None:
        grounded = [row for row in rows if row.kind == "ground"]
        self.given = get_dialect(dialect) if dialect else None
        self.size = (float(image_size[0]), float(image_size[1])) if image_size else None
        labels = main_dialect([row.label for row in grounded])
        self.predicted = main_dialect([row.predict for row in grounded], default=labels or "cytochat")
        self.labelled = labels or self.predicted
        self.odd: Counter[tuple[str, str]] = Counter()
        self.unread: list[Prediction] = []
        self.notes: list[str] = []
        if grounded and not self.size and any(row.size is None for row in grounded):
            self.notes.append(
                f"The rows do not say how large the pictures are: normalised boxes are taken of {NOMINAL_PX} px "
                "pictures for the classes of cell size. Give --image-size to say it."
            )

    def cases(self, rows: Sequence[Prediction]) -> tuple[list[GroundingCase], list[Problem]]:
        found: list[GroundingCase] = []
        problems: list[Problem] = []
        for row in rows:
            try:
                made = self._case(row)
            except AnswerError as error:
                problems.append(Problem(line=row.line, reason=error.message))
                continue
            found += made
            if not all(case.answered for case in made):
                self.unread.append(row)
        for (named, written), number in sorted(self.odd.items()):
            have, were = ("has its", "was") if number == 1 else ("have their", "were")
            self.notes.append(
                f"{counted(number, 'answer')} of {named} {have} boxes in the form of {written}, and {were} read so."
            )
        return found, problems

    def _case(self, row: Prediction) -> list[GroundingCase]:
        target = target_of(row.question)
        truth, known = self._read(Answer("", "ground", row.label), row, label_side=True, target=target)
        if not known:  # nothing is not there because nobody can read where it is
            raise AnswerError(f"the label {row.label[:60]!r} has neither a box nor words for none")
        predicted, understood = self._read(row.answer, row, label_side=False, target=target)
        if row.confidence is not None:
            predicted = [LabelledBox(one.label, one.box, row.confidence) for one in predicted]
        names = list(dict.fromkeys(one.label for one in truth))
        if len(names) < 2:
            name = target or (names[0] if names else "object")
            return [GroundingCase(row.image, name, tuple(predicted), tuple(truth), understood)]
        # several classes asked in one question: a box of one is no hit of another
        made = []
        for name in names:
            mine = [one for one in predicted if one.label == name or (name == names[0] and one.label not in names)]
            right = tuple(one for one in truth if one.label == name)
            made.append(GroundingCase(row.image, name, tuple(mine), right, understood))
        return made

    def _read(
        self, answer: Answer, row: Prediction, *, label_side: bool, target: str
    ) -> tuple[list[LabelledBox], bool]:
        own = row.label_dialect if label_side else row.dialect
        dialect = self._dialect(answer.text, own, label_side=label_side)
        size = row.size or self.size
        pixels = dialect.spec.coordinates == "sent"
        if size is None:
            if pixels and _holds_boxes(answer.text, dialect) and self._normalised(row, label_side=not label_side):
                raise AnswerError(
                    "boxes in pixels beside normalised ones, and the picture's size is not known",
                    hint="Give --image-size.",
                )
            size = (UNBOUNDED, UNBOUNDED) if pixels else (float(NOMINAL_PX), float(NOMINAL_PX))
        width, height = size
        spaces = {"sent": size, "norm1": (1.0, 1.0), "norm1024": (1024.0, 1024.0), "norm1000": (1000.0, 1000.0)}
        given = (int(width), int(height))
        reading = dialect.read_boxes(answer, Frame(given, given, spaces[dialect.spec.coordinates]), target)
        found = [LabelledBox(class_names().get(one.label.casefold(), one.label), one.box) for one in reading.boxes]
        broken = label_side and reading.dropped > 0 and not found
        return found, reading.understood and not broken

    def _dialect(self, text: str, own: str, *, label_side: bool) -> Dialect:
        """The dialect in which a text is read: the one given, the row's own where it fits, else the one it shows."""
        if self.given is not None and not label_side:
            return self.given
        named, written = known_dialect(own), known_dialect(grammar_of(text))
        if named is not None and (
            written is None or _holds_boxes(text, named) or named.spec.boxes == written.spec.boxes
        ):
            return named
        if named is not None and written is not None and not label_side:
            self.odd[named.name, written.name] += 1
        found = written or known_dialect(self.labelled if label_side else self.predicted)
        assert found is not None  # both are names of this package
        return found

    def _normalised(self, row: Prediction, *, label_side: bool) -> bool:
        written = grammar_of(row.label if label_side else row.predict)
        dialect = known_dialect(written)
        return dialect is not None and dialect.spec.coordinates != "sent"


def _holds_boxes(text: str, dialect: Dialect) -> bool:
    return any(mark.numbers is not None for mark in GRAMMARS[dialect.spec.boxes](text))
