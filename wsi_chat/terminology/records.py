"""The records that a reporting system is made of: labels, categories, questions, wording."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from wsi_chat.schema import Record
from wsi_chat.terminology.fields import Axis, CategoryAxis, Channel, Code, Misfit, Percent, Text, repeated


class Label(Record):
    """Something a model can point at. ``code`` is the token that the model is asked for and answers with.

    ``color`` is red, green, blue, 0..255. ``ask`` says whether detailed tiles are grounded for it by default,
    ``ask_if_known`` that they are where the model's dialect lists the class. Others are only ever counted to
    judge adequacy, or where a model names them unasked. ``singular`` is the noun for one of
    ``plural``, the name where it is not given. ``kind_of`` names the label of which this is a kind: each cell of this
    label counts as one of that too (a neutrophil is a white cell).
    """

    code: Code
    name: Text
    long_name: Text
    plural: Text
    axis: Axis
    abnormal: bool
    color: tuple[Channel, Channel, Channel]
    ask: bool
    ask_if_known: bool = False
    kind_of: Code | None = None
    singular: Text | None = None
    source: Text

    def noun(self, n: int) -> str:
        """What so many of them are called after the number: ``1 platelet``, ``21 platelets``."""
        return (self.singular or self.name) if n == 1 else self.plural


class DifferentialRule(Record):
    """Cells of ``whole`` that are counted by type, in percent of those that a type was given to.

    ``per_field`` are labels counted beside them in each field. Below ``few`` and below ``reference`` typed cells the
    report says how many a manual count takes.
    """

    whole: Code
    types: tuple[Code, ...] = Field(min_length=2)
    per_field: tuple[Code, ...] = ()
    few: int = Field(ge=1)
    few_source: Text
    reference: int = Field(ge=1)
    reference_source: Text


class Risk(Record):
    """Risk of malignancy of a category in percent, as published: a mean, and both ends of ``span`` where given.

    It describes patients in published series; it is no probability for the slide at hand.
    """

    mean: Percent
    low: Percent | None = None
    high: Percent | None = None
    span: Literal["range", "95% CI"] | None = None
    source: Text

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if len({self.low is None, self.high is None, self.span is None}) > 1:
            hint = "Give all three, or only the mean."
            raise Misfit("a risk has low, high and span, or none of them", path="", value=self.mean, hint=hint)
        if self.low is not None and self.high is not None and not self.low <= self.mean <= self.high:
            raise Misfit(
                f"lies outside its range {self.low:g} to {self.high:g}",
                path="mean",
                value=self.mean,
                hint="Copy the three figures again.",
            )
        return self


class Hedge(Record):
    """Graver categories that the system's wording allows to be left open: "LSIL; HSIL cannot be excluded"."""

    categories: tuple[Code, ...] = Field(min_length=1)
    source: Text


class Category(Record):
    """A diagnostic category. ``order`` grows with severity and compares within one ``axis``.

    ``from_labels`` are the labels whose findings support it; empty where no label of a model does, so that
    the category is listed but never given. ``min_findings`` merged findings of those labels, or of graver ones
    on the axis, are needed. ``min_age`` withholds it unless the patient's age was supplied and is at least that.
    ``cannot_exclude`` names the graver categories that may be left open beside it. An ``abnormal`` category is
    only ever given to a slide whose verdict is abnormal; a benign neoplasm is one.
    """

    code: Code
    name: Text
    long_name: Text
    axis: CategoryAxis
    order: int = Field(ge=0)
    abnormal: bool
    from_labels: tuple[Code, ...] = ()
    min_findings: int = Field(default=1, ge=1)
    min_findings_source: Text = "house"
    min_age: int | None = Field(default=None, ge=0, le=120)
    cannot_exclude: Hedge | None = None
    risk: Risk | None = None
    source: Text


class ScreenQuestion(Record):
    """The multiple-choice question asked of every tile. ``positive`` is the option that raises the score.

    ``about_abnormality`` is False where the question looks for something else (a white cell): its answer then
    never makes a slide normal or abnormal.
    """

    topic: Text
    options: tuple[Text, ...] = Field(min_length=2)
    positive: Text
    about_abnormality: bool
    source: Text

    @model_validator(mode="after")
    def _options_are_distinct(self) -> Self:
        twice = repeated(option.casefold() for option in self.options)
        if twice:
            hint = "Give each option once."
            raise Misfit(
                f"options listed twice: {', '.join(twice)}", path="options", value=list(self.options), hint=hint
            )
        if self.positive not in self.options:
            hint = f"Choose one of: {', '.join(self.options)}."
            raise Misfit(f"{self.positive!r} is not among the options", path="positive", value=self.positive, hint=hint)
        return self


class FreeQuestion(Record):
    """A question in words that suits this specimen: offered in the conversation, asked of no tile by itself."""

    text: Text
    source: Text


class Note(Record):
    """What a reader of this system's reports should know."""

    text: Text
    source: Text


class Wording(Record):
    """How a report says each verdict; full sentences without numbers, which the report adds."""

    normal: Text
    abnormal: Text
    indeterminate: Text
    unsatisfactory: Text
    counted: Text
    source: Text
