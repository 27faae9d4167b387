"""A reporting system, and what must hold between its parts.

A system that validates has unique codes, categories that point only at its own labels, a screen question
whose positive option is among its options, and a citation behind every ``source``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from wsi_chat.errors import TerminologyError
from wsi_chat.schema import Record
from wsi_chat.terminology.adequacy import AdequacyRule, Component, Minimum
from wsi_chat.terminology.fields import Code, Misfit, Text, repeated
from wsi_chat.terminology.prohibition import Prohibition
from wsi_chat.terminology.records import (
    Category,
    DifferentialRule,
    FreeQuestion,
    Label,
    Note,
    ScreenQuestion,
    Wording,
)
from wsi_chat.terminology.translation import Translation

#: The source of choices that no publication backs; it needs no entry under citations.
HOUSE = "house"


class System(Record):
    """One reporting system: what to ask, what the answers are called, and what may be concluded.

    ``specimens`` are the codes that ``--specimen`` accepts; ``preparations`` says which of them imply a
    preparation. ``mpp`` is the default resolution of tiles in µm/px. ``label_map`` turns other names that a model
    gives into this system's labels, or into nothing (null: left out without a word). ``negative_category`` is the
    category of a slide whose verdict is normal, ``inadequate_category`` that of an unsatisfactory one; None where
    the system has none that a model may give. ``prohibitions`` are what no image shows and no report may state
    of its own. ``citations`` maps the keys used in every ``source`` to the work meant.
    """

    code: Code
    name: Text
    version: Text
    specimens: tuple[Code, ...] = Field(min_length=1)
    preparations: dict[Code, Text] = Field(default_factory=dict)
    kind: Literal["categories", "counts", "generic"]
    screen: ScreenQuestion
    questions: tuple[FreeQuestion, ...] = ()
    labels: tuple[Label, ...] = Field(min_length=1)
    label_map: dict[Text, Code | None] = Field(default_factory=dict)
    label_map_source: Text = "house"
    categories: tuple[Category, ...] = ()
    negative_category: Code | None = None
    inadequate_category: Code | None = None
    adequacy: AdequacyRule
    differential: DifferentialRule | None = None
    mpp: float = Field(gt=0.05, lt=5.0)
    mpp_source: Text
    wording: Wording
    prohibitions: tuple[Prohibition, ...] = Field(min_length=1)
    notes: tuple[Note, ...] = ()
    zh: Translation | None = None
    citations: dict[str, Text]

    @property
    def sources(self) -> tuple[str, ...]:
        """The works cited, in the order of the file, without the project's own choices."""
        return tuple(text for key, text in self.citations.items() if key != HOUSE)

    @property
    def never_claim(self) -> tuple[str, ...]:
        """What no report may state of its own, in words."""
        return tuple(item.text for item in self.prohibitions)

    def violations(self, sentence: str, *, supplied: Collection[str] = ()) -> tuple[Prohibition, ...]:
        """The prohibitions that a sentence breaks.

        Args:
            supplied: codes of ancillary results that the user supplied, and which may therefore be stated.
        """
        return tuple(
            item
            for item in self.prohibitions
            if not (item.ancillary and item.code in supplied) and item.matches(sentence)
        )

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

    def read_label(self, name: str) -> str | None:
        """The label's code for what a cell is called: by code, by display name, and then by ``label_map``.

        Returns:
            The code; an empty text for a name that the map drops; None for a name that the system does not know.
        """
        if any(label.code == name for label in self.labels):
            return name
        folded = name.strip().casefold()
        for label in self.labels:
            if folded in (label.code, label.name.casefold()):
                return label.code
        for other, code in self.label_map.items():
            if other.casefold() == folded:
                return code or ""
        return None

    def kinds_of(self, code: str) -> frozenset[str]:
        """The labels whose cells count as this one: the label itself and every kind of it."""
        return frozenset({code, *(label.code for label in self.labels if label.kind_of == code)})

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

    def labels_to_ask(self, known: Sequence[str] = (), *, age: int | None = None) -> tuple[Label, ...]:
        """The labels that detailed tiles are grounded for, in the order of the file.

        Args:
            known: classes that the model's dialect lists; empty where it takes any name. A label with
                ``ask_if_known`` is asked for where it is among them; types of a differential only where all are.
            age: of the patient in years. Labels of a category with ``min_age`` are asked for from that age on,
                unless the dialect lists classes and not this one.
        """
        aged = {
            code
            for category in self.categories
            if category.min_age is not None and age is not None and age >= category.min_age
            for code in category.from_labels
        }
        types = self.differential.types if self.differential is not None else ()
        partly = set() if set(types) <= set(known) else set(types)
        return tuple(
            label
            for label in self.labels
            if label.ask
            or (label.ask_if_known and label.code in known and label.code not in partly)
            or (label.code in aged and (not known or label.code in known))
        )

    def preparation_of(self, specimen: str | None) -> str | None:
        """The preparation that a specimen code implies (``cervical-lbc``: liquid-based), or None."""
        if specimen is None:
            return None
        return self.preparations.get(specimen.strip().lower().replace("_", "-").replace(" ", "-"))

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        self._codes_are_distinct()
        self._labels_are_known()
        self._categories_are_in_order()
        self._kind_fits()
        for path, key in self._cited():
            if key not in self.citations and key != HOUSE:
                hint = f"Add {key!r} under citations, or name one of: {', '.join(self.citations)}."
                raise Misfit(f"source without an entry under citations: {key}", path=path, value=key, hint=hint)
        return self

    def _codes_are_distinct(self) -> None:
        lists: dict[str, Sequence[str]] = {
            "labels": [label.code for label in self.labels],
            "categories": [category.code for category in self.categories],
            "prohibitions": [item.code for item in self.prohibitions],
            "specimens": self.specimens,
        }
        for name, codes in lists.items():
            for n, code in enumerate(codes):
                if code in codes[:n]:
                    raise Misfit(
                        f"code listed twice: {code}",
                        path=f"{name}[{n}]" if name == "specimens" else f"{name}[{n}].code",
                        value=code,
                        hint=f"It is also {name}[{codes.index(code)}]; give each its own code.",
                    )

    def _labels_are_known(self) -> None:
        known = [label.code for label in self.labels]
        named = [
            (f"categories[{n}].from_labels[{m}]", code)
            for n, category in enumerate(self.categories)
            for m, code in enumerate(category.from_labels)
        ]
        named += [(f"labels[{n}].kind_of", label.kind_of) for n, label in enumerate(self.labels) if label.kind_of]
        rule = self.differential
        if rule is not None:
            named.append(("differential.whole", rule.whole))
            named += [(f"differential.types[{n}]", code) for n, code in enumerate(rule.types)]
            named += [(f"differential.per_field[{n}]", code) for n, code in enumerate(rule.per_field)]
        translated = self.zh.labels if self.zh is not None else {}
        named += [(f"zh.labels.{code}", code) for code in translated]
        named += [(f"label_map.{name}", code) for name, code in self.label_map.items() if code is not None]
        counted: dict[str, Sequence[Minimum | Component]] = {
            "minima": self.adequacy.minima,
            "components": self.adequacy.components,
        }
        for part, entries in counted.items():
            for n, entry in enumerate(entries):
                named += [(f"adequacy.{part}[{n}].labels[{m}]", code) for m, code in enumerate(entry.labels)]
        for path, code in named:
            if code not in known:
                hint = f"Use one of: {', '.join(known)}; or add it under labels."
                raise Misfit(f"names an unknown label: {code}", path=path, value=code, hint=hint)
        for n, category in enumerate(self.categories):
            for m, code in enumerate(category.from_labels):
                if category.abnormal and not self.label(code).abnormal:
                    raise Misfit(
                        f"category {category.code} is abnormal yet drawn from {code}, which is not",
                        path=f"categories[{n}].from_labels[{m}]",
                        value=code,
                        hint=f"Make the label abnormal, or take it out of {category.code}.",
                    )
        for name in self.label_map:
            if name.strip().casefold() in known:
                hint = "Take it out: a label's own code needs no map."
                raise Misfit("maps a label's own code", path=f"label_map.{name}", value=name, hint=hint)
        for name in repeated(name.strip().casefold() for name in self.label_map):
            hint = "Keep one; the case of letters makes no difference."
            raise Misfit(f"name mapped twice: {name}", path="label_map", value=name, hint=hint)

    def _categories_are_in_order(self) -> None:
        places: dict[tuple[str, int], int] = {}
        by_code = {category.code: category for category in self.categories}
        for n, category in enumerate(self.categories):
            first = places.setdefault((category.axis, category.order), n)
            if first != n:
                raise Misfit(
                    f"two categories share one order on an axis: {category.axis} {category.order}",
                    path=f"categories[{n}].order",
                    value=category.order,
                    hint=f"{self.categories[first].code} has it too; number them by severity.",
                )
            for m, code in enumerate(category.cannot_exclude.categories if category.cannot_exclude else ()):
                graver = by_code.get(code)
                if graver is None or graver.axis != category.axis or graver.order <= category.order:
                    raise Misfit(
                        f"{code} is no graver category on the axis of {category.code}",
                        path=f"categories[{n}].cannot_exclude.categories[{m}]",
                        value=code,
                        hint="Only a graver category of the same axis can be left open.",
                    )
        for field in ("negative_category", "inadequate_category"):
            code = getattr(self, field)
            harmless = [category.code for category in self.categories if not category.abnormal]
            if code is not None and code not in harmless:
                hint = f"Choose one of: {', '.join(harmless) or 'none there is'}."
                raise Misfit(
                    f"{field} {code!r} is not a category that is free of abnormality", path=field, value=code, hint=hint
                )

    def _kind_fits(self) -> None:
        if self.kind == "categories" and not self.categories:
            hint = "List them, or write kind: generic."
            raise Misfit("kind 'categories' needs categories", path="categories", value=[], hint=hint)
        if (self.kind == "counts") == self.screen.about_abnormality:
            what = "is not about" if self.kind == "counts" else "is about"
            raise Misfit(
                f"kind {self.kind!r} needs a screen question that {what} abnormality",
                path="screen.about_abnormality",
                value=self.screen.about_abnormality,
                hint="Change kind or the question.",
            )
        known = [minimum.preparation for minimum in self.adequacy.minima]
        for code, preparation in self.preparations.items():
            if code not in self.specimens:
                hint = f"Use one of: {', '.join(self.specimens)}."
                raise Misfit("is none of the specimens", path=f"preparations.{code}", value=code, hint=hint)
            if preparation not in known:
                hint = f"adequacy.minima has: {', '.join(known) or 'none'}."
                raise Misfit("has no minimum", path=f"preparations.{code}", value=preparation, hint=hint)

    def _cited(self) -> Iterable[tuple[str, str]]:
        """Every source with its place in the file."""
        yield from (("screen.source", self.screen.source), ("adequacy.source", self.adequacy.source))
        yield from (("wording.source", self.wording.source), ("mpp_source", self.mpp_source))
        yield "label_map_source", self.label_map_source
        if self.zh is not None:
            yield "zh.source", self.zh.source
        if self.differential is not None:
            yield "differential.few_source", self.differential.few_source
            yield "differential.reference_source", self.differential.reference_source
        rule = self.adequacy
        if rule.obscuring is not None:
            yield "adequacy.obscuring.source", rule.obscuring.source
        lists: Mapping[str, Sequence[Label | Category | Prohibition | FreeQuestion | Note]] = {
            "labels": self.labels,
            "categories": self.categories,
            "prohibitions": self.prohibitions,
            "questions": self.questions,
            "notes": self.notes,
        }
        for name, entries in lists.items():
            yield from ((f"{name}[{n}].source", entry.source) for n, entry in enumerate(entries))
        yield from ((f"adequacy.minima[{n}].source", entry.source) for n, entry in enumerate(rule.minima))
        yield from ((f"adequacy.components[{n}].source", entry.source) for n, entry in enumerate(rule.components))
        for n, category in enumerate(self.categories):
            yield f"categories[{n}].min_findings_source", category.min_findings_source
            if category.cannot_exclude is not None:
                yield f"categories[{n}].cannot_exclude.source", category.cannot_exclude.source
            if category.risk is not None:
                yield f"categories[{n}].risk.source", category.risk.source
