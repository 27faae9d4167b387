"""The command ``wsi-chat cohort``: its own options, and every setting that ``wsi-chat analyze`` has."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

# of analyze, but no setting of a run
NOT_SETTINGS = frozenset({"slides", "out", "config", "json_", "quiet"})


def cohort(
    source: Annotated[
        Path,
        typer.Argument(
            help="Manifest (CSV: image_path, and if known sample_id, mpp, label, patient, specimen; the headers of "
            "TRIDENT, hs2p and CLAM are understood), or a folder that is searched for slides."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder.")] = Path("wsi-chat-out"),
    executor: Annotated[
        str,
        typer.Option(help="local: one slide after another. ray: as Ray actors (pip install 'wsi-chat[ray]')."),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(help="Ray actors, each with its own engine. Default: one per GPU, else one per four cores."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster, HOST:6379, as started with `ray start --head` there and `ray start --address=HOST:6379` "
            "on its other machines; all see slides and run folder under the same paths. "
            "Default: a cluster on this machine alone, ended with the run."
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Do failed slides, and those indeterminate by error, again."),
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags and WSI_CHAT_* win.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
    **settings: Any,
) -> None:
    """Analyze many slides: every slide's documents, summary.csv and index.html; one bad slide never stops the run.

    The same command goes on where a run ended: finished slides are skipped while file and settings are the same,
    and nothing that was answered is asked again. A row's own mpp and specimen go before the options.
    """
    from wsi_chat.commands.cohort_run import run_cohort

    code = run_cohort(
        source,
        out=out,
        flags=settings,
        config=config,
        environ=os.environ,
        executor=executor,
        actors=actors,
        ray_address=ray_address,
        retry_failed=retry_failed,
        as_json=json_,
        quiet=quiet,
    )
    raise typer.Exit(code)


def cohort_like(analyze: Callable[..., None]) -> Callable[..., None]:
    """The command ``cohort`` with the settings that ``analyze`` has, so that neither lacks what the other learns."""

    def command(**given: Any) -> None:
        cohort(**given)

    own, others = inspect.signature(cohort), inspect.signature(analyze)
    hints = {**get_type_hints(analyze, include_extras=True), **get_type_hints(cohort, include_extras=True)}
    names = [name for name, p in own.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters = {
        **{name: own.parameters[name] for name in names},
        **{name: p for name, p in others.parameters.items() if name not in NOT_SETTINGS and name not in names},
    }
    command.__name__, command.__doc__ = "cohort", cohort.__doc__
    command.__annotations__ = {name: hints[name] for name in parameters} | {"return": None}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY) for name, p in parameters.items()]
    )
    return command
