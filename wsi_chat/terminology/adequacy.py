"""When a specimen can be assessed: the rule in words, and the parts of it that can be computed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from wsi_chat.schema import Record
from wsi_chat.terminology.fields import Code, Misfit, Text


class Minimum(Record):
    """The fewest cells (or groups of cells) of an adequate specimen of one preparation.

    ``upper`` closes the range where the source gives one (8,000 to 12,000): the specimen is adequate at ``upper``
    and inadequate below ``count``. ``discretion`` is the lower bound that a laboratory may accept after
    therapy or with atrophy, where the user says that it applies. ``labels`` are the classes whose sum is counted;
    empty where no model's class means them.
    """

    preparation: Text
    count: int = Field(ge=1)
    upper: int | None = Field(default=None, ge=1)
    discretion: int | None = Field(default=None, ge=1)
    unit: Literal["cells", "groups"] = "cells"
    cells_per_group: int | None = Field(default=None, ge=1)
    labels: tuple[Code, ...] = ()
    source: Text

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.upper is not None and self.upper < self.count:
            raise Misfit("lies below count", path="upper", value=self.upper, hint=f"Give {self.count} or more.")
        if self.discretion is not None and self.discretion > self.count:
            hint = f"Give {self.count} or less."
            raise Misfit("lies above count", path="discretion", value=self.discretion, hint=hint)
        return self


class Component(Record):
    """Cells whose presence or absence is noted and decides nothing (the transformation zone)."""

    code: Code
    name: Text
    count: int = Field(ge=1)
    labels: tuple[Code, ...] = Field(min_length=1)
    source: Text


class Obscuring(Record):
    """The share of fields (0..1) beyond which blood, inflammation or the like make a specimen unsatisfactory.

    ``question`` with its ``options`` is what the sampled tiles are asked, and ``positive`` the option that means
    obscured.
    """

    maximum: float = Field(gt=0.0, lt=1.0)
    question: Text
    options: tuple[Text, ...] = Field(min_length=2)
    positive: Text
    source: Text

    @model_validator(mode="after")
    def _positive_is_an_option(self) -> Self:
        if self.positive not in self.options:
            hint = f"Choose one of: {', '.join(self.options)}."
            raise Misfit("is not among the options", path="positive", value=self.positive, hint=hint)
        return self


class AdequacyRule(Record):
    """When a specimen can be assessed, as the system words it, and the parts of it that can be computed.

    ``kind`` is ``cells`` or ``groups`` where a minimum is counted, ``text`` where the rule is words only, and
    ``none`` where the system has no rule, or its figures are not held here.
    """

    kind: Literal["cells", "groups", "text", "none"]
    text: Text
    minima: tuple[Minimum, ...] = ()
    components: tuple[Component, ...] = ()
    abnormal_is_adequate: bool = False
    obscuring: Obscuring | None = None
    source: Text

    @property
    def counted_labels(self) -> tuple[str, ...]:
        """Every class that a minimum counts, in the order of the file."""
        return tuple(dict.fromkeys(code for minimum in self.minima for code in minimum.labels))

    @property
    def asked_labels(self) -> tuple[str, ...]:
        """Every class that a minimum or a component counts, in the order of the file."""
        noted = [code for component in self.components for code in component.labels]
        return tuple(dict.fromkeys([*self.counted_labels, *noted]))

    @model_validator(mode="after")
    def _minima_fit_kind(self) -> Self:
        if self.kind in ("cells", "groups"):
            if not self.minima:
                hint = "List a preparation and its count."
                raise Misfit(
                    f"kind {self.kind!r} needs at least one entry under minima", path="minima", value=[], hint=hint
                )
            for n, minimum in enumerate(self.minima):
                if minimum.unit != self.kind:
                    raise Misfit(
                        f"kind {self.kind!r} needs minima counted in {self.kind}",
                        path=f"minima[{n}].unit",
                        value=minimum.unit,
                        hint=f"Write unit: {self.kind}, or change adequacy.kind.",
                    )
        return self
