"""What comes back from one question: the answer about each field, and the answer as a whole."""

from __future__ import annotations

from wsi_chat.schema import DISCLAIMER, AnswerStatus, Box, LabelledBox, Record, TaskName


class FieldAnswer(Record):
    """The answer about one field. ``box`` is the level-0 rectangle shown; ``boxes`` are level-0 pixels."""

    id: str
    box: Box
    mpp: float | None
    answer: str
    probabilities: dict[str, float] | None = None
    boxes: tuple[LabelledBox, ...] = ()
    status: AnswerStatus = "ok"
    error: str = ""


class UnreadField(Record):
    """A field that shows a part of what was asked about, and was not read. ``box`` is level-0 pixels."""

    id: str
    box: Box


class AskResult(Record):
    """The answer to one question.

    ``boxes`` are level-0 pixels; a cell that several fields show is listed once. ``task_reason`` says how the task was
    chosen; ``target`` is the class that was located, or the positive option of a screening question; ``notes`` what to
    know when reading the answer.

    A screening question about several fields is answered by the highest of them: ``highest`` is its id,
    ``probabilities`` are its own, ``positive_fields`` counts the fields that are positive. ``choice`` is the negative
    option only where every field was read and answered, and None where nothing positive was found in a part.
    The probabilities of any other choice are the mean over fields. ``fields_total`` counts the fields that show all
    that was asked about, ``unread`` are those that were left out.
    """

    question: str
    task: TaskName
    task_reason: str
    target: str = ""
    answer: str
    status: AnswerStatus
    choice: str | None = None
    probabilities: dict[str, float] | None = None
    boxes: tuple[LabelledBox, ...] = ()
    dropped_boxes: int = 0
    region: Box | None = None
    fields: tuple[FieldAnswer, ...] = ()
    fields_total: int = 1
    positive_fields: int | None = None
    highest: str | None = None
    unread: tuple[UnreadField, ...] = ()
    notes: tuple[str, ...] = ()
    file_name: str
    model: str
    dialect: str
    queries: int
    seconds: float
    drawing: str | None = None
    disclaimer: str = DISCLAIMER
