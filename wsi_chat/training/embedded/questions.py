"""Questions and true answers about an annotated field, in CytoChat's grammar, with pointers for training.

An answer is a list of pieces; a piece may carry the visual token (32 px cell) that it is read from, which the
language stage uses to teach attention where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.fields import BLOOD_DOMAINS, SIZE, Sample, classes_of
from wsi_chat.training.embedded.warmup import anchor, reading_order

MAX_OBJECTS = 24
"""Longest list of boxes that is asked for in training."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer and the merged token it is read from, if it is read from one place."""

    text: str
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt (without the image mark) and its answer. `task` is one of the dialect's tasks."""

    task: str
    prompt: str
    pieces: tuple[Piece, ...]

    @property
    def answer(self) -> str:
        """The whole answer text."""
        return "".join(piece.text for piece in self.pieces)


def plain(task: str, prompt: str, answer: str) -> Question:
    """A question whose answer is not read from one place."""
    return Question(task, prompt, (Piece(answer),))


def whole(box: Sequence[float]) -> tuple[int, int, int, int]:
    """A box in whole pixels of the image, at least one pixel wide and high."""
    x0, y0, x1, y1 = (min(SIZE, max(0, round(float(v)))) for v in box)
    return x0, y0, max(x1, min(SIZE, x0 + 1)), max(y1, min(SIZE, y0 + 1))


def members(name: str) -> tuple[str, ...]:
    """Classes that a grounding name stands for (`abnormal` is any epithelial abnormality)."""
    if name == "wbc":
        return ("wbc", *wording.WHITE)
    return wording.EPITHELIAL if name == wording.ABNORMAL else (name,)


def ground(sample: Sample, name: str) -> Question:
    """`Locate all NAME.` and the numbered boxes, or `No NAME is found.`"""
    prompt = wording.GROUND.format(name=name)
    pieces: list[Piece] = []
    for number, i in enumerate(reading_order(sample, members(name)), start=1):
        box = " ".join(map(str, whole(sample.boxes[i])))
        space = " " if pieces else ""
        text = f"{space}{name} {number}{wording.BOX_OPEN}{box}{wording.BOX_CLOSE}"
        pieces.append(Piece(text, anchor(sample.boxes[i])))
    return Question("ground", prompt, tuple(pieces) or (Piece(f"No {name} is found."),))


def is_blood(sample: Sample) -> bool:
    """Whether a field is a blood smear; one whose white cells are typed has a domain of its own."""
    return sample.domain in BLOOD_DOMAINS


def white_type(sample: Sample, rng: np.random.Generator) -> Question | None:
    """Which type the field's nucleated cells are; None unless they are all of one."""
    found = {label for label in sample.labels if label in wording.NUCLEATED}
    if sample.domain != "blood-typed" or len(found) != 1:
        return None
    (right,) = found
    others = [name for name in wording.NUCLEATED if name != right]
    rng.shuffle(others)
    return choice(wording.TYPE_TOPIC, [right, *others[: int(rng.integers(2, len(others) + 1))]], right, rng)


def refer(sample: Sample, index: int, rng: np.random.Generator) -> Question:
    """A box (a little off, as a person draws it) and the class in it."""
    box = sample.boxes[index]
    spread = 0.05 * (box[2:] - box[:2]).mean()
    shaken = whole((np.asarray(box) + rng.normal(0, spread, 4)).tolist())
    prompt = wording.REFER.format(box=" ".join(map(str, shaken)))
    return Question("refer", prompt, (Piece(sample.labels[index], anchor(shaken)),))


def choice(topic: str, options: Sequence[str], right: str, rng: np.random.Generator, task: str = "mcq") -> Question:
    """A multiple-choice question with shuffled options, answered `B.text.`"""
    order = [options[i] for i in rng.permutation(len(options))]
    listed = ", ".join(f"{wording.LETTERS[i]}.{text}" for i, text in enumerate(order))
    letter = wording.LETTERS[order.index(right)]
    return plain(task, wording.MCQ.format(topic=topic, options=listed), f"{letter}.{right}.")


def screen(sample: Sample, rng: np.random.Generator, *, third: bool = False) -> Question:
    """The yes/no question of the field's domain; `third` adds the option of an empty field."""
    if is_blood(sample):
        right = "yes" if any(label in members("wbc") for label in sample.labels) else "no"
        return choice(wording.BLOOD_TOPIC, ("no", "yes"), right, rng, "screen")
    options = ["normal", "abnormal"]
    right = "abnormal" if sample.abnormal else "normal"
    if third:
        options.append(wording.NO_CELLS)
        right = right if sample.labels else wording.NO_CELLS
    return choice(wording.SCREEN_TOPIC, options, right, rng, "screen")


SHORT: dict[str, str] = {
    "normal": "NILM",
    "ascus": "ASC-US",
    "lsil": "LSIL",
    "asch": "ASC-H",
    "hsil": "HSIL",
    "scc": "SCC",
    "agc": "AGC",
}


def worst(sample: Sample) -> str | None:
    """The most severe epithelial class of the field, if any."""
    present = [name for name in wording.SEVERITY if name in sample.labels]
    return present[-1] if present else None


def category(sample: Sample, rng: np.random.Generator) -> Question:
    """Which category fits, among three to six options that include the right one and, mostly, `normal`."""
    right = (worst(sample) if sample.abnormal else None) or "normal"
    others = [name for name in ("normal", *wording.SEVERITY) if name != right]
    rng.shuffle(others)
    if "normal" in others and rng.random() < 0.7:
        others.insert(0, others.pop(others.index("normal")))
    names = [right, *others[: int(rng.integers(2, 6))]]
    if rng.random() < 0.5:
        names, right = [SHORT[name] for name in names], SHORT[right]
    return choice(wording.CATEGORY_TOPIC, names, right, rng)


def _count(number: int, one: str, many: str) -> str:
    return f"no {many}" if number == 0 else f"1 {one}" if number == 1 else f"{number} {many}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def describe(sample: Sample) -> Question:
    """One report sentence from the field's truth."""
    if not sample.labels:
        text = "No cells are seen."
    elif sample.domain == "blood-typed":
        text = differential(sample)
    elif sample.domain == "blood":
        white, red, plates = (sample.labels.count(name) for name in ("wbc", "rbc", "platelet"))
        text = (
            f"Blood smear field with {_count(white, 'white blood cell', 'white blood cells')}, "
            f"{'about ' if red > 5 else ''}{_count(red, 'red blood cell', 'red blood cells')} "
            f"and {_count(plates, 'platelet', 'platelets')}."
        )
    elif (name := worst(sample)) is not None:
        number = sum(label in wording.EPITHELIAL for label in sample.labels)
        cells = "1 abnormal cell is seen." if number == 1 else f"{number} abnormal cells are seen."
        text = f"{wording.FULL_NAMES[name]}: {cells}"
    else:
        organisms = [name for name in wording.ORGANISMS if name in sample.labels]
        if organisms:
            text = f"{wording.NEGATIVE}; {_listed([wording.FULL_NAMES[name] for name in organisms])}."
        else:
            text = f"{wording.NEGATIVE}; {_background(sample)}."
    return plain("describe", wording.DESCRIBE, text)


def differential(sample: Sample) -> str:
    """One sentence with the count of every type of nucleated cell, red cells and platelets."""
    red, plates = sample.labels.count("rbc"), sample.labels.count("platelet")
    typed = [
        _count(number, "immature granulocyte" if name == "ig" else name, wording.PLURAL[name])
        for name in wording.NUCLEATED
        if (number := sample.labels.count(name))
    ]
    return (
        f"Blood smear field with {_listed(typed) if typed else 'no white blood cells'}, "
        f"{'about ' if red > 5 else ''}{_count(red, 'red blood cell', 'red blood cells')} "
        f"and {_count(plates, 'platelet', 'platelets')}."
    )


def _background(sample: Sample) -> str:
    present = [name for name in wording.NORMAL if name in sample.labels]
    return f"{_listed([wording.PLURAL[name] for name in present])} are seen" if present else "no cells are seen"


def vqa(sample: Sample, rng: np.random.Generator) -> Question:
    """One of the two free questions about a cervical field."""
    if rng.random() < 0.5:
        present = [name for name in wording.SEVERITY if name in sample.labels]
        text = f"Yes, abnormal cells were found: {_listed(present)}." if present else "No abnormal cells were found."
        return plain("vqa", wording.VQA_ABNORMAL, text)
    text = _background(sample)
    return plain("vqa", wording.VQA_BACKGROUND, f"{text[0].upper()}{text[1:]}.")


def ask(sample: Sample, rng: np.random.Generator, *, most: int = MAX_OBJECTS) -> list[Question]:
    """A mixed set of questions about one field. `most` bounds the boxes per answer (the curriculum's handle)."""
    questions: list[Question] = []
    names = [*classes_of(sample.domain), *([wording.ABNORMAL] if sample.domain == "cervix" else [])]
    counts = {name: sum(label in members(name) for label in sample.labels) for name in names}
    present = [name for name in names if 0 < counts[name] <= most]
    absent = [name for name in names if counts[name] == 0]
    telling = {"wbc", *wording.NUCLEATED} if is_blood(sample) else {wording.ABNORMAL, *wording.EPITHELIAL}
    if present:
        weight = np.array([3.0 if name in telling else 1.0 for name in present])
        picked = rng.choice(len(present), min(4, len(present)), replace=False, p=weight / weight.sum())
        questions += [ground(sample, present[i]) for i in picked]
    if absent:
        questions += [ground(sample, str(rng.choice(absent))) for _ in range(2 if rng.random() < 0.4 else 1)]
    if sample.domain == "cervix" and rng.random() < 0.5 and counts[wording.ABNORMAL] == 0:
        questions.append(ground(sample, wording.ABNORMAL))
    cells = np.array([0.4 if label in ("rbc", "neutrophil") else 1.0 for label in sample.labels])
    if len(cells):
        picked = rng.choice(len(cells), min(3, len(cells)), replace=False, p=cells / cells.sum())
        questions += [refer(sample, int(i), rng) for i in picked]
    questions.append(screen(sample, rng))
    if (typed := white_type(sample, rng)) is not None and rng.random() < 0.8:
        questions.append(typed)
    if sample.domain == "cervix":
        if rng.random() < 0.3:
            questions.append(screen(sample, rng, third=True))
        if rng.random() < 0.6:
            questions.append(category(sample, rng))
        if rng.random() < 0.4:
            questions.append(vqa(sample, rng))
    if rng.random() < 0.4:
        questions.append(describe(sample))
    return [questions[i] for i in rng.permutation(len(questions))]
