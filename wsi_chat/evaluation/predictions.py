"""Reads a file of predictions, ours or another program's: JSONL or a JSON array of prompt, predict and label."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.bounded import iter_json_records
from wsi_chat.dialects import Dialect, get_dialect
from wsi_chat.dialects.grammars import GRAMMARS, POINT_PAIR
from wsi_chat.dialects.reasoning import final_answer, unfinished
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.evaluation.recognition import KINDS, Kind, question_of, recognise, turns_in
from wsi_chat.schema import Answer

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
        DocumentError: it cannot be read within the bounds of `wsi_chat.bounded`.
        SettingError: it holds no row with a prediction and a label.
    """
    rows: list[Prediction] = []
    skipped: list[tuple[int, str]] = []
    named = False
    for line, record in iter_json_records(path):
        if isinstance(record, DocumentError):
            skipped.append((line, record.reason))
            continue
        row = _prediction(line, record) if isinstance(record, dict) else "is not an object"
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


def _text(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    value = next((record[name] for name in names if name in record), None)
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _prediction(line: int, record: Mapping[str, Any]) -> Prediction | str:
    label = _text(record, LABEL)
    if label is None:
        return "has no label"
    if not any(name in record for name in PREDICT):
        return "has no prediction"
    written = _text(record, PREDICT)
    predict = None if written is None else final_answer(written)
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
    if status == "ok" and unfinished(written or ""):
        status = "truncated"
    return Prediction(
        line=line,
        question=question,
        predict=predict or "",
        label=label,
        kind=kind
        if kind in KINDS
        else recognise(question, label, tag=tag, turns=int(turns or 1), predict=predict or ""),
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
    """The dialect whose boxes a text holds, empty where it holds none.

    Bare lists up to 1 are EndoChat's, bare ``(x1,y1),(x2,y2)`` what is left of Qwen2-VL's where a server leaves out
    special tokens.
    """
    low = text.lower()
    tagged = next((name for tag, name in TAGS if tag in low), "")
    if tagged:
        return tagged
    if POINT_PAIR.search(text):
        return "qwen2-vl"
    numbers = [number for mark in GRAMMARS["list"](text) if mark.numbers for number in mark.numbers]
    if not numbers:
        return ""
    return "endochat" if max(numbers) <= 1 else "json"


def main_dialect(texts: list[str], *, default: str = "") -> str:
    """The dialect that most of the texts with boxes are in."""
    count = Counter(name for text in texts if (name := grammar_of(text)))
    return count.most_common(1)[0][0] if count else default


def known_dialect(name: str) -> Dialect | None:
    """The dialect of that name, None where this package has it not (a user's own file, say)."""
    if not name:
        return None
    try:
        return get_dialect(name)
    except SettingError:
        return None
