"""What ``wsi-chat infer`` does: loads the model, asks, reports bad rows by line, and one exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wsi_chat.commands.analyze import terminate_as_interrupt
from wsi_chat.commands.console import EXIT_INTERRUPTED, EXIT_PARTIAL
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError
from wsi_chat.inference.rows import find_data
from wsi_chat.inference.run import Inferred, infer
from wsi_chat.settings import resolve

SHOWN = 20
"""Bad rows named on stderr; all of them are in the file."""


def run_infer(
    dataset: str,
    *,
    folder: Path | None,
    out: Path,
    flags: Mapping[str, Any],
    max_new_tokens: int,
    max_samples: int | None,
    overwrite: bool,
    environ: Mapping[str, str],
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Run batch inference. Returns 0 done, 3 some rows failed, 130 interrupted with the answers kept."""
    if out.suffix not in (".jsonl", ".json"):
        raise SettingError(f"--save-name {out} is no .jsonl file.", hint="Give a name that ends in .jsonl.")
    data = find_data(dataset, folder)
    if out.resolve() == data.path.resolve():
        raise SettingError(f"--save-name {out} is the data set itself.", hint="Choose another name.")
    settings, _ = resolve(flags, environ=environ)
    model = Model(settings)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with terminate_as_interrupt(), _progress(errors, quiet=quiet or not errors.is_terminal) as progress:
            done = infer(
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
        errors.print(f"interrupted: every answer so far is in {out}; the same command goes on from there")
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
        known = f", {done.reused} of them known already" if done.reused else ""
        print(f"{done.path}: {done.answers} answers to {done.rows} rows{known}")
        print(f"{done.truncated} cut off, {len(done.failed)} failed")


@contextmanager
def _progress(console: Console, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("answers"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("answers", total=None, rate="")

        def update(done: int, total: int) -> None:
            elapsed = bars.tasks[0].elapsed
            bars.update(task, completed=done, total=total, rate=f"{done / elapsed:.1f} answers/s" if elapsed else "")

        yield update
