"""The command ``wsi-chat settings``: every setting, as a table, as JSON, or as docs/settings.md."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from wsi_chat.commands.console import say, show
from wsi_chat.commands.options import Config, Json
from wsi_chat.declaration import Declared
from wsi_chat.settings import Settings, declared, resolve

INTRODUCTION = """\
# Settings

<!-- Made by `wsi-chat settings --markdown`; a test fails where this file differs from what that prints. -->

A setting is given as an option (`--top-k 50`), as a variable in the environment (`WSI_CHAT_TOP_K=50`), or as a key in
a YAML file that `--config` names (`top_k: 50`; dashes are read as underscores). An option takes precedence over the
environment, the environment over the file, the file over the default. `run.json` records the values of a run and where
each came from; `wsi-chat settings --config FILE` shows them beforehand. In Python the same names are keyword
arguments: `wsi_chat.analyze("slide.svs", top_k=50)`.

Settings without an option are rarely needed and are set in the file or in the environment alone.

What a setting affects: *answers* are what the model is asked and shown, so a change asks it anew; *documents* are what
is made of the answers, the verdict among them; *speed* changes no result. An aggregator fitted with `wsi-chat fit`
holds only for runs with the same value of a setting marked with an asterisk.

Until version 0.1 each document had a switch of its own. `pdf`, `html` and `dicom` (yes or no) are still understood;
use `format`.
"""


def settings(
    config: Config = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md.")] = False,
    json_: Json = False,
) -> None:
    """List the settings: default, unit, option, key, and what each affects.

    With --config, or with WSI_CHAT_* variables set, the values in effect and where each comes from.
    """
    if markdown:
        for line in markdown_lines():
            say(line)
        return
    effective, origin = resolve({}, config=config, environ=os.environ)
    values = effective.model_dump(mode="json")
    payload = [
        {
            "name": one.name, "value": values[one.name], "origin": origin.get(one.name, "default"),
            "default": Settings().model_dump(mode="json")[one.name], "unit": one.unit, "limits": one.limits,
            "choices": list(one.choices), "panel": one.panel, "affects": one.affects,
            "option": None if one.rare else one.option, "variable": one.variable, "description": one.description,
        }
        for one in declared().values()
    ]  # fmt: skip
    show(payload, _table(values, origin), as_json=json_)


def _table(values: Mapping[str, Any], origin: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("setting", "value", "option", "what it is"):
        table.add_column(column, overflow="fold")
    for one in declared().values():
        given = origin.get(one.name)
        value = f"{values[one.name]} ({given})" if given else one.default_text
        option = "file or environment" if one.rare else one.option
        table.add_row(Text(one.name), Text(value), Text(option), Text(one.description))
    return table


def markdown_lines() -> Iterator[str]:
    """docs/settings.md, line by line."""
    yield from INTRODUCTION.splitlines()
    for panel, ones in groupby(declared().values(), key=lambda one: one.panel):
        yield from ("", f"## {panel}", "", "| setting | option | default | affects | |", "|---|---|---|---|---|")
        yield from (_row(one) for one in ones)


def _row(one: Declared) -> str:
    allowed = " | ".join(one.choices) or " ".join(part for part in (one.limits, one.unit) if part)
    text = one.description + (f" Values: {allowed}." if allowed else "")
    cells = (
        f"`{one.name}`",
        "" if one.rare else f"`{one.flags or one.option}`",
        one.default_text,
        one.affects + ("\\*" if one.condition else ""),
        text,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_documentation(path: Path) -> None:
    """Write docs/settings.md."""
    path.write_text("\n".join(markdown_lines()) + "\n", encoding="utf-8")
