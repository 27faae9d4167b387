"""infer(): asks a model every question of a data set in the rows' own words, and writes down each answer at once.

A rerun of the same command goes on from what is there: no answered row is asked again, failed ones are.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wsi_chat.bounded import load_json
from wsi_chat.datasets.info import DataSet
from wsi_chat.datasets.pictures import file_sha256, load_picture
from wsi_chat.datasets.rows import BadRow, Row, read_rows
from wsi_chat.dialects.frame import fit
from wsi_chat.dialects.reasoning import unfinished
from wsi_chat.errors import AnswerError, DocumentError, OutputError, SlideError
from wsi_chat.evaluation.recognition import question_of, recognise
from wsi_chat.inference.coordinates import moves, to_given, to_sent
from wsi_chat.inference.output import AnswerFile, Place
from wsi_chat.schema import Answer, Query, Sampling, TaskName, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

    from wsi_chat.dialects import Dialect, Frame
    from wsi_chat.engines import Engine

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
SHORT_ANSWER = 128
"""Room for the answer to a choice, a single phrase or a class name; a model that goes on is not answering."""
SHORT_KINDS = ("mcq", "refer", "phrase")
COMPARED = 20
"""Answers of an earlier run whose keys are compared before anything is asked."""

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Inferred:
    """What a run did. ``new``/``reused`` answers; ``failed`` is (line, reason) of what could not be answered.

    ``long_prompts``: of the new ones, how many prompts are longer than the cut-off that was named.
    """

    path: Path
    rows: int = 0
    new: int = 0
    reused: int = 0
    truncated: int = 0
    long_prompts: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)

    @property
    def answers(self) -> int:
        return self.new + self.reused


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A question on its way: what its line in the file will say but for the answer."""

    place: Place
    head: dict[str, Any]
    frame: Frame | None
    back: bool


def infer(
    data: DataSet,
    out: Path,
    *,
    engine: Engine,
    dialect: Dialect,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_samples: int | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    cutoff_tokens: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Inferred:
    """Predict every assistant turn of a data set, with the true earlier turns as context.

    Prompts go out as they stand in the rows. Pictures are sized as the dialect says, and where its boxes are
    pixels of the picture as sent, those in the prompts are moved along and those in the answers back, so that
    ``predict`` and ``label`` speak of the same picture: the one in the data set.

    Args:
        out: JSONL, one line per answer, in the order of the data set at the end.
        max_new_tokens: room for an answer; less where the dialect or the kind of question needs less.
        max_samples: ask only the first N rows.
        sampling: how answers are drawn; None: greedily.
        cutoff_tokens: longer prompts are counted (``long_prompts``) and asked whole: a prompt that is cut off asks
            something else.
        progress: called as ``progress(answers written, answers in all)``.

    Raises:
        SettingError: the data set as a whole cannot be read.
        OutputError: ``out`` cannot be written, or holds the answers of another run.
        EngineDied: the engine died twice; what was answered is in ``out``.
    """
    asked = _Asked(
        data, engine, dialect, max_new_tokens=max_new_tokens, max_samples=max_samples, seed=seed, sampling=sampling
    )
    total = sum(len(row.asked) for row in asked.rows())
    done = Inferred(out)
    with AnswerFile(out, overwrite=overwrite) as file:
        if file.known and not asked.continues(file):
            raise OutputError(
                f"{out} holds the answers of another run (other data, model, dialect or settings)",
                hint="Choose another --save-name, or --overwrite it.",
            )
        _drop_gone(file, asked, done.path)
        waiting: dict[str, _Waiting] = {}

        def write(row: dict[str, Any], line: int) -> None:
            file.append(row)
            done.new += 1
            if row["status"] == "failed":
                done.failed.append((line, str(row["error"])))
            done.truncated += row["status"] == "truncated"
            progress(done.answers, total)

        for answer in engine.answer(asked.queries(file, waiting, done, write)):
            if answer.key in waiting:
                found = waiting.pop(answer.key)
                done.long_prompts += cutoff_tokens is not None and (answer.prompt_tokens or 0) > cutoff_tokens
                write(_line(found, answer, dialect), found.place[0])
        for key, found in waiting.items():
            # an engine that swallowed a question must not make it vanish
            lost = Answer(key, "vqa", "", status="failed", finish_reason="error", error="no answer came back")
            write(_line(found, lost, dialect), found.place[0])
        file.put_in_order()
    done.failed.sort(key=lambda failure: failure[0])
    return done


def _drop_gone(file: AnswerFile, asked: _Asked, path: Path) -> None:
    if asked.max_samples is not None:
        return
    there = {(row.line, number) for row in asked.rows() for number in range(1, len(row.asked) + 1)}
    gone = file.places - there
    for place in gone:
        file.forget(place)
    if gone:
        log.warning("%s: %d answers are to rows that the data set no longer has; left out", path, len(gone))


def _line(found: _Waiting, answer: Answer, dialect: Dialect) -> dict[str, Any]:
    """The line of the file: what both seed systems write first, then what is needed to judge and repeat it."""
    predict = answer.text
    if found.back and found.frame is not None:
        predict = to_given(predict, found.frame, dialect)
    head = dict(found.head)
    carried = head.pop("carried")
    return {
        "prompt": head.pop("prompt"),
        "predict": predict,
        "label": head.pop("label"),
        **head,
        "status": "truncated" if answer.status == "ok" and unfinished(answer.text) else answer.status,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        "logprob": answer.logprob,
        "new_tokens": answer.new_tokens,
        "prompt_tokens": answer.prompt_tokens,
        "seconds": round(answer.seconds, 6),
        **({"raw_predict": answer.text} if predict != answer.text else {}),
        **carried,
    }


class _Asked:
    """The questions of a data set for one model: as queries, and as the keys by which answers are known again."""

    def __init__(
        self,
        data: DataSet,
        engine: Engine,
        dialect: Dialect,
        *,
        max_new_tokens: int,
        max_samples: int | None,
        seed: int,
        sampling: Sampling | None = None,
    ) -> None:
        self.data, self.engine, self.dialect = data, engine, dialect
        self.max_new_tokens, self.max_samples = max_new_tokens, max_samples
        self.sampling = sampling
        self.decoding = {"seed": seed, **({"greedy": True} if sampling is None else asdict(sampling))}
        self.label_dialect = _built_with(data.files[0].path.parent)
        if self.label_dialect and self.label_dialect != dialect.name:
            log.warning(
                "%s was built for the dialect %s and is asked in %s: its prompts go out in their own words",
                data.path, self.label_dialect, dialect.name,
            )  # fmt: skip
        self._digests: dict[Path, str] = {}

    def rows(self) -> Iterator[Row | BadRow]:
        return islice(read_rows(self.data), self.max_samples)

    # ------------------------------------------------------------------------------------------ keys

    def key(self, row: Row, place: int, room: int) -> str:
        """sha256 over everything that determines the answer; pictures by the bytes of their files."""
        content = {
            "row": [row.line, place],
            "turns": [[turn.role, turn.text] for turn in row.turns[: place + 1]],
            "images": [self._digest(row.picture(image)) for image in row.images[: row.shown(place)]],
            "max_tokens": room,
            "decoding": self.decoding,
            "model": self.engine.model_id,
            "dialect": self.dialect.identity,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = file_sha256(path)
        return self._digests[path]

    def continues(self, file: AnswerFile) -> bool:
        """Whether any of the first answers in the file is to a question of this run."""
        wanted = set(islice(sorted(file.known), COMPARED))
        last = max(line for line, _ in wanted)
        for row in self.rows():
            if row.line > last:
                break
            if isinstance(row, BadRow):
                continue
            for number, place in enumerate(row.asked, start=1):
                if (row.line, number) in wanted:
                    try:
                        if file.known[row.line, number] == self.key(row, place, self.room(row, place)):
                            return True
                    except SlideError:
                        continue
        return False

    def kind(self, row: Row, place: int) -> str:
        tag = str(row.carried.get("main_tag", ""))
        question = question_of(row.turns[place].text)
        return recognise(question, row.label(place) or "", tag=tag, turns=len(row.asked))

    def room(self, row: Row, place: int) -> int:
        """Tokens for the answer: what was asked for, or less where the dialect says that it needs less."""
        kind = self.kind(row, place)
        caps: dict[str, int] = {str(task): number for task, number in self.dialect.spec.max_tokens.items()}
        rest = max(caps.values(), default=self.max_new_tokens)
        cap = caps.get(kind, min(rest, SHORT_ANSWER) if kind in SHORT_KINDS else rest)
        return max(1, min(self.max_new_tokens, cap))

    # ------------------------------------------------------------------------------------------ queries

    def queries(
        self,
        file: AnswerFile,
        waiting: dict[str, _Waiting],
        done: Inferred,
        write: Callable[[dict[str, Any], int], None],
    ) -> Iterator[Query]:
        """What is still to be asked, pulled as fast as the engine takes it; rows that cannot be are written here."""
        for row in self.rows():
            done.rows += 1
            if isinstance(row, BadRow):
                self._write_bad(row, write)
                continue
            images: list[Image] | None = None
            for number, place in enumerate(row.asked, start=1):
                where = (row.line, number)
                room = self.room(row, place)
                try:
                    key = self.key(row, place, room)
                    if file.known.get(where) == key:
                        done.reused += 1
                        done.truncated += where in file.truncated
                        continue
                    if images is None:
                        images = self._images(row)
                    query, found = self._query(row, place, number, images, key=key, room=room)
                except (SlideError, AnswerError) as error:
                    write(self._unasked(row, place, number, error.message), row.line)
                    continue
                waiting[key] = found
                yield query

    @staticmethod
    def _images(row: Row) -> list[Image]:
        return [load_picture(row.picture(image)) for image in row.images]

    def _query(
        self, row: Row, place: int, number: int, images: list[Image], *, key: str, room: int
    ) -> tuple[Query, _Waiting]:
        frames = [self.dialect.frame(image.size) for image in images]
        moved = moves(self.dialect, frames)
        turns: list[Turn] = []
        if row.turns[0].role != "system" and self.dialect.spec.system:
            turns.append(Turn("system", self.dialect.spec.system))
        for index, turn in enumerate(row.turns[: place + 1]):
            shown = row.shown(index)
            # of several pictures, the numbers in a turn are those of the last one shown by then
            text = to_sent(turn.text, frames[shown - 1], self.dialect) if moved and shown else turn.text
            turns.append(Turn(turn.role, text))
        shown = row.shown(place)
        kind = self.kind(row, place)
        query = Query(
            key=key,
            task="vqa" if kind == "multi-turn" else cast("TaskName", kind),
            turns=tuple(turns),
            images=tuple(fit(image, frame.sent) for image, frame in zip(images[:shown], frames[:shown], strict=True)),
            max_tokens=room,
            tile_id=f"{row.line}.{number}",
            sampling=self.sampling,
        )
        head = self._head(row, place, number, key)
        head["image_sizes"] = [list(frame.given) for frame in frames[:shown]]
        head["sent_sizes"] = [list(frame.sent) for frame in frames[:shown]]
        return query, _Waiting((row.line, number), head, frames[shown - 1] if shown else None, moved)

    def _head(self, row: Row, place: int, number: int, key: str) -> dict[str, Any]:
        return {
            "prompt": row.turns[place].text,
            "label": row.label(place),
            "id": row.id,
            "line": row.line,
            "turn": number,
            "turns": len(row.asked),
            "task": self.kind(row, place),
            "images": list(row.images[: row.shown(place)]),
            "dialect": self.dialect.name,
            "label_dialect": self.label_dialect or self.dialect.name,
            "key": key,
            "carried": dict(row.carried),
        }

    # ------------------------------------------------------------------------------------------ failures

    def _unasked(self, row: Row, place: int, number: int, reason: str) -> dict[str, Any]:
        head = self._head(row, place, number, "")
        found = _Waiting((row.line, number), head, None, False)
        return _line(found, Answer("", "vqa", "", status="failed", finish_reason="error", error=reason), self.dialect)

    def _write_bad(self, row: BadRow, write: Callable[[dict[str, Any], int], None]) -> None:
        for number, (prompt, label) in enumerate(row.asked, start=1):
            head = {
                "prompt": prompt,
                "label": label,
                "id": row.id,
                "line": row.line,
                "turn": number,
                "turns": len(row.asked),
                "task": recognise(question_of(prompt), label or "", tag=str(row.carried.get("main_tag", ""))),
                "images": list(row.images),
                "dialect": self.dialect.name,
                "label_dialect": self.label_dialect or self.dialect.name,
                "key": "",
                "carried": dict(row.carried),
            }
            answer = Answer("", "vqa", "", status="failed", finish_reason="error", error=row.reason)
            write(_line(_Waiting((row.line, number), head, None, False), answer, self.dialect), row.line)


def _built_with(folder: Path) -> str:
    """The name of the dialect that a data set's build.json names, empty where there is none."""
    try:
        return str(load_json(folder / "build.json")["dialect"]["name"])
    except (DocumentError, KeyError, TypeError):
        return ""
