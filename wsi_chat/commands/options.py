"""Options of commands, made from the declarations of the settings; what several commands share is written here once.

A command names the settings that it uses and receives those that were given as keyword arguments::

    @with_settings("model", "dialect")
    def ask(picture: ..., *, config: Path | None, **settings: Any) -> None: ...

It gains ``--config`` and ``-v`` too. An option that version 0.1 had and that is a matter of the YAML file now is
still understood, and says where it went; ``--help`` does not list it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from tilers.remote import slide_path
from wsi_chat.commands.console import say, set_verbosity
from wsi_chat.declaration import Declared
from wsi_chat.settings import declared

ENGINE = ("model", "adapter", "engine", "base_url", "dialect", "device", "dtype")
"""Settings of the commands that ask a model."""

UNDERSCORES: dict[str, Any] = {"token_normalize_func": lambda option: option.replace("_", "-")}
"""Settings of a command whose options may be written as LLaMA-Factory's scripts have them: ``--dataset_dir``."""

WIDEST = 24
"""Characters of a placeholder, so that a description beside it has room in 80 columns."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of settings, one 'key: value' a line (wsi-chat settings lists them). Options and WSI_CHAT_* "
        "variables take precedence."
    ),
]
SlideNow = Annotated[
    Path | None,
    typer.Option("--slide", parser=slide_path, metavar="<path>", help="Where the slide is now, if it was moved since."),
]
Verbose = Annotated[
    int,
    typer.Option("-v", "--verbose", count=True, show_default=False, help="Say more on stderr; -vv for every detail."),
]

_FORMER_SWITCHES = {
    "pdf": "--pdf/--no-pdf", "html": "--html/--no-html", "dicom": "--dicom/--no-dicom",
}  # fmt: skip


def with_settings(
    *names: str,
    words: Mapping[str, str] = MappingProxyType({}),
    defaults: Mapping[str, str] = MappingProxyType({}),
    aliases: Mapping[str, str] = MappingProxyType({}),
    config: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings; it receives those that were given, as keyword arguments.

    Args:
        names: settings, in the order of the help within each panel.
        words: descriptions, where a setting means something of its own for the command.
        defaults: likewise, what applies where the option is left out.
        aliases: further names of options, e.g. ``--model-name-or-path``.
        config: also offer ``--config``, which the command receives as ``config``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = {
            name: parameter
            for name, parameter in inspect.signature(command).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "config"
        }
        offered = {
            name: _annotation(
                declared()[name], words=words.get(name), default=defaults.get(name), alias=aliases.get(name)
            )
            for name in names
        }
        if "format" in names:
            offered |= {name: _former(flags) for name, flags in _FORMER_SWITCHES.items()}
        hints = get_type_hints(command, include_extras=True)
        common = {"config": Config} if config else {}
        annotations = {**{name: hints[name] for name in own}, **offered, **common, "verbose": Verbose}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            set_verbosity(given.pop("verbose"))
            values = {name: value for name in offered if (value := given.pop(name)) is not None}
            if not given.get("quiet"):
                _say_where_options_went(values)
            command(**given, **values)

        run.__annotations__ = {**annotations, "return": None}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=annotation,
                    default=own[name].default if name in own else 0 if name == "verbose" else None,
                )
                for name, annotation in annotations.items()
            ]
        )
        return run

    return decorate


def _annotation(one: Declared, *, words: str | None, default: str | None, alias: str | None) -> Any:
    """The option of a setting. Values are checked by `Settings`, so that every source of them is checked alike."""
    without = f" Default: {default or one.default_text}."
    if one.annotation is bool:
        without = " On by default." if one.default else ""
    kind, names, metavar = _kind(one)
    option = typer.Option(
        *names,
        *([alias] if alias else []),
        help=f"{words or one.description}{without}",
        metavar=metavar,
        # what is no number is passed on as it is: `Settings` says of any source what it takes instead
        parser=_number if kind in (int, float) else None,
        rich_help_panel=one.panel,
        hidden=one.rare,
        autocompletion=(lambda: list(one.choices)) if one.choices else None,
    )
    return Annotated[kind | None, option]


def _kind(one: Declared) -> tuple[Any, tuple[str, ...], str | None]:
    """The type of an option, its names, and the placeholder for its value."""
    if one.annotation is bool or "/" in one.flags:
        name = one.option
        return bool, (one.flags or (f"{name}/--no-{name[2:]}" if one.default else name),), None
    if one.annotation == tuple[str, ...]:
        return list[str], (one.option,), "<text>"
    numbers = [part for part in (one.annotation, *get_args(one.annotation)) if part in (int, float)]
    kind = numbers[0] if numbers else str
    between = "," if get_origin(one.annotation) is tuple else "|"
    placeholder = f"<{one.unit}>" if one.unit else between.join(one.choices)
    if len(placeholder) > WIDEST:
        placeholder = f"<{one.name}>"
    if numbers:
        placeholder = placeholder or f"<{kind.__name__}>"
    return kind, (one.option,), placeholder or None


def _number(text: str) -> int | float | str:
    """A number, or the text that is none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            return kind(text)
    return text


def _former(flags: str) -> Any:
    return Annotated[bool | None, typer.Option(flags, hidden=True, help="Use --format.")]


def _say_where_options_went(values: Mapping[str, Any]) -> None:
    """One line for each option that is no longer listed, on stderr: what replaces it."""
    for name, value in values.items():
        if name in _FORMER_SWITCHES:
            option = f"--{name}" if value else f"--no-{name}"
            say(f"note: {option} is now part of --format, e.g. --format pdf,html.", err=True)
        elif declared()[name].rare:
            one = declared()[name]
            say(
                f"note: {one.option} is taken. --help no longer lists it; to keep its value, set {name} in a YAML file "
                f"(--config) or {one.variable} in the environment.",
                err=True,
            )  # fmt: skip
