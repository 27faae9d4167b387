"""``wsi-chat doctor``: what of this machine works, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from wsi_chat.commands.console import EXIT_FAILED, show
from wsi_chat.engines import embedded_checkpoint, load_engine
from wsi_chat.errors import WsiChatError

State = Literal["PASS", "WARN", "FAIL"]
STYLE = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}

# below these, known faults: OpenSlide 4.0.1 fixes crashes on damaged files, Pillow 12.2 a heap overflow in its decoders
OPENSLIDE_FLOOR, PILLOW_FLOOR, PYTHON_FLOOR = (4, 0, 1), (12, 2), (3, 11)


class Check(NamedTuple):
    """One line: ``fix`` is empty where nothing is to be done."""

    state: State
    name: str
    seen: str
    fix: str = ""


def doctor(
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also check that this folder can be written.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Check this machine: PASS, WARN or FAIL, with the fix on each line."""
    checks = examine(out)
    show([check._asdict() for check in checks], render(checks), as_json=json_)
    if any(check.state == "FAIL" for check in checks):
        raise typer.Exit(EXIT_FAILED)


def examine(out: Path | None = None) -> list[Check]:
    """Run every check; one that raises becomes a FAIL line, never a crash."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("openslide", _openslide),
        ("tifffile", lambda: _package("tifffile", needed=True)),
        ("simplejpeg", lambda: _package("simplejpeg", needed=True)),
        ("tiffslide", lambda: _package("tiffslide", needed=False)),
        ("pillow", _pillow),
        ("zarr", lambda: _package("zarr", needed=True)),
        ("torch", _torch),
        ("transformers", lambda: _package("transformers", needed=True)),
        ("torchvision", _torchvision),
        ("vllm", _vllm),
        ("embedded checkpoint", _embedded),
        ("pdf", _pdf),
        ("memory", _memory),
        ("output", lambda: _output(out)),
    ]
    return [_guarded(name, check) for name, check in checks]


def render(checks: list[Check]) -> Table:
    """The checks as a table for the terminal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        text = Text(check.seen)  # never markup: what was seen may hold brackets
        if check.fix:
            text.append(f"\nfix: {check.fix}", style="dim")
        table.add_row(Text(check.state, style=STYLE[check.state]), check.name, text)
    return table


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # whatever breaks here is what the user wants to know
        return Check(
            "FAIL", name, f"{type(error).__name__}: {error}", "Reinstall with: pip install --force-reinstall wsi-chat"
        )


def _version(name: str) -> tuple[int, ...]:
    parts = importlib.metadata.version(name).split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def _package(name: str, *, needed: bool) -> Check:
    if importlib.util.find_spec(name) is None:
        return Check("FAIL" if needed else "WARN", name, "not installed", f"pip install {name}")
    return Check("PASS", name, importlib.metadata.version(name))


def _python() -> Check:
    seen = f"{platform.python_version()} at {sys.prefix}"
    if sys.version_info[:2] < PYTHON_FLOOR:
        return Check("FAIL", "python", seen, "Use Python 3.11 or newer.")
    return Check("PASS", "python", seen)


def _openslide() -> Check:
    import openslide

    version = openslide.__library_version__
    if tuple(int(part) for part in version.split(".")[:3]) < OPENSLIDE_FLOOR:
        return Check(
            "WARN", "openslide", version, "pip install -U openslide-bin (4.0.1 fixes crashes on damaged files)"
        )
    return Check("PASS", "openslide", version)


def _pillow() -> Check:
    version = importlib.metadata.version("pillow")
    if _version("pillow")[:2] < PILLOW_FLOOR:
        return Check("WARN", "pillow", version, "pip install -U 'pillow>=12.2'")
    return Check("PASS", "pillow", version)


def _torch() -> Check:
    import torch

    version = torch.__version__
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Check("PASS", "torch", f"{version}, {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    if torch.backends.mps.is_available():
        return Check("PASS", "torch", f"{version}, Apple GPU")
    threads = torch.get_num_threads()
    return Check(
        "WARN",
        "torch",
        f"{version}, no GPU: {threads} CPU {'thread' if threads == 1 else 'threads'}",
        "The embedded checkpoint runs like this; for a model of 2 B parameters or more use a machine with a GPU.",
    )


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("PASS", "torchvision", "not installed; the embedded checkpoint does not need it")
    return Check("PASS", "torchvision", importlib.metadata.version("torchvision"))


def _vllm() -> Check:
    if importlib.util.find_spec("vllm") is None:
        return Check("PASS", "vllm", "not installed; worthwhile for large checkpoints on a GPU (extra: wsi-chat[vllm])")
    return Check("PASS", "vllm", importlib.metadata.version("vllm"))


def _embedded() -> Check:

    folder = embedded_checkpoint()
    try:
        engine = load_engine(None)
    except WsiChatError as error:
        return Check("FAIL", "embedded checkpoint", str(error), "Reinstall wsi-chat: its weights are package data.")
    try:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        revision = engine.model_id.partition("@")[2][:12]
        return Check("PASS", "embedded checkpoint", f"loads, {size / 2**20:.1f} MiB, revision {revision}")
    finally:
        engine.close()


def _pdf() -> Check:
    import typst

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.typ"
        source.write_text("probe", encoding="utf-8")
        size = len(typst.compile(str(source)))
    return Check("PASS", "pdf", f"typst {importlib.metadata.version('typst')} wrote {size} bytes")


def _memory() -> Check:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("PASS", "memory", "unknown on this system")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if total < 4:
        return Check("WARN", "memory", f"{total:.1f} GiB", "4 GiB are recommended; lower --batch-size.")
    return Check("PASS", "memory", f"{total:.1f} GiB")


def _output(out: Path | None) -> Check:
    """Whether a run folder can be made and written there. Nothing is made."""
    wanted = (out or Path()).expanduser()
    folder = next(path for path in (wanted.resolve(), *wanted.resolve().parents) if path.exists())
    if not folder.is_dir():
        return Check("FAIL", "output", f"{folder} is a file", "Choose a folder with -o.")
    if not os.access(folder, os.W_OK | os.X_OK):
        state: State = "WARN" if out is None else "FAIL"
        return Check(state, "output", f"{folder} cannot be written", "Choose a run folder with -o.")
    free = shutil.disk_usage(folder).free / 2**30
    if free < 1:
        return Check("WARN", "output", f"{free:.2f} GiB free at {folder}", "Free some space, or choose -o.")
    return Check("PASS", "output", f"{free:.0f} GiB free at {folder}")
