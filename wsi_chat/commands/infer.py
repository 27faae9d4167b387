"""The command ``wsi-chat infer``: loads the model, asks, reports bad rows by line, and one exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from wsi_chat.commands.console import EXIT_INTERRUPTED, EXIT_PARTIAL
from wsi_chat.commands.options import Json, Quiet, with_settings
from wsi_chat.commands.progress import answers_bar
from wsi_chat.commands.signals import signals_handled
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError
from wsi_chat.inference.rows import find_data
from wsi_chat.inference.run import Inferred
from wsi_chat.inference.run import infer as infer_all
from wsi_chat.settings import resolve

SHOWN = 20
"""Bad rows named on stderr; all of them are in the file."""


def dashes(option: str) -> str:
    """Option names may be written with underscores, as scripts of others do: ``--dataset_dir``."""
    return option.replace("_", "-")


CONTEXT_SETTINGS = {"token_normalize_func": dashes}


@with_settings(
    "model", "engine", "dialect", "device", "dtype", "batch_size", "seed", "overwrite",
    aliases={"model": "--model-name-or-path"},
)  # fmt: skip
def infer(
    dataset: Annotated[str, typer.Option(help="Name in dataset_info.json, or a .jsonl or .json file.")],
    save_name: Annotated[Path, typer.Option(help="File for the answers, one JSON line each.")] = Path(
        "generated_predictions.jsonl"
    ),
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder of dataset_info.json. Default: data.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens per answer; the dialect may need fewer.")
    ] = 1024,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Ask only the first N rows.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Ask a model every question of a ShareGPT data set and write prompt, predict and label. Rerun to resume."""
    overwrite = settings.pop("overwrite", False)
    code = run_infer(
        dataset, folder=dataset_dir, out=save_name, flags=settings, config=config, max_new_tokens=max_new_tokens,
        max_samples=max_samples, overwrite=overwrite, environ=os.environ, as_json=json_, quiet=quiet,
    )  # fmt: skip
    raise typer.Exit(code)


def run_infer(
    dataset: str,
    *,
    folder: Path | None,
    out: Path,
    flags: Mapping[str, Any],
    config: Path | None = None,
    max_new_tokens: int,
    max_samples: int | None,
    overwrite: bool,
    environ: Mapping[str, str],
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Run batch inference. Returns 0 done, 3 some rows failed, 130 interrupted with the answers kept."""
    if out.suffix not in (".jsonl", ".json"):
        raise SettingError(
            f"--save-name {out} does not end in .jsonl or .json.", hint="Give a name that ends in .jsonl."
        )
    data = find_data(dataset, folder)
    if out.resolve() == data.path.resolve():
        raise SettingError(f"--save-name {out} is the data set itself.", hint="Choose another name.")
    settings, _ = resolve(flags, config=config, environ=environ)
    model = Model(settings)
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
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        errors.print(f"interrupted: every answer so far is in {out}; run the same command again to resume")
        return EXIT_INTERRUPTED
    finally:
        model.close()
    _tell(done, data.path, errors, as_json=as_json, quiet=quiet)
    return EXIT_PARTIAL if done.failed else 0


def _tell(done: Inferred, source: Path, errors: Console, *, as_json: bool, quiet: bool) -> None:
    for line, reason in done.failed[:SHOWN]:
        errors.print(f"{source}:{line}: {reason}", markup=False)
    if len(done.failed) > SHOWN:
        errors.print(f"... and {len(done.failed) - SHOWN} more; see status and error in {done.path}", markup=False)
    if as_json:
        payload = {
            "file": str(done.path), "rows": done.rows, "answers": done.answers, "new": done.new,
            "reused": done.reused, "truncated": done.truncated,
            "failed": [{"line": line, "reason": reason} for line, reason in done.failed],
        }  # fmt: skip
        print(json.dumps(payload, indent=2, ensure_ascii=False))
        return
    if not quiet:
        known = f", {done.reused} of them answered earlier" if done.reused else ""
        print(f"{done.path}: {done.answers} answers to {done.rows} rows{known}")
        print(f"{done.truncated} cut off, {len(done.failed)} failed")
