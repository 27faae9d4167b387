"""``wsi-chat report``: its options; the work is in `wsi_chat.commands.report_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="A slide's run folder, OUT/<slide id>.")],
    language: Annotated[str | None, typer.Option(help="en or zh. Default: the report's.")] = None,
    narrative: Annotated[str | None, typer.Option(help="template, or model: written by one, then checked.")] = None,
    formats: Annotated[str | None, typer.Option("--format", help="Some of pdf,html,json,dicom. Default: all.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint that writes the narrative. Default: the run's.")] = None,
    dialect: Annotated[str, typer.Option(help="How that model is asked. Default: read from it.")] = "auto",
    ancillary: Annotated[
        list[str] | None, typer.Option(help="Result of another test, as you supply it, or a YAML file; repeatable.")
    ] = None,
    slide: Annotated[Path | None, typer.Option(help="Where the slide file is now.")] = None,
    font_path: Annotated[str | None, typer.Option(help="Font file or folder for the PDF.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Write a slide's documents again from its run folder, e.g. in another language. Asks no model by itself."""
    import json

    from wsi_chat.commands.report_run import run_report

    payload, lines, code = run_report(
        folder, language=language, narrative=narrative, formats=formats, model=model, dialect=dialect,
        ancillary=ancillary or (), slide=slide, font_path=font_path,
    )  # fmt: skip
    typer.echo(json.dumps(payload, indent=2, ensure_ascii=False) if json_ else "\n".join(lines))
    raise typer.Exit(code)
