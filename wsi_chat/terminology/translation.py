"""A reporting system's words in another language, as its own YAML file holds them; codes are never translated."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from wsi_chat.schema import Record

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Verdicts(Record):
    """How a report says each verdict; full sentences without numbers."""

    normal: Text
    abnormal: Text
    indeterminate: Text
    unsatisfactory: Text
    counted: Text


class LabelNames(Record):
    """A label's short name, which stays the code where the field uses one (HSIL), and its full name."""

    name: Text
    long_name: Text


class Translation(Record):
    """Names and sentences of a system in one other language.

    ``labels``, ``categories``, ``specimens`` and ``components`` are keyed by the system's codes, ``preparations`` by
    their English names; what is not there is shown in English. A category's text is complete: code and full name,
    e.g. ``HSIL（高级别鳞状上皮内病变）``.
    """

    name: Text
    specimens: dict[str, Text] = Field(default_factory=dict)
    screen_topic: Text
    labels: dict[str, LabelNames] = Field(default_factory=dict)
    categories: dict[str, Text] = Field(default_factory=dict)
    components: dict[str, Text] = Field(default_factory=dict)
    preparations: dict[str, Text] = Field(default_factory=dict)
    adequacy: Text
    wording: Verdicts
    never_claim: tuple[Text, ...] = ()
    source: Text
