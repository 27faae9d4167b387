"""The command ``wsi-chat train``: its options, the call, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wsi_chat.commands.console import say, say_json
from wsi_chat.commands.options import UNDERSCORES
from wsi_chat.commands.signals import exit_code
from wsi_chat.commands.terminal import Console
from wsi_chat.remarks import counted
from wsi_chat.training.finetune import Trained, finetune
from wsi_chat.training.machine import rank as process
from wsi_chat.training.settings import settings_of

if TYPE_CHECKING:
    from wsi_chat.training.trainer import Tell


CONTEXT_SETTINGS = UNDERSCORES


def train(
    dataset: Annotated[list[str], typer.Option(help="A .jsonl file, or a name in --dataset-dir. May be repeated.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the trained checkpoint.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint folder. Default: the embedded checkpoint.")] = None,
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder with dataset_info.json. Default: data.")] = None,
    media_dir: Annotated[
        Path | None, typer.Option(help="Folder of the pictures. Default: --dataset-dir, then each file's own.")
    ] = None,
    eval_dataset: Annotated[
        str | None,
        typer.Option(
            help="File or name of the evaluation set, or none. Default: the _val split beside a _train split."
        ),
    ] = None,
    dialect: Annotated[
        str, typer.Option(help="Prompt and box format to teach: a name or a YAML file. Default: the checkpoint's.")
    ] = "auto",
    method: Annotated[str, typer.Option(help="lora or full.")] = "lora",
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 16,
    alpha: Annotated[int, typer.Option(help="LoRA alpha.")] = 32,
    dropout: Annotated[float, typer.Option(help="LoRA dropout.")] = 0.05,
    targets: Annotated[
        str | None, typer.Option(help="Layers to adapt, e.g. q_proj,v_proj. Default: all linear layers.")
    ] = None,
    vision: Annotated[
        bool | None,
        typer.Option("--vision/--no-vision", help="Train the vision tower too. Default: only with --method full."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write OUT/merged: the base model with the adapter merged in.")
    ] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="Number of optimiser steps; overrides --epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Conversations per forward pass and process.")] = 4,
    accumulate: Annotated[int, typer.Option(help="Forward passes per optimiser step.")] = 4,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: 1e-4 for lora, 1e-5 for full.")] = None,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant_with_warmup.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Fraction of the steps for warm-up.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Gradient norm above which gradients are clipped.")] = 1.0,
    max_tokens: Annotated[int | None, typer.Option(help="Leave out longer conversations. Default: what fits.")] = None,
    group_by_length: Annotated[
        bool,
        typer.Option(
            "--group-by-length/--no-group-by-length", help="Batch conversations of similar length, for less padding."
        ),
    ] = True,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Use less memory, for about a third more time.")
    ] = False,
    precision: Annotated[str, typer.Option(help="Precision: auto, bf16, fp16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(help="Number of processes that read pictures.")] = 0,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations. Default: a tenth of all.")] = None,
    eval_samples: Annotated[int, typer.Option(help="Number of questions that an evaluation asks and scores.")] = 64,
    eval_conversations: Annotated[
        int, typer.Option(help="Number of conversations over which its loss is computed.")
    ] = 256,
    best_by: Annotated[
        str,
        typer.Option(
            help="Metric that selects the best checkpoint: ground_f1, choice_accuracy, refer_accuracy, loss, "
            "or auto (the first available)."
        ),
    ] = "auto",
    keep: Annotated[int, typer.Option(help="Number of saved states to keep.")] = 2,
    log_every: Annotated[int, typer.Option(help="Steps between rows of metrics.jsonl.")] = 10,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Leave out faulty lines instead of refusing the file.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last saved state in OUT.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Fine-tune a checkpoint (LoRA or full) on data as `wsi-chat dataset build` writes it.

    Ctrl-C saves the state and exits with 130 (SIGTERM: 143); run the same command with --resume to go on.

    Several GPUs: torchrun --nproc-per-node 4 -m wsi_chat.cli train ...
    The options are the same, and --batch-size counts per GPU.
    """
    settings = settings_of(
        model=model, datasets=tuple(dataset), dataset_dir=dataset_dir, media_dir=media_dir,
        eval_dataset=eval_dataset, out=out,
        dialect=dialect, skip_bad=skip_bad_lines, overwrite=overwrite, resume=resume, method=method, rank=rank,
        alpha=alpha, dropout=dropout, targets=_names(targets), vision=vision, merge=merge, epochs=epochs, steps=steps,
        batch_size=batch_size, accumulate=accumulate, lr=lr, schedule=schedule, warmup=warmup,
        weight_decay=weight_decay, clip=clip, max_tokens=max_tokens, group_by_length=group_by_length,
        gradient_checkpointing=gradient_checkpointing, precision=precision, device=device, workers=workers, seed=seed,
        eval_every=eval_every, eval_samples=eval_samples,
        eval_conversations=eval_conversations, best_by=best_by, keep=keep, log_every=log_every,
    )  # fmt: skip
    try:
        with _progress(quiet=quiet or process() > 0) as tell:
            trained = finetune(settings, tell=tell)
    except KeyboardInterrupt as stopped:
        say("interrupted: the state is saved; run the same command with --resume to go on", err=True)
        raise typer.Exit(exit_code()) from stopped
    if process() > 0:
        # the first process speaks for all
        return
    if json_:
        say_json(_plain(trained))
    elif not quiet:
        _report(trained)


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


def _plain(trained: Trained) -> dict[str, Any]:
    return {
        "out": str(trained.out), "merged": str(trained.merged) if trained.merged else None, "steps": trained.steps,
        "best_step": trained.best_step, "best_by": trained.best_by, "metrics": dict(trained.metrics),
        "before": dict(trained.before), "left_out": dict(trained.left_out),
    }  # fmt: skip


def _report(trained: Trained) -> None:
    best = f", the best by {trained.best_by} at step {trained.best_step}" if trained.best_step else ""
    say(f"{counted(trained.steps, 'step')}{best}")
    for name, value in trained.metrics.items():
        then = trained.before.get(name)
        say(f"  {name:<18} {value:.4f}" + (f"   before {then:.4f}" if then is not None else ""))
    for kind, number in trained.left_out.items():
        say(f"  left out: {counted(number, 'line')}, {kind}")
    say(f"  {trained.merged or trained.out}")
    say(f"  {trained.out / 'loss.png'}")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Tell | None]:
    """A bar on a terminal with the loss and the latest metrics; silence elsewhere."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("training"), BarColumn(bar_width=28), MofNCompleteColumn(), TextColumn("{task.fields[latest]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training", total=None, latest="")
        latest: dict[str, float] = {}

        def tell(row: dict[str, Any]) -> None:
            if "steps" in row:
                bar.update(task, completed=row["step"], total=row["steps"])
                return
            for key, name in (("loss", "loss"), ("eval_loss", "held out"), ("eval_ground_f1", "F1"),
                              ("eval_choice_accuracy", "choice")):  # fmt: skip
                if key in row:
                    latest[name] = row[key]
            bar.update(task, latest="  ".join(f"{name} {value:.3f}" for name, value in latest.items()))

        yield tell
