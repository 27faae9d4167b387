"""The command ``wsi-chat specimens``: the list, one reporting system in full with its sources, or what ails a file.

Each function gives a JSON-ready payload and what the terminal shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wsi_chat.commands.console import EXIT_USAGE, show
from wsi_chat.control_characters import one_line
from wsi_chat.errors import SettingError
from wsi_chat.names import from_home
from wsi_chat.terminology import Category, Minimum, Problem, System, check_file, load_system
from wsi_chat.terminology import specimens as list_systems


class Description(NamedTuple):
    """``ok`` is False where a checked file has problems."""

    payload: Any
    lines: RenderableType
    ok: bool = True


def specimens(
    name: Annotated[str | None, typer.Argument(help="Show this specimen type in full, with its sources.")] = None,
    check: Annotated[str | None, typer.Option(help="Check the YAML file of a reporting system of your own.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """List the specimen types and the reporting system that each is read by; show one, or check a file."""
    described = describe_specimens(name, check=check)
    show(described.payload, described.lines, as_json=json_)
    if not described.ok:
        raise typer.Exit(EXIT_USAGE)


def describe_specimens(name: str | None = None, *, check: str | None = None) -> Description:
    """The list of systems; with ``name`` that one in full; with ``check`` all that is wrong with a file.

    Raises:
        SettingError: no system has this name, or both arguments are given.
        TerminologyError: the file is missing, is no YAML, or (with ``name``) does not validate.
    """
    if name is not None and check is not None:
        raise SettingError(f"specimens was given both {name!r} and --check {check!r}.", hint="Give one of them.")
    if check is not None:
        return _check(from_home(check))
    if name is None:
        return _list()
    system = load_system(name)
    return Description(system.model_dump(mode="json"), _whole(system))


def _list() -> Description:
    payload = []
    table = _table("--specimen", "reporting system", "categories or counts", "asked of each tile")
    for system in list_systems():
        asks = [label.name for label in system.labels if label.ask]
        if_known = [label.name for label in system.labels if label.ask_if_known]
        names = [category.name for category in _ordered(system)]
        payload.append(
            {
                "specimens": list(system.specimens),
                "system": system.code,
                "name": system.name,
                "version": system.version,
                "kind": system.kind,
                "categories": names,
                "asks": asks,
                "asks_if_known": if_known,
                "adequacy": system.adequacy.kind,
                "sources": list(system.sources),
            }
        )
        more = f" (and, of a model that knows them: {', '.join(if_known)})" if if_known else ""
        given = (
            ", ".join(names) if names else ("counts" if system.kind == "counts" else "none: normal or abnormal only")
        )
        title = f"{system.name}" if system.version in system.name else f"{system.name}, version {system.version}"
        row = (", ".join(system.specimens), title, given, f"{', '.join(asks)}{more}")
        table.add_row(*(Text(cell) for cell in row))
    return Description(payload, table)


def _check(path: Path) -> Description:
    system, found = check_file(path)
    warnings = list(_warnings(system)) if system is not None else []
    payload = {
        "file": str(path),
        "ok": system is not None,
        "problems": [problem._asdict() for problem in found],
        "warnings": warnings,
    }
    if system is None:
        lines = [Text(f"{one_line(str(path))}: {len(found)} problem{'' if len(found) == 1 else 's'}", style="bold red")]
        lines += [_problem(problem) for problem in found]
        return Description(payload, Group(*lines), ok=False)
    summary = (
        f"{one_line(str(path))}: {system.name}, version {system.version}: {len(system.labels)} labels,"
        f" {len(system.categories)} categories, {len(system.prohibitions)} prohibitions"
    )
    lines = [Text.assemble(("ok    ", "green"), summary), *(Text(f"note  {line}", style="yellow") for line in warnings)]
    lines.append(Text(f"      use it: wsi-chat analyze SLIDE --specimen {one_line(str(path))}", style="dim"))
    return Description(payload, Group(*lines))


def _problem(problem: Problem) -> Text:
    return Text.assemble(
        ("  ", ""), (problem.path or "the file", "bold"), f": {problem.message}",
        (f" [{problem.value}]" if problem.value else ""), ("\n    ", ""), (problem.hint, "dim"),
    )  # fmt: skip


def _warnings(system: System) -> Iterator[str]:
    """What validates and may still not be meant."""
    if not any(label.ask or label.ask_if_known for label in system.labels):
        yield "no label is asked for: detailed tiles are only described"
    for category in system.categories:
        drawn = category.from_labels or category.code in (system.negative_category, system.inadequate_category)
        if not drawn:
            yield f"category {category.code} is drawn from no label, so it is listed and never given"
    used = {code for category in system.categories for code in category.from_labels} | set(system.adequacy.asked_labels)
    if system.kind == "categories":
        for label in system.labels:
            if label.abnormal and label.axis != "generic" and label.code not in used:
                yield f"label {label.code} is abnormal and supports no category"
    if system.adequacy.minima and not system.adequacy.counted_labels:
        yield "adequacy.minima name no labels, so adequacy cannot be estimated"


def _whole(system: System) -> RenderableType:
    return Group(
        *_heading(system),
        *_section("Asked", _asked(system)),
        *_section("Labels", _labels(system)),
        *_section("Categories", _categories(system) if system.categories else None),
        *_section("Adequacy", _adequacy(system)),
        *_section("Wording", _wording(system)),
        *_section("Never claimed from the image", _prohibitions(system)),
        *_section("Notes", _pairs((note.text, note.source) for note in system.notes) if system.notes else None),
        *_section("Sources", _pairs(system.citations.items(), swap=True)),
    )


def _heading(system: System) -> Iterator[RenderableType]:
    yield Text(system.name, style="bold")
    yield Text(f"{system.code}, version {system.version}; --specimen {', '.join(system.specimens)}", style="dim")


def _section(title: str, body: RenderableType | None) -> Iterator[RenderableType]:
    if body is not None:
        yield Text()
        yield Text(title, style="bold underline")
        yield body


def _asked(system: System) -> RenderableType:
    screen, rule = system.screen, system.adequacy
    asked = ", ".join(label.code for label in system.labels if label.ask)
    known = ", ".join(label.code for label in system.labels if label.ask_if_known)
    rows = [
        (
            "every tile",
            f"{screen.topic} ({' / '.join(screen.options)}; {screen.positive} raises the score)",
            screen.source,
        )
    ]
    rows.append(("detailed tiles", f"locate each of: {asked or 'nothing'}; describe", "house"))
    if known:
        rows.append(("", f"and, where the model's dialect lists them: {known}", "house"))
    aged = [(c, c.min_age) for c in system.categories if c.min_age is not None]
    rows += [("", f"and from age {age}: {', '.join(c.from_labels)}", c.source) for c, age in aged]
    if rule.asked_labels:
        rows.append(("adequacy sample", f"locate each of: {', '.join(rule.asked_labels)}", rule.source))
    if rule.obscuring is not None:
        rows.append(("", rule.obscuring.question, rule.obscuring.source))
    rows += [("in the conversation", question.text, question.source) for question in system.questions]
    rows.append(("resolution", f"{system.mpp:g} µm/px", system.mpp_source))
    return _rows(rows, "when", "what", "source")


def _labels(system: System) -> RenderableType:
    rows = []
    others: dict[str, list[str]] = {}
    for name, code in system.label_map.items():
        others.setdefault(code or "", []).append(name)
    for label in system.labels:
        asked = "asked" if label.ask else "if known" if label.ask_if_known else ""
        if not asked and label.code in system.adequacy.asked_labels:
            asked = "adequacy"
        kind: str = "abnormal" if label.abnormal else label.axis
        also = ", ".join(others.get(label.code, ()))
        rows.append((label.code, label.long_name, kind, asked, also, label.source))
    if "" in others:
        rows.append(("", "left out without a word", "", "", ", ".join(others[""]), system.label_map_source))
    return _rows(rows, "code", "name", "kind", "asked", "also called", "source")


def _categories(system: System) -> RenderableType:
    rows = [
        (entry.axis, str(entry.order), entry.name, _needs(entry, system), _risk(entry), entry.source)
        for entry in _ordered(system)
    ]
    return _rows(rows, "axis", "order", "category", "given on", "risk of malignancy", "source")


def _needs(category: Category, system: System) -> str:
    if category.code == system.negative_category:
        return "a normal slide, whole and not unsatisfactory"
    if category.code == system.inadequate_category:
        return "a slide without cells"
    if not category.from_labels:
        return "never: no label means it"
    text = f"{category.min_findings} findings of {', '.join(category.from_labels)} or graver"
    if category.min_findings_source:
        text += f" ({category.min_findings_source})"
    if category.min_age is not None:
        text += f", from age {category.min_age}"
    if category.cannot_exclude is not None:
        text += f"; may leave open: {', '.join(category.cannot_exclude.categories)}"
    return text


def _risk(category: Category) -> str:
    risk = category.risk
    if risk is None:
        return ""
    span = f" ({risk.low:g}-{risk.high:g}, {risk.span})" if risk.span else ""
    return f"{risk.mean:g} %{span} [{risk.source}]"


def _adequacy(system: System) -> RenderableType:
    rule = system.adequacy
    rows = [("rule", rule.text, rule.source)]
    rows += [(minimum.preparation, _minimum(minimum), minimum.source) for minimum in rule.minima]
    for part in rule.components:
        rows.append((part.name, f"noted from {part.count} of: {', '.join(part.labels)}", part.source))
    if rule.abnormal_is_adequate:
        rows.append(("abnormal cells", "make any specimen adequate", rule.source))
    if rule.obscuring is not None:
        rows.append(("obscured", f"unsatisfactory beyond {rule.obscuring.maximum:.0%}", rule.obscuring.source))
    return _rows(rows, "part", "rule", "source")


def _minimum(minimum: Minimum) -> str:
    text = f"{minimum.count:,}" + (f" to {minimum.upper:,}" if minimum.upper else "") + f" {minimum.unit}"
    if minimum.cells_per_group:
        text += f" of {minimum.cells_per_group} cells each"
    if minimum.discretion:
        text += f" ({minimum.discretion:,} with --reduced-minimum)"
    return text + (f", counted as: {', '.join(minimum.labels)}" if minimum.labels else "; not counted: no label")


def _wording(system: System) -> RenderableType:
    wording = system.wording
    verdicts = ("normal", "abnormal", "indeterminate", "unsatisfactory", "counted")
    rows = [(name, str(getattr(wording, name)), wording.source) for name in verdicts]
    return _rows(rows, "verdict", "sentence", "source")


def _prohibitions(system: System) -> RenderableType:
    rows = [
        (item.code, item.text, "unless supplied" if item.ancillary else "", item.source) for item in system.prohibitions
    ]
    return _rows(rows, "code", "what", "", "source")


def _ordered(system: System) -> list[Category]:
    """By axis in the order of the file, then by severity."""
    axes = list(dict.fromkeys(category.axis for category in system.categories))
    return sorted(system.categories, key=lambda category: (axes.index(category.axis), category.order))


def _pairs(pairs: Iterable[tuple[str, str]], *, swap: bool = False) -> RenderableType:
    return _rows(list(pairs), *(("key", "work") if swap else ("note", "source")))


def _rows(rows: Sequence[Sequence[str]], *columns: str) -> RenderableType:
    table = _table(*columns)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
