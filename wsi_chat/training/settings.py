"""What a user may set for a fine-tuning run: the validation, the documentation of the defaults, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from wsi_chat.declaration import Strict
from wsi_chat.errors import SettingError
from wsi_chat.faults import way_out

METRICS = ("ground_f1", "choice_accuracy", "refer_accuracy", "loss")
"""What the best checkpoint can be chosen by; ``auto`` takes the first that the evaluation set allows."""

FREE = frozenset(
    {
        "out",
        "device",
        "workers",
        "merge",
        "keep",
        "log_every",
        "eval_samples",
        "resume",
        "overwrite",
        "dataset_dir",
        "media_dir",
    }
)
"""Settings that a resumed run may change without becoming another run."""


class TrainSettings(Strict):
    """One fine-tuning run. ``lr`` None is 1e-4 for LoRA and 1e-5 for full fine-tuning.

    ``vision`` says whether the vision tower is trained too: None means no for LoRA and yes for full. ``targets``
    are the linear layers that get adapters, by the end of their name (``q_proj``); empty means all.
    ``warmup`` is a share of all steps. ``eval_every`` and ``steps`` count optimiser steps. An evaluation takes
    the loss over at most ``eval_conversations`` of its set, and asks and scores ``eval_samples`` questions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    dataset_dir: Path | None = None
    media_dir: Path | None = None
    eval_dataset: str | None = None
    out: Path
    dialect: str = "auto"
    skip_bad: bool = False
    overwrite: bool = False
    resume: bool = False

    method: Literal["lora", "full"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: tuple[str, ...] = ()
    vision: bool | None = None
    merge: bool = False

    epochs: Annotated[float, Field(gt=0)] = 3.0
    steps: Annotated[int | None, Field(ge=1)] = None
    batch_size: Annotated[int, Field(ge=1)] = 4
    accumulate: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float | None, Field(gt=0)] = None
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Annotated[int | None, Field(ge=16)] = None
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    device: str = "auto"
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    seed: Annotated[int, Field(ge=0)] = 0

    eval_every: Annotated[int | None, Field(ge=1)] = None
    eval_samples: Annotated[int, Field(ge=0)] = 64
    eval_conversations: Annotated[int, Field(ge=1)] = 256
    best_by: Literal["auto", "ground_f1", "choice_accuracy", "refer_accuracy", "loss"] = "auto"
    keep: Annotated[int, Field(ge=1)] = 2
    log_every: Annotated[int, Field(ge=1)] = 10

    @property
    def learning_rate(self) -> float:
        return self.lr if self.lr is not None else (1e-4 if self.method == "lora" else 1e-5)

    @property
    def trains_vision(self) -> bool:
        return self.vision if self.vision is not None else self.method == "full"

    def identity(self) -> dict[str, Any]:
        """The settings that make it this run and no other, as plain values."""
        return self.model_dump(mode="json", exclude=set(FREE))


def settings_of(**values: Any) -> TrainSettings:
    """The settings, checked. Raises SettingError naming the flag and the value seen."""
    try:
        settings = TrainSettings(**{key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        flag = {"datasets": "--dataset", "accumulate": "--accumulate"}.get(name, f"--{name.replace('_', '-')}")
        hint = way_out(first, TrainSettings.model_fields.get(name))
        raise SettingError(f"{flag}: {first.get('input')!r} cannot be used.", hint=hint) from error
    if settings.method == "full" and (settings.targets or settings.merge):
        flag = "--merge" if settings.merge else "--targets"
        raise SettingError(f"{flag} is given with --method full.", hint="It belongs to --method lora.")
    if settings.resume and settings.overwrite:
        raise SettingError("--resume and --overwrite are both given.", hint="Give one of them.")
    return settings
