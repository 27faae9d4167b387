"""The data of a dialect, as its YAML file holds it, validated."""

from __future__ import annotations

import json
import string
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from wsi_chat.dialects.frame import ImagePolicy
from wsi_chat.schema import Record, TaskName

PROMPT_FIELDS: dict[str, frozenset[str]] = {
    "choice": frozenset({"topic", "options"}),
    "option": frozenset({"letter", "text"}),
    "ground": frozenset({"label"}),
    "refer": frozenset({"box"}),
    "describe": frozenset(),
    "vqa": frozenset({"question"}),
    "vqa_region": frozenset({"question", "box"}),
}


ABILITIES = (
    "several_images", "known_questions", "narrates", "served_as", "model_types", "fine_tune", "base_model_type",
)  # fmt: skip
"""Fields of a dialect that say what its family can do and how it is recognised, not how it is asked."""


class Prompts(Record):
    """One template per task; the braces that each must hold are in `PROMPT_FIELDS`.

    ``separator`` stands between the options of a choice.
    """

    choice: str
    option: str = "{letter}.{text}"
    ground: str
    refer: str
    describe: str
    vqa: str = "{question}"
    vqa_region: str
    separator: str = ", "

    @model_validator(mode="after")
    def _complete(self) -> Prompts:
        for name, wanted in PROMPT_FIELDS.items():
            found = _braces(getattr(self, name))
            if set(found) != wanted:
                raise ValueError(f"prompt {name!r} has {found} in braces, needs {sorted(wanted)}")
        return self


def _braces(template: str) -> list[str]:
    return sorted(part for _, part, _, _ in string.Formatter().parse(template) if part is not None)


class DialectSpec(Record):
    """The data of a dialect, as its YAML file holds it.

    How the model is asked and read:

    ``coordinates``: ``sent`` (pixels of the image as sent), ``norm1000``, ``norm1``, or ``norm1024`` (1,024 bins
    numbered from 0). ``order``: of a box's four numbers in an answer. ``decimals``: of a coordinate in a prompt,
    at most. ``boxes``: the grammar of a box; ``box_key``: its key where that is JSON. ``labels``: class names the
    model knows; ``names``: how a label is written in a prompt, where that differs; ``aliases``: other spellings in
    answers. ``max_tokens``: task -> the longest answer that this model gives, in tokens, where that is less than
    asked for. ``mpp``: reporting system's code -> µm/px at which this model wants its tiles, where it differs.

    What the family can do, and how it is recognised:

    ``several_images``: its models were trained on several images in one question. ``known_questions``: the only free
    questions that it was trained on; empty where any may be asked. ``narrates``: it follows instructions well enough
    to write a report's narrative. ``served_as``: parts of the names under which servers list its models.
    ``model_types``: ``model_type`` in the config.json of its checkpoints. ``fine_tune``: a fine-tune of another
    family, recognised by its name before its model type; ``base_model_type`` is that family's.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: int = Field(ge=1)
    system: str = ""
    coordinates: Literal["sent", "norm1000", "norm1", "norm1024"]
    decimals: int = Field(default=0, ge=0, le=6)
    boxes: Literal["region", "tokens", "json", "loc", "ref_box", "list"]
    box_text: str = "{x0} {y0} {x1} {y1}"
    image: ImagePolicy
    mpp: dict[str, Annotated[float, Field(gt=0.05, lt=5.0)]] = Field(default_factory=dict)
    max_tokens: dict[TaskName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    names: dict[str, str] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    prompts: Prompts
    order: Literal["xyxy", "yxyx"] = "xyxy"
    box_key: str = Field(default="bbox_2d", pattern=r"^[A-Za-z0-9_]+$")
    several_images: bool = False
    known_questions: tuple[str, ...] = ()
    narrates: bool = True
    served_as: tuple[Annotated[str, Field(min_length=2)], ...] = ()
    model_types: tuple[str, ...] = ()
    fine_tune: bool = False
    base_model_type: str = ""

    @property
    def wording(self) -> str:
        """Everything of the dialect that reaches a model or reads its answers, as JSON, for hashing.

        Fields added later are left out at their default, so that a dialect that does not use them keeps its hash and
        the answers already in journals stay valid. What a family can do changes no answer and is left out.
        """
        later = [name for name in ("order", "box_key") if getattr(self, name) == type(self).model_fields[name].default]
        exclude: dict[str, Any] = dict.fromkeys((*later, *ABILITIES), True)
        if self.prompts.separator == Prompts.model_fields["separator"].default:
            exclude["prompts"] = {"separator": True}
        content: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json", exclude=exclude).items():
            if name == "labels":
                content["choice"] = "letter"  # a field of version 1 that had this one value: part of every hash
            content[name] = value
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, content: Any) -> Any:
        """Files of version 0.1, data sets' build.json among them, name the one way in which choices are answered."""
        if isinstance(content, dict) and content.get("choice") == "letter":
            return {key: value for key, value in content.items() if key != "choice"}
        return content

    @field_validator("box_text")
    @classmethod
    def _four_corners(cls, text: str) -> str:
        found = _braces(text)
        if found != ["x0", "x1", "y0", "y1"]:
            raise ValueError(f"box_text needs {{x0}} {{y0}} {{x1}} {{y1}}, has {found}")
        return text
