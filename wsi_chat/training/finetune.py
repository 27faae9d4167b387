"""Fine-tunes a checkpoint of the Qwen-VL family on conversations, and writes one that others load unchanged.

    wsi-chat train --model DIR --dataset cytology_train --dataset-dir DATA -o OUT
    torchrun --nproc-per-node 4 -m wsi_chat.cli train ...      # the same on four GPUs

Everything that can be known beforehand is checked before weights are loaded: the data set, every picture, the
dialect, the folder, the memory.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat._version import __version__
from wsi_chat.dialects import Dialect, detect_dialect, get_dialect
from wsi_chat.engines import find_checkpoint, read_checkpoint
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.loading import describe_error, load_model, pick_device
from wsi_chat.engines.qwen import MODEL_TYPES
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.names import from_home
from wsi_chat.training import curves, export, lora, probes, state
from wsi_chat.training.arguments import arguments_of, schedule
from wsi_chat.training.data import Conversation, Source, find_dataset, read_conversations, validation_of
from wsi_chat.training.encode import Conversations, Encoder, fitting
from wsi_chat.training.machine import (
    check_extras,
    check_memory,
    quiet,
    ran_out_of_memory,
    rank,
    shared,
    stored_dtype,
    world_size,
)
from wsi_chat.training.settings import METRICS, TrainSettings

if TYPE_CHECKING:
    import torch

    from wsi_chat.training.trainer import Tell

log = logging.getLogger(__name__)

NO_EVALUATION = "none"


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out. ``metrics`` are the best checkpoint's (``loss``, ``ground_f1``, ...), ``before`` the base's."""

    out: Path
    merged: Path | None
    steps: int
    best_step: int | None
    best_by: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that is known before the weights are loaded."""

    checkpoint: Checkpoint
    base: str
    dialect: Dialect
    sources: tuple[Source, ...]
    evaluation: Source | None
    talks: tuple[Conversation, ...]
    held: tuple[Conversation, ...]
    left_out: dict[str, int]


def finetune(settings: TrainSettings, *, tell: Tell | None = None) -> Trained:
    """Train, keep the best, write it.

    Args:
        tell: called with every row of metrics.jsonl and after every step.

    Raises:
        SettingError: a setting or the data set is wrong; the data set's first faults are named with their lines.
        EngineError: the checkpoint cannot be loaded or trained, memory does not suffice, or the loss is no number.
        OutputError: the folder is taken or cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state was saved behind the step that ran.
    """
    check_extras()
    plan = _plan(settings)
    device = pick_device(settings.device)
    check_memory(plan.checkpoint, settings, device)
    identity = _identity(settings, plan)
    leader = rank() == 0
    # every process must see the folder as it was, so only the first one touches it and the others follow
    resume_from = (
        state.take_folder(settings.out, identity, resume=settings.resume, overwrite=settings.overwrite)
        if leader
        else None
    )
    resume_from = shared(resume_from, device)
    try:
        with quiet():
            return _train(settings, plan, identity, device, resume_from, tell)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise EngineError(
            f"memory ran out while training ({describe_error(error)})",
            hint="Take a smaller --batch-size (and more --accumulate), --gradient-checkpointing, or --method lora.",
        ) from error


# ---------------------------------------------------------------------------------------------- before the weights


def _plan(settings: TrainSettings) -> _Plan:
    folder = find_checkpoint(settings.model)
    checkpoint = read_checkpoint(folder)
    if checkpoint.model_type not in MODEL_TYPES:
        raise EngineError(
            f"checkpoint {folder} is of type {checkpoint.model_type!r}",
            hint=f"Checkpoints of {', '.join(MODEL_TYPES)} can be trained.",
        )
    dialect = get_dialect(detect_dialect(folder) if settings.dialect == "auto" else settings.dialect)
    sources = tuple(find_dataset(name, settings.dataset_dir, media=settings.media_dir) for name in settings.datasets)
    evaluation = _evaluation(settings, sources)
    if evaluation and evaluation.file.resolve() in {source.file.resolve() for source in sources}:
        raise SettingError(
            f"{evaluation.file} is both trained on and evaluated on.", hint="Name another --eval-dataset."
        )
    left_out: dict[str, int] = {}
    talks: list[Conversation] = []
    for source in sources:
        found, lost = read_conversations(source, dialect, skip_bad=settings.skip_bad)
        talks += found
        for kind, number in lost.items():
            left_out[kind] = left_out.get(kind, 0) + number
    held = read_conversations(evaluation, dialect, skip_bad=settings.skip_bad)[0] if evaluation else []
    # a model in the cache is named as the user named it; a folder by its path, so that peft finds it from anywhere
    given = settings.model
    base = given if given is not None and not from_home(given).exists() else str(folder.resolve())
    return _Plan(checkpoint, base, dialect, sources, evaluation, tuple(talks), tuple(held), left_out)


def _evaluation(settings: TrainSettings, sources: Sequence[Source]) -> Source | None:
    if settings.eval_dataset == NO_EVALUATION:
        return None
    if settings.eval_dataset is not None:
        return find_dataset(settings.eval_dataset, settings.dataset_dir, media=settings.media_dir)
    return next((found for source in sources if (found := validation_of(source))), None)


def _identity(settings: TrainSettings, plan: _Plan) -> dict[str, Any]:
    """What makes a run this run: resuming with anything else would be another one."""
    evaluation = plan.evaluation
    return {
        **settings.identity(),
        "model": plan.base,
        "model_revision": plan.checkpoint.revision,
        "dialect": f"{plan.dialect.name}/{plan.dialect.prompts_sha256[:16]}",
        "datasets": [source.sha256[:16] for source in plan.sources],
        "eval_dataset": evaluation.sha256[:16] if evaluation else None,
        "processes": world_size(),
    }


# ---------------------------------------------------------------------------------------------- the run


def _train(
    settings: TrainSettings,
    plan: _Plan,
    identity: dict[str, Any],
    device: torch.device,
    resume_from: Path | None,
    tell: Tell | None,
) -> Trained:
    import transformers

    from wsi_chat.training.trainer import ChatTrainer, Conduct, Stop

    arguments = arguments_of(
        settings, device, evaluates=bool(plan.held), resuming=resume_from is not None,
        text_only=any(not talk.images for talk in plan.talks),
    )  # fmt: skip
    transformers.set_seed(settings.seed)
    model = _model(settings, plan, arguments)
    encoder = Encoder(plan.checkpoint, _config(model), plan.dialect)
    talks, lengths, long = fitting(plan.talks, encoder, encoder.limit(settings.max_tokens))
    if not talks:
        raise SettingError("every conversation is too long for the model.", hint="Raise --max-tokens.")
    held, held_lengths, _ = fitting(plan.held, encoder, encoder.limit(settings.max_tokens))
    part = probes.sample(len(held), settings.eval_conversations, seed=settings.seed)
    if long:
        log.warning("%d conversations are too long and left out, first %s", len(long), long[0])
    left_out = {**plan.left_out, **({"too_long": len(long)} if long else {})}
    asked = probes.choose(held, settings.eval_samples, seed=settings.seed)
    best_by = _best_by(settings, asked, bool(held))
    schedule(arguments, settings, len(talks), best_by)
    stop = Stop()
    metrics_log = None
    if arguments.should_save:
        from_step = int(resume_from.name.rpartition("-")[2]) if resume_from else 0
        metrics_log = state.MetricsLog(settings.out / state.METRICS, from_step=from_step)
        record = _record(settings, plan, identity, talks, held, left_out, model)
        state.write_record(settings.out, {**record, "state": "running"})
    batch = settings.batch_size * settings.accumulate * arguments.world_size
    trainer = ChatTrainer(
        encoder=encoder,
        asked=asked,
        best_by=best_by,
        grouped=settings.group_by_length,
        model=model,
        args=arguments,
        train_dataset=Conversations(talks, encoder, lengths),
        eval_dataset=Conversations([held[i] for i in part], encoder, [held_lengths[i] for i in part]) if part else None,
        data_collator=encoder.collate,
        callbacks=[Conduct(metrics_log, stop, tell if arguments.should_save else None, batch)],
    )
    for theirs in (transformers.PrinterCallback, transformers.trainer_callback.ProgressCallback):
        # they write to stdout, which is for data
        trainer.remove_callback(theirs)
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if not arguments.should_save:
        if stop.asked:
            raise KeyboardInterrupt
        return Trained(settings.out, None, trainer.state.global_step, None, best_by, left_out=left_out)
    rows = state.read_metrics(settings.out / state.METRICS)
    best = trainer.state.best_global_step if best_by else None
    title = f"{settings.method}: {Path(plan.base).name}"
    curves.draw(rows, settings.out / state.CURVES, best=best or None, title=title)
    if stop.asked:
        state.write_record(settings.out, {**record, "state": "interrupted", "step": trainer.state.global_step})
        raise KeyboardInterrupt
    return _finish(settings, plan, trainer, record, rows, best_by)


def _model(settings: TrainSettings, plan: _Plan, arguments: Any) -> Any:
    """The model on its device: in float32 to be trained whole, in the device's own format under adapters."""
    import torch

    half = torch.bfloat16 if arguments.bf16 else torch.float16
    low = settings.method == "lora" and arguments.device.type == "cuda" and (arguments.bf16 or arguments.fp16)
    model = load_model(plan.checkpoint.path, half if low else torch.float32, arguments.device)
    if settings.method == "lora":
        model = lora.add_adapters(
            model, rank=settings.rank, alpha=settings.alpha, dropout=settings.dropout, targets=settings.targets,
            vision=settings.trains_vision, base=plan.base,
        )  # fmt: skip
        if settings.gradient_checkpointing:
            model.enable_input_require_grads()
    elif not settings.trains_vision:
        lora.freeze_vision(model)
    return model.train()


def _config(model: Any) -> Any:
    return getattr(model, "get_base_model", lambda: model)().config


def _best_by(settings: TrainSettings, asked: Sequence[Conversation], held: bool) -> str | None:
    """The metric that picks the best checkpoint; None where nothing is evaluated."""
    possible = probes.metrics_of(asked) | ({"loss"} if held else set())
    if settings.best_by != "auto":
        if settings.best_by not in possible:
            raise SettingError(
                f"--best-by {settings.best_by}: the evaluation set does not allow it.",
                hint=f"It allows: {', '.join(sorted(possible)) or 'nothing; name an --eval-dataset'}.",
            )
        return settings.best_by
    return next((name for name in METRICS if name in possible), None)


# ---------------------------------------------------------------------------------------------- behind the run


def _finish(
    settings: TrainSettings, plan: _Plan, trainer: Any, record: dict[str, Any], rows: list[dict[str, Any]],
    best_by: str | None,
) -> Trained:  # fmt: skip
    best = trainer.state.best_global_step if best_by else None
    step = int(best or trainer.state.global_step)
    metrics, before = _at(rows, step), _at(rows, 0)
    about = {
        "base": plan.base, "base_revision": plan.checkpoint.revision, "method": settings.method, "step": step,
        "metrics": metrics, "wsi_chat": __version__,
    }  # fmt: skip
    model = trainer.accelerator.unwrap_model(trainer.model)
    dtype = stored_dtype(plan.checkpoint.path)
    merged = None
    if settings.method == "lora":
        export.write_adapter(model, plan.checkpoint.path, settings.out, plan.dialect, about)
        if settings.merge:
            merged = settings.out / "merged"
            whole = lora.merge(plan.checkpoint, settings.out, dtype)
            export.write_checkpoint(whole, plan.checkpoint.path, merged, plan.dialect, about)
    else:
        export.write_checkpoint(model.to(dtype), plan.checkpoint.path, settings.out, plan.dialect, about)
    done = {
        "state": "finished", "steps": trainer.state.global_step, "best_step": best, "best_by": best_by,
        "metrics": metrics, "before": before, "merged": str(merged) if merged else None,
    }  # fmt: skip
    state.write_record(settings.out, {**record, **done})
    if best_by and before.get(best_by) is not None and not _better(metrics, before, best_by):
        log.warning("no checkpoint is better than the base by %s (%.4f)", best_by, before[best_by])
    return Trained(
        settings.out, merged, trainer.state.global_step, best, best_by, metrics, before, record["data"]["left_out"]
    )


def _at(rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """The evaluation's metrics at a step, without the Trainer's timings."""
    timings = ("runtime", "per_second", "epoch")
    found: dict[str, float] = {}
    for row in rows:
        if row["step"] == step:
            found |= {
                key.removeprefix("eval_"): value
                for key, value in row.items()
                if key.startswith("eval_") and not key.endswith(timings)
            }
    return found


def _better(metrics: Mapping[str, float], before: Mapping[str, float], name: str) -> bool:
    now, then = metrics.get(name), before[name]
    return now is not None and (now < then if name == "loss" else now > then)


def _record(
    settings: TrainSettings, plan: _Plan, identity: dict[str, Any], talks: Sequence[Conversation],
    held: Sequence[Conversation], left_out: Mapping[str, int], model: Any,
) -> dict[str, Any]:  # fmt: skip
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "identity": identity,
        "settings": settings.model_dump(mode="json"),
        "base": {"name": plan.base, "revision": plan.checkpoint.revision, "type": plan.checkpoint.model_type},
        "dialect": plan.dialect.name,
        "data": {
            "files": [{"file": str(source.file), "sha256": source.sha256} for source in plan.sources],
            "evaluation": str(plan.evaluation.file) if plan.evaluation else None,
            "conversations": len(talks),
            "evaluated": len(held),
            "left_out": dict(left_out),
        },
        "parameters": {"all": sum(p.numel() for p in model.parameters()), "trained": trained},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("wsi-chat", "torch", "transformers", "accelerate", "peft")},
        },
    }  # fmt: skip
