"""The records of a reporting system, and what must hold between them.

A system that validates has unique codes, categories that point only at its own labels, a screen question
whose positive option is among its options, and a citation behind every ``source``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from wsi_chat.errors import TerminologyError
from wsi_chat.schema import Record

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Channel = Annotated[int, Field(ge=0, le=255)]
Axis = Literal["squamous", "glandular", "organism", "benign", "blood", "generic"]
CategoryAxis = Literal["negative", "squamous", "glandular", "general"]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]


class Label(Record):
    """Something a model can point at. ``code`` is the token that the model is asked for and answers with.

    ``color`` is red, green, blue, 0..255. ``ask`` says whether detailed tiles are grounded for it by default.
    """

    code: Code
    name: Text
    long_name: Text
    plural: Text
    axis: Axis
    abnormal: bool
    color: tuple[Channel, Channel, Channel]
    ask: bool
    source: Text


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
        if not (self.low is None) == (self.high is None) == (self.span is None):
            raise ValueError("a risk has low, high and span, or none of them")
        if self.low is not None and self.high is not None and not self.low <= self.mean <= self.high:
            raise ValueError(f"risk {self.mean} lies outside its range {self.low} to {self.high}")
        return self


class Category(Record):
    """A diagnostic category. ``order`` grows with severity and compares within one ``axis``.

    ``from_labels`` are the labels whose findings support it; empty where no label of a model does, so that
    the category is listed but never given. ``min_findings`` merged findings of those labels are needed. An
    ``abnormal`` category is only ever given to a slide whose verdict is abnormal; a benign neoplasm is one.
    """

    code: Code
    name: Text
    long_name: Text
    axis: CategoryAxis
    order: int = Field(ge=0)
    abnormal: bool
    from_labels: tuple[Code, ...] = ()
    min_findings: int = Field(default=1, ge=1)
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
        repeated = _repeated(option.casefold() for option in self.options)
        if repeated:
            raise ValueError(f"options listed twice: {', '.join(repeated)}")
        if self.positive not in self.options:
            raise ValueError(f"positive {self.positive!r} is not among the options {list(self.options)}")
        return self


class Minimum(Record):
    """The fewest cells (or groups of cells) of an adequate specimen of one preparation.

    ``upper`` closes the range where the source gives one (8,000 to 12,000).
    """

    preparation: Text
    count: int = Field(ge=1)
    upper: int | None = Field(default=None, ge=1)
    unit: Literal["cells", "groups"] = "cells"
    cells_per_group: int | None = Field(default=None, ge=1)


class AdequacyRule(Record):
    """When a specimen can be assessed, as the system words it, and the parts of it that can be computed.

    ``kind`` is ``cells`` or ``groups`` where a minimum is counted, ``text`` where the rule is words only, and
    ``none`` where the system has no rule. ``max_obscured`` is the fraction of cells (0..1) beyond which the
    specimen is unsatisfactory.
    """

    kind: Literal["cells", "groups", "text", "none"]
    text: Text
    minima: tuple[Minimum, ...] = ()
    abnormal_is_adequate: bool = False
    max_obscured: float | None = Field(default=None, gt=0.0, le=1.0)
    source: Text

    @model_validator(mode="after")
    def _minima_fit_kind(self) -> Self:
        if self.kind in ("cells", "groups"):
            if not self.minima:
                raise ValueError(f"kind {self.kind!r} needs at least one entry under minima")
            if any(minimum.unit != self.kind for minimum in self.minima):
                raise ValueError(f"kind {self.kind!r} needs minima counted in {self.kind}")
        return self


class Wording(Record):
    """How a report says each verdict; full sentences without numbers, which the report adds."""

    normal: Text
    abnormal: Text
    indeterminate: Text
    unsatisfactory: Text
    counted: Text
    source: Text


class System(Record):
    """One reporting system: what to ask, what the answers are called, and what may be concluded.

    ``specimens`` are the codes that ``--specimen`` accepts. ``mpp`` is the default resolution of tiles in
    um/px. ``negative_category`` is the category of a slide whose verdict is normal, ``inadequate_category``
    that of an unsatisfactory one; None where the system has none that a model may give. ``never_claim``
    lists what no image shows and no report may state of its own. ``citations`` maps the keys used in every
    ``source`` to the work meant.
    """

    code: Code
    name: Text
    version: Text
    specimens: tuple[Code, ...] = Field(min_length=1)
    kind: Literal["categories", "counts", "generic"]
    screen: ScreenQuestion
    labels: tuple[Label, ...] = Field(min_length=1)
    categories: tuple[Category, ...] = ()
    negative_category: Code | None = None
    inadequate_category: Code | None = None
    adequacy: AdequacyRule
    mpp: float = Field(gt=0.05, lt=5.0)
    mpp_source: Text
    wording: Wording
    never_claim: tuple[Text, ...]
    never_claim_source: Text
    notes: tuple[Text, ...] = ()
    citations: dict[str, Text]

    @property
    def sources(self) -> tuple[str, ...]:
        """The works cited, in the order of the file, without the project's own choices."""
        return tuple(text for key, text in self.citations.items() if key != "house")

    def label(self, code: str) -> Label:
        """The label with this code.

        Raises:
            TerminologyError: the system has no such label.
        """
        for label in self.labels:
            if label.code == code:
                return label
        raise TerminologyError(
            f"{self.code} has no label {code!r}.",
            hint=f"Use one of: {', '.join(label.code for label in self.labels)}.",
        )

    def category(self, code: str) -> Category:
        """The category with this code.

        Raises:
            TerminologyError: the system has no such category.
        """
        for category in self.categories:
            if category.code == code:
                return category
        raise TerminologyError(
            f"{self.code} has no category {code!r}.",
            hint=f"It has: {', '.join(category.code for category in self.categories) or 'none'}.",
        )

    def severity(self, code: str) -> int:
        """How grave a label is, for choosing between labels given to one cell.

        That of the gravest category it supports plus one; 1 for an abnormal label without a category; else 0.
        """
        label = self.label(code)
        orders = [c.order for c in self.categories if code in c.from_labels]
        return max(orders, default=0) + 1 if label.abnormal else 0

    @property
    def asked_labels(self) -> tuple[Label, ...]:
        """The labels that detailed tiles are grounded for by default, in the order of the file."""
        return tuple(label for label in self.labels if label.ask)

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        for what, codes in (
            ("label", [label.code for label in self.labels]),
            ("category", [category.code for category in self.categories]),
            ("specimen", list(self.specimens)),
        ):
            repeated = _repeated(codes)
            if repeated:
                raise ValueError(f"{what} codes listed twice: {', '.join(repeated)}")
        known = {label.code for label in self.labels}
        for category in self.categories:
            strange = [code for code in category.from_labels if code not in known]
            if strange:
                raise ValueError(f"category {category.code} names unknown labels: {', '.join(strange)}")
            harmless = [code for code in category.from_labels if not self.label(code).abnormal]
            if category.abnormal and harmless:
                raise ValueError(f"category {category.code} is abnormal yet drawn from {', '.join(harmless)}")
        ranks = Counter((category.axis, category.order) for category in self.categories)
        tied = [f"{axis} {order}" for (axis, order), n in ranks.items() if n > 1]
        if tied:
            raise ValueError(f"two categories share one order on an axis: {', '.join(tied)}")
        for field in ("negative_category", "inadequate_category"):
            code = getattr(self, field)
            if code is not None and code not in {c.code for c in self.categories if not c.abnormal}:
                raise ValueError(f"{field} {code!r} is not a category that is free of abnormality")
        if self.kind == "categories" and not self.categories:
            raise ValueError("kind 'categories' needs categories")
        if self.kind == "counts" and self.screen.about_abnormality:
            raise ValueError("kind 'counts' needs a screen question that is not about abnormality")
        if self.kind != "counts" and not self.screen.about_abnormality:
            raise ValueError(f"kind {self.kind!r} needs a screen question about abnormality")
        missing = sorted({key for key in self._cited() if key not in self.citations})
        if missing:
            raise ValueError(f"sources without an entry under citations: {', '.join(missing)}")
        return self

    def _cited(self) -> Iterable[str]:
        yield from (self.screen.source, self.adequacy.source, self.wording.source)
        yield from (self.mpp_source, self.never_claim_source)
        yield from (label.source for label in self.labels)
        for category in self.categories:
            yield category.source
            if category.risk is not None:
                yield category.risk.source


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, n in Counter(values).items() if n > 1]
