"""The command table: each command's name and one-line help. A command's module is imported only when it is used.

``wsi-chat --help`` and the completion of a command's name import no command; data goes to stdout, logs, progress and
errors go to stderr.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as command_of

from wsi_chat._version import __version__
from wsi_chat.commands.console import EXIT_FAILED, complain, say_unforeseen, set_up_logging
from wsi_chat.commands.signals import deliver_held, exit_code, ignore_signals, signals_handled
from wsi_chat.errors import WsiChatError


class Entry(NamedTuple):
    """One line of the table. The command is the function, or the group, of the same name in its module."""

    name: str
    help: str

    @property
    def function(self) -> str:
        """The command's module in `wsi_chat.commands`, and what it is called there."""
        return self.name.replace("-", "_")


SECTIONS = {
    "Slides": (
        Entry("analyze", "Analyze slides: a verdict, the cells that carry it, and a report for each."),
        Entry("report", "Write a slide's documents again, e.g. in another language."),
        Entry("ask", "Ask one question about an image, a region or a slide."),
        Entry("chat", "Talk about an analyzed slide, a slide or an image."),
        Entry("view", "Look at slides in the browser: findings, questions, review."),
    ),
    "Cohorts": (
        Entry("cohort", "Analyze many slides, from a manifest or a folder."),
        Entry("fit", "Fit an aggregator on labelled, analyzed slides."),
        Entry("validate", "Compare verdicts with labels: AUC, sensitivity, specificity, calibration."),
    ),
    "Data and models": (
        Entry("dataset", "Build instruction data from annotations, and check it."),
        Entry("synth", "Render synthetic cytology with known truth."),
        Entry("train", "Fine-tune a checkpoint (LoRA or full)."),
        Entry("infer", "Ask a model every question of a ShareGPT data set."),
        Entry("evaluate", "Score predictions, with baselines and confidence intervals."),
    ),
    "What is there": (
        Entry("info", "Show what a slide file is: size, resolution and its source, levels, reader."),
        Entry("models", "List checkpoints: architecture, size, dialect, and whether they load here."),
        Entry("specimens", "List the specimen types and the reporting system of each."),
        Entry("settings", "List the settings: default, unit, option, key, and what each affects."),
        Entry("serve-command", "Print the vllm serve line that suits a checkpoint and its dialect."),
        Entry("bench", "Measure this machine with a slide and a model, and say which setting to change."),
        Entry("doctor", "Check this machine: PASS, WARN or FAIL, with the fix on each line."),
    ),
}
COMMANDS = tuple(entry for entries in SECTIONS.values() for entry in entries)


def load_command(entry: Entry) -> TyperCommand | TyperGroup:
    """The command itself; imports its module."""
    module = import_module(f"wsi_chat.commands.{entry.function}")
    deliver_held()
    target: Any = getattr(module, entry.function)
    if not isinstance(target, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        alone.command(entry.name, context_settings=getattr(module, "CONTEXT_SETTINGS", None))(target)
        target = alone
    command = command_of(target)
    command.name = entry.name
    _take_literally(command)
    return command  # type: ignore[return-value]  # what typer makes is one of the two


def _take_literally(command: Any) -> None:
    """Brackets in help texts are brackets, not markup: ``pip install 'wsi-chat[ray]'``."""
    command.help = (command.help or "").replace("[", "\\[")
    for part in command.params:
        part.help = (getattr(part, "help", None) or "").replace("[", "\\[")
    for below in getattr(command, "commands", {}).values():
        _take_literally(below)


class CommandTable(TyperGroup):
    """A group that knows its commands by name, and imports the one that is called."""

    def __init__(self, *, commands: Any = None, **options: Any) -> None:
        lines: dict[str, Any] = {entry.name: TyperCommand(entry.name, help=entry.help) for entry in COMMANDS}
        super().__init__(commands=lines, **options)

    def list_commands(self, ctx: Any) -> list[str]:
        return [entry.name for entry in COMMANDS]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table, section by section and without cutting a line short."""
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{entry.name:<14}", entry.help) for entry in entries])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The line of the table, which is enough for a list of commands; see `resolve_command`."""
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """The command that is called, loaded."""
        name, line, rest = super().resolve_command(ctx, args)
        if line is None:
            return name, line, rest
        return name, load_command(next(entry for entry in COMMANDS if entry.name == line.name)), rest


app = typer.Typer(
    name="wsi-chat",
    cls=CommandTable,
    help="Whole-slide cytology analysis with multimodal language models. Research use only; never a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"wsi-chat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Whole-slide cytology analysis with multimodal language models. Research use only; never a diagnosis."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: every error becomes one clear message and its exit code."""
    set_up_logging()
    atexit.register(ignore_signals)
    try:
        with signals_handled():
            app(arguments)
    except WsiChatError as error:
        complain(error)
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == 130:  # typer says so of every signal that comes while it imports a command
            sys.exit(exit_code())
        raise
    except Exception as error:
        say_unforeseen(error)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        typer.echo("interrupted: state saved", err=True)
        sys.exit(exit_code())


if __name__ == "__main__":
    main()
