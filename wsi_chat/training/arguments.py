"""transformers' TrainingArguments for a run: what the user set, and what follows from the data's length."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from wsi_chat.training import state
from wsi_chat.training.machine import precision
from wsi_chat.training.settings import TrainSettings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

ORDER = "order"
"""What checkpoints are ordered by, the best highest: the chosen metric, and where that ties the loss."""

EVALUATIONS = 10
"""How often a run is evaluated where the user does not say."""


def arguments_of(
    settings: TrainSettings, device: torch.device, *, evaluates: bool, resuming: bool, text_only: bool
) -> Any:
    """transformers' TrainingArguments; the counts of steps come later, when the data's length is known."""
    import torch
    from transformers import TrainingArguments

    bf16, fp16 = precision(settings, device)
    arguments = TrainingArguments(
        output_dir=str(settings.out / state.STATE),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        bf16=bf16,
        fp16=fp16,
        **_checkpointing(TrainingArguments, settings),
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=device.type == "cuda",
        save_strategy="steps",
        # one more than asked for: the newest may be half-written when the machine stops
        save_total_limit=settings.keep + 1,
        eval_on_start=evaluates and not resuming,
        # a conversation without a picture leaves the vision tower without a gradient
        ddp_find_unused_parameters=text_only and settings.trains_vision,
    )
    if device.type == "cuda" and arguments.n_gpu > 1:
        # without a launcher the trainer would split image patches by rows over all GPUs; torchrun is the way
        arguments._n_gpu = 1
        log.warning("%d GPUs are seen and one is used; use torchrun for more", torch.cuda.device_count())
    return arguments


def _checkpointing(kind: Any, settings: TrainSettings) -> dict[str, Any]:
    if not settings.gradient_checkpointing:
        return {}
    # transformers renamed the argument within version 5
    name = "activation_checkpointing"
    if name not in kind.__dataclass_fields__:
        name = "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def schedule(arguments: Any, settings: TrainSettings, samples: int, best_by: str | None) -> None:
    """How often to evaluate and save, now that the number of steps is known."""
    batches = -(-samples // (settings.batch_size * arguments.world_size))
    total = settings.steps or max(1, round(settings.epochs * -(-batches // settings.accumulate)))
    every = min(settings.eval_every or max(1, total // EVALUATIONS), total)
    arguments.warmup_steps = int(settings.warmup * total)
    arguments.save_steps = every
    arguments.logging_steps = min(settings.log_every, max(1, total // 20))
    if best_by is not None:
        arguments.eval_strategy = type(arguments.eval_strategy)("steps")
        arguments.eval_steps = every
        arguments.do_eval = True
        arguments.load_best_model_at_end = True
        arguments.metric_for_best_model = f"eval_{ORDER}"
        arguments.greater_is_better = True
