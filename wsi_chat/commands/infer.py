"""The command ``wsi-chat infer``: loads the model, asks, reports bad rows by line, and one exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_chat.commands.console import EXIT_PARTIAL, say, say_json
from wsi_chat.commands.options import UNDERSCORES, Json, Quiet, with_settings
from wsi_chat.commands.progress import answers_bar
from wsi_chat.commands.signals import exit_code, signals_handled
from wsi_chat.commands.terminal import Console
from wsi_chat.datasets.info import find_data
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError
from wsi_chat.inference.llama_factory import dialect_of_template, sampling_of, with_max_pixels
from wsi_chat.inference.run import Inferred
from wsi_chat.inference.run import infer as infer_all
from wsi_chat.remarks import counted
from wsi_chat.schema import Sampling
from wsi_chat.settings import Settings, resolve

SHOWN = 20
"""Bad rows named on stderr; all of them are in the file."""


CONTEXT_SETTINGS = UNDERSCORES


@with_settings(
    "model", "adapter", "engine", "base_url", "gpus", "concurrency", "dialect", "device", "dtype", "batch_size",
    "overwrite",
    aliases={"model": "--model-name-or-path", "adapter": "--adapter-name-or-path"},
)  # fmt: skip
def infer(
    dataset: Annotated[
        str, typer.Option(help="Name in dataset_info.json, or a .jsonl or .json file; several between commas.")
    ],
    save_name: Annotated[Path, typer.Option(help="File for the answers, one JSON line each.")] = Path(
        "generated_predictions.jsonl"
    ),
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder with dataset_info.json. Default: data.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens per answer; the dialect may need fewer.")
    ] = 1024,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Ask only the first N rows.")] = None,
    media_dir: Annotated[
        Path | None, typer.Option(help="Folder of the pictures. Default: --dataset-dir, then each file's own.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Chat template, e.g. qwen2_vl, where the checkpoint does not name its dialect.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature. Default: 0, greedy decoding.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="With --temperature: nucleus sampling, e.g. 0.9.")] = None,
    top_k: Annotated[int | None, typer.Option(help="With --temperature: sample from the K likeliest tokens.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sampling. Default: 0.")] = None,
    cutoff_len: Annotated[
        int | None,
        typer.Option(min=1, help="Say how many prompts have more tokens than this; they are asked whole all the same."),
    ] = None,
    image_max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Maximum area of a picture as it is sent. Default: the dialect's.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Ask a model every question of a ShareGPT data set and write prompt, predict and label. Rerun to resume."""
    overwrite = settings.pop("overwrite", False)
    if seed is not None:
        settings["seed"] = seed
    code = run_infer(
        dataset, folder=dataset_dir, media=media_dir, out=save_name, flags=settings, config=config,
        template=template, sampling=sampling_of(temperature, top_p, top_k), cutoff_tokens=cutoff_len,
        image_max_pixels=image_max_pixels, max_new_tokens=max_new_tokens, max_samples=max_samples,
        overwrite=overwrite, environ=os.environ, as_json=json_, quiet=quiet,
    )  # fmt: skip
    raise typer.Exit(code)


def run_infer(
    dataset: str,
    *,
    folder: Path | None,
    out: Path,
    flags: Mapping[str, Any],
    config: Path | None = None,
    media: Path | None = None,
    template: str | None = None,
    sampling: Sampling | None = None,
    cutoff_tokens: int | None = None,
    image_max_pixels: int | None = None,
    max_new_tokens: int,
    max_samples: int | None,
    overwrite: bool,
    environ: Mapping[str, str],
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Run batch inference. Returns 0 done, 3 some rows failed, 130 or 143 interrupted with the answers kept."""
    if out.suffix not in (".jsonl", ".json"):
        raise SettingError(
            f"--save-name {out} does not end in .jsonl or .json.", hint="Give a name that ends in .jsonl."
        )
    data = find_data(dataset, folder, media=media)
    if out.resolve() in {file.path.resolve() for file in data.files}:
        raise SettingError(f"--save-name {out} is the data set itself.", hint="Choose another name.")
    settings, _ = resolve(flags, config=config, environ=environ)
    model = Model(settings)
    if template is not None and settings.dialect == "auto":
        model = _spoken(settings, dialect_of_template(template))
    if image_max_pixels is not None:
        model.dialect = with_max_pixels(model.dialect, image_max_pixels)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with signals_handled(), answers_bar(errors, quiet=quiet or not errors.is_terminal) as progress:
            done = infer_all(
                data,
                out,
                dialect=model.dialect,
                engine=model.engine,
                max_new_tokens=max_new_tokens,
                max_samples=max_samples,
                seed=settings.seed,
                sampling=sampling,
                cutoff_tokens=cutoff_tokens,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        errors.print(f"interrupted: every answer so far is in {out}; run the same command again to resume")
        return exit_code()
    finally:
        model.close()
    _report(done, data.path, errors, as_json=as_json, quiet=quiet)
    return EXIT_PARTIAL if done.failed else 0


def _spoken(settings: Settings, fallback: str) -> Model:
    """The model in the dialect that its checkpoint or server names, or else in the template's."""
    model = Model(settings)
    try:
        _ = model.dialect
    except SettingError:
        return Model(settings.model_copy(update={"dialect": fallback}))
    return model


def _report(done: Inferred, source: Path, errors: Console, *, as_json: bool, quiet: bool) -> None:
    for line, reason in done.failed[:SHOWN]:
        errors.print(f"{source}:{line}: {reason}", markup=False)
    if len(done.failed) > SHOWN:
        errors.print(f"... and {len(done.failed) - SHOWN} more; see status and error in {done.path}", markup=False)
    if done.long_prompts:
        errors.print(
            f"{counted(done.long_prompts, 'prompt')} longer than --cutoff-len: asked whole, where LLaMA-Factory would "
            "have cut them off",
            markup=False,
        )
    if as_json:
        payload = {
            "file": str(done.path), "rows": done.rows, "answers": done.answers, "new": done.new,
            "reused": done.reused, "truncated": done.truncated, "long_prompts": done.long_prompts,
            "failed": [{"line": line, "reason": reason} for line, reason in done.failed],
        }  # fmt: skip
        say_json(payload)
        return
    if not quiet:
        known = f", {done.reused} of them answered earlier" if done.reused else ""
        say(f"{done.path}: {counted(done.answers, 'answer')} to {counted(done.rows, 'row')}{known}")
        say(f"{done.truncated} cut off, {len(done.failed)} failed")
