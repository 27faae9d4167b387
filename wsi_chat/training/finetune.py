"""Fine-tunes a checkpoint of the Qwen-VL family on conversations, and writes one that others load unchanged.

    wsi-chat train --model DIR --dataset cytology_train --dataset-dir DATA -o OUT
    torchrun --nproc-per-node 4 -m wsi_chat.cli train ...      # the same on four GPUs

Everything that can be known beforehand is checked before weights are loaded: the data set, every picture, the
dialect, the folder, the memory.
"""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat._version import __version__
from wsi_chat.dialects import Dialect, detect_dialect, get_dialect
from wsi_chat.engines import find_checkpoint, read_checkpoint
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.loading import load_model, pick_device, said
from wsi_chat.engines.qwen import MODEL_TYPES
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.training import curves, export, lora, probes, state
from wsi_chat.training.data import Conversation, Source, find_dataset, read_conversations, validation_of
from wsi_chat.training.encode import Conversations, Encoder, fitting
from wsi_chat.training.settings import METRICS, TrainSettings

if TYPE_CHECKING:
    import torch

    from wsi_chat.training.trainer import Tell

log = logging.getLogger(__name__)

NO_EVALUATION = "none"
EVALUATIONS = 10
"""How often a run is evaluated where the user does not say."""

BYTES_FULL = 16
"""Per parameter in full fine-tuning: weights, gradient and Adam's two moments in float32."""

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


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
    _check_extras()
    plan = _plan(settings)
    device = pick_device(settings.device)
    _check_memory(plan.checkpoint, settings, device)
    identity = _identity(settings, plan)
    leader = _rank() == 0
    # every process must see the folder as it was, so only the first one touches it and the others follow
    resume_from = (
        state.take_folder(settings.out, identity, resume=settings.resume, overwrite=settings.overwrite)
        if leader
        else None
    )
    resume_from = _shared(resume_from)
    try:
        with _quiet():
            return _train(settings, plan, identity, device, resume_from, tell)
    except (MemoryError, RuntimeError) as error:
        if not _no_memory(error):
            raise
        raise EngineError(
            f"memory ran out while training ({said(error)})",
            hint="Take a smaller --batch-size (and more --accumulate), --gradient-checkpointing, or --method lora.",
        ) from error


# ---------------------------------------------------------------------------------------------- before the weights


def _check_extras() -> None:
    for name in ("accelerate", "peft"):
        try:
            version(name)
        except PackageNotFoundError as error:
            raise EngineError(f"{name} is not installed.", hint="pip install 'wsi-chat[train]'") from error


def _plan(settings: TrainSettings) -> _Plan:
    folder = find_checkpoint(settings.model)
    checkpoint = read_checkpoint(folder)
    if checkpoint.model_type not in MODEL_TYPES:
        raise EngineError(
            f"checkpoint {folder} is of type {checkpoint.model_type!r}",
            hint=f"Checkpoints of {', '.join(MODEL_TYPES)} can be trained.",
        )
    dialect = get_dialect(detect_dialect(folder) if settings.dialect == "auto" else settings.dialect)
    sources = tuple(find_dataset(name, settings.dataset_dir) for name in settings.datasets)
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
    base = given if given is not None and not Path(given).expanduser().exists() else str(folder.resolve())
    return _Plan(checkpoint, base, dialect, sources, evaluation, tuple(talks), tuple(held), left_out)


def _evaluation(settings: TrainSettings, sources: Sequence[Source]) -> Source | None:
    if settings.eval_dataset == NO_EVALUATION:
        return None
    if settings.eval_dataset is not None:
        return find_dataset(settings.eval_dataset, settings.dataset_dir)
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
        "processes": _world(),
    }


def _check_memory(checkpoint: Checkpoint, settings: TrainSettings, device: torch.device) -> None:
    """Refuse at once what cannot fit: the weights and, in full fine-tuning, their gradients and moments."""
    import psutil
    import torch

    stored = sum(file.stat().st_size for file in checkpoint.path.glob("*.safetensors"))
    parameters = stored / (4 if _dtype_of(checkpoint.path) == torch.float32 else 2)
    each = BYTES_FULL if settings.method == "full" else (2 if device.type == "cuda" else 4)
    needed = parameters * each
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"{settings.method} fine-tuning of {checkpoint.path} needs at least {needed / 2**30:.1f} GiB on {device}, "
            f"{free / 2**30:.1f} GiB are free",
            hint="Use --method lora, a smaller checkpoint, or a device with more memory.",
        )


def _dtype_of(folder: Path) -> torch.dtype:
    """The number format in which a checkpoint stores its weights, read from a file's header."""
    import torch
    from safetensors import safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(str(min(folder.glob("*.safetensors"))), framework="pt") as file:
        kinds = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
    return names.get(max(set(kinds), key=kinds.count), torch.float32)


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

    arguments = _arguments(settings, plan, device, resuming=resume_from is not None)
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
    _schedule(arguments, settings, len(talks), best_by)
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
    curves.draw(rows, settings.out / state.CURVES, best=best or None, title=f"{settings.method}: {plan.base}")
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


def _arguments(settings: TrainSettings, plan: _Plan, device: torch.device, *, resuming: bool) -> Any:
    """transformers' TrainingArguments; the counts of steps come later, when the data's length is known."""
    import torch
    from transformers import TrainingArguments

    bf16, fp16 = _precision(settings, device)
    text_only = settings.trains_vision and any(not talk.images for talk in plan.talks)
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
        eval_on_start=bool(plan.held) and not resuming,
        ddp_find_unused_parameters=text_only,
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


def _precision(settings: TrainSettings, device: torch.device) -> tuple[bool, bool]:
    """(bf16, fp16): on a GPU bf16 where it can, else fp16; on a CPU neither, unless asked for."""
    import torch

    wanted = settings.precision
    if wanted == "auto":
        if device.type != "cuda":
            return False, False
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return able, not able
    if wanted == "fp16" and device.type != "cuda":
        raise SettingError(f"--precision fp16 on {device}.", hint="On a CPU train in bf16 or fp32.")
    return wanted == "bf16", wanted == "fp16"


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


def _schedule(arguments: Any, settings: TrainSettings, samples: int, best_by: str | None) -> None:
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
        arguments.metric_for_best_model = f"eval_{best_by}"
        arguments.greater_is_better = best_by != "loss"


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
    dtype = _dtype_of(plan.checkpoint.path)
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


# ---------------------------------------------------------------------------------------------- processes and memory


def _rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))


def _world() -> int:
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def _shared(found: Path | None) -> Path | None:
    """What the first process found, in every process."""
    if _world() == 1:
        return found
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState()
    told = broadcast_object_list([str(found) if found else ""])
    return Path(told[0]) if told[0] else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' and peft's own remarks: ours say what matters."""
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # peft and transformers remind each other of names that change in their next versions
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        theirs.set_verbosity(before)


def _no_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in NO_MEMORY)
