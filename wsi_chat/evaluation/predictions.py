"""Reads a file of predictions, ours or another program's: JSONL or a JSON array of prompt, predict and label."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.errors import SettingError
from wsi_chat.evaluation.recognition import KINDS, Kind, question_of, recognise, turns_in
from wsi_chat.schema import Answer

if TYPE_CHECKING:
    from wsi_chat.dialects import Dialect

PROMPT = ("prompt", "question", "query", "input", "instruction")
PREDICT = ("predict", "prediction", "pred", "response", "output", "generated", "answer")
LABEL = ("label", "answer_gt", "gt_answer", "ground_truth", "reference", "target", "gt")
"""Column names in use; the first that a row has counts. EndoChat writes question, answer and answer_gt."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer beside its label. ``image`` is what intervals are drawn by: the last image, else the line.

    ``size`` is (width, height) of that image in pixels, None where the file does not say. ``confidence`` is the
    mean probability of the answer's tokens, where the file has it. ``dialect`` and ``label_dialect`` are names.
    """

    line: int
    question: str
    predict: str
    label: str
    kind: Kind
    image: str
    status: str = "ok"
    size: tuple[float, float] | None = None
    confidence: float | None = None
    dialect: str = ""
    label_dialect: str = ""

    @property
    def answer(self) -> Answer:
        """The prediction as an engine would have given it."""
        status = self.status if self.status in ("truncated", "failed") else "ok"
        return Answer("", "vqa", self.predict, status=status)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The rows of a file. ``skipped`` is (line, reason) of lines that are no prediction; ``named``: with images."""

    path: Path
    rows: tuple[Prediction, ...]
    skipped: tuple[tuple[int, str], ...]
    named: bool


def read_predictions(path: Path) -> Predictions:
    """Every row of the file.

    Raises:
        SettingError: it cannot be read, or holds no row with a prediction and a label.
    """
    rows: list[Prediction] = []
    skipped: list[tuple[int, str]] = []
    named = False
    for line, record in _records(path):
        if isinstance(record, str):
            skipped.append((line, record))
            continue
        row = _prediction(line, record)
        if isinstance(row, str):
            skipped.append((line, row))
        else:
            rows.append(row)
            named |= not row.image.startswith("line ")
    if not rows:
        first = f" (line {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise SettingError(
            f"{path} holds no prediction{first}.",
            hint="Give rows with prompt, predict and label, as infer writes them.",
        )
    return Predictions(path, tuple(rows), tuple(skipped), named)


def _records(path: Path) -> list[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read: {error}.", hint="Give a .jsonl or .json file.") from error
    if text.lstrip().startswith("["):
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SettingError(
                f"{path} is not JSON: {error}.", hint="Give a JSON array, or one object a line."
            ) from error
        return [(n, item if isinstance(item, dict) else "is not an object") for n, item in enumerate(content, start=1)]
    found: list[tuple[int, Any]] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            item = json.loads(raw)
        except ValueError as error:
            found.append((number, f"is not JSON ({error})"))
            continue
        found.append((number, item if isinstance(item, dict) else "is not an object"))
    return found


def _text(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    value = next((record[name] for name in names if name in record), None)
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _prediction(line: int, record: Mapping[str, Any]) -> Prediction | str:
    label = _text(record, LABEL)
    if label is None:
        return "has no label"
    if not any(name in record for name in PREDICT):
        return "has no prediction"
    predict = _text(record, PREDICT)
    prompt = _text(record, PROMPT) or ""
    question = question_of(prompt)
    turns = record.get("turns") if isinstance(record.get("turns"), int) else turns_in(prompt)
    tag = str(record.get("main_tag", ""))
    kind = record.get("task")
    images = record.get("images", record.get("image", []))
    images = [images] if isinstance(images, str) else images if isinstance(images, list) else []
    status = str(record.get("status") or ("failed" if predict is None else "ok"))
    if record.get("finish_reason") == "length" and status == "ok":
        status = "truncated"
    return Prediction(
        line=line,
        question=question,
        predict=predict or "",
        label=label,
        kind=kind if kind in KINDS else recognise(question, label, tag=tag, turns=int(turns or 1)),
        image=str(images[-1]) if images else f"line {line}",
        status=status,
        size=_size(record.get("image_sizes")),
        confidence=_confidence(record),
        dialect=str(record.get("dialect") or ""),
        label_dialect=str(record.get("label_dialect") or record.get("dialect") or ""),
    )


def _size(sizes: Any) -> tuple[float, float] | None:
    try:
        width, height = sizes[-1]
        return (float(width), float(height)) if width > 0 and height > 0 else None
    except (TypeError, ValueError, IndexError, KeyError):
        return None


def _confidence(record: Mapping[str, Any]) -> float | None:
    total, tokens = record.get("logprob"), record.get("new_tokens")
    if not isinstance(total, (int, float)) or not isinstance(tokens, int) or tokens < 1:
        return None
    return math.exp(min(0.0, total / tokens))


# -------------------------------------------------------------------------------------------- box grammars

TAGS = (
    ("<region", "cytochat"),
    ("<|box_start|>", "qwen2-vl"),
    ("bbox_2d", "json"),
    ("box_2d", "medgemma"),
    ("<loc", "paligemma"),
    ("<box>", "internvl"),
)


def grammar_of(text: str) -> str:
    """The dialect whose boxes a text holds, empty where it holds none. Bare lists up to 1 are EndoChat's."""
    from wsi_chat.dialects.grammars import GRAMMARS

    low = text.lower()
    tagged = next((name for tag, name in TAGS if tag in low), "")
    if tagged:
        return tagged
    numbers = [number for mark in GRAMMARS["list"](text) if mark.numbers for number in mark.numbers]
    if not numbers:
        return ""
    return "endochat" if max(numbers) <= 1 else "json"


def spoken(texts: list[str], *, default: str = "") -> str:
    """The dialect that most of the texts with boxes are in."""
    count = Counter(name for text in texts if (name := grammar_of(text)))
    return count.most_common(1)[0][0] if count else default


def known_dialect(name: str) -> Dialect | None:
    """The dialect of that name, None where this package has it not (a user's own file, say)."""
    from wsi_chat.dialects import get_dialect

    if not name:
        return None
    try:
        return get_dialect(name)
    except SettingError:
        return None
