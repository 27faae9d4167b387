"""``wsi-chat doctor``: what of this machine works, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from wsi_chat.commands.console import EXIT_FAILED, show
from wsi_chat.engines import embedded_checkpoint, load_engine
from wsi_chat.errors import WsiChatError
from wsi_chat.names import from_home

State = Literal["PASS", "WARN", "FAIL"]
STYLE = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}

PYTHON_FLOOR = (3, 11)

# package -> (the first version without a known fault, what the fault was); only what reads bytes that others made
FLOORS: Mapping[str, tuple[str, str]] = {
    "openslide-bin": ("4.0.1", "damaged files crash the process"),
    "pillow": ("13.0", "a crafted JPEG or TIFF file is written or read past its buffer (GHSA-8g5g-8vmr-9782)"),
    "torch": ("2.6", "torch.load runs code of a checkpoint even with weights_only (CVE-2025-32434)"),
    "h11": ("0.16", "chunked replies of a server are read wrongly (CVE-2025-43859)"),
    "jinja2": ("3.1.6", "a chat template leaves the sandbox (CVE-2025-27516)"),
    "starlette": ("0.49.1", "a Range header takes processor time without bound (CVE-2025-62727)"),
    "python-multipart": ("0.0.18", "a form takes processor time without bound (CVE-2024-53981)"),
    "aiohttp": ("3.12.14", "requests can be smuggled in (CVE-2025-53643)"),
    "urllib3": ("2.6.3", "a compressed reply takes memory without bound (CVE-2025-66471, CVE-2026-21441)"),
    "ray": ("2.54", "a page in the browser can start or delete jobs (CVE-2025-62593, CVE-2026-27482)"),
    "vllm": ("0.11.1", "a question with an embedding crashes the server or runs code (CVE-2025-62164)"),
}


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
        ("pillow", lambda: Check("PASS", "pillow", importlib.metadata.version("pillow"))),
        ("zarr", lambda: _package("zarr", needed=True)),
        ("torch", _torch),
        ("transformers", lambda: _package("transformers", needed=True)),
        ("torchvision", _torchvision),
        ("vllm", _vllm),
        ("embedded checkpoint", _embedded),
        ("pdf", _pdf),
        ("font for Chinese", _chinese_font),
        ("known faults", _known_faults),
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


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a release; what follows them (``+cu128``, ``rc1``) is left out."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


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

    version, (floor, fault) = openslide.__library_version__, FLOORS["openslide-bin"]
    if _numbers(version) < _numbers(floor):
        return Check("WARN", "openslide", version, f"pip install -U openslide-bin ({fault})")
    return Check("PASS", "openslide", version)


def _known_faults() -> Check:
    """Whether an installed package has a known fault, mended since, in what reads bytes that others made."""
    old = {}
    for name, (floor, fault) in FLOORS.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            if _numbers(importlib.metadata.version(name)) < _numbers(floor):
                old[name] = f"{name} {importlib.metadata.version(name)}: {fault}"
    if old:
        wanted = " ".join(f"'{name}>={FLOORS[name][0]}'" for name in old)
        return Check("WARN", "known faults", "; ".join(old.values()), f"pip install -U {wanted}")
    return Check("PASS", "known faults", "none in the installed versions of what reads other people's bytes")


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


def _chinese_font() -> Check:
    """A PDF in Chinese needs a font of its own; nothing else does."""
    from reports import FontMissing, chinese_font

    name, given = "font for Chinese", os.environ.get("WSI_CHAT_FONT_PATH")
    try:
        return Check("PASS", name, chinese_font(given or None).name)
    except FontMissing:
        return Check(
            "WARN",
            name,
            "none: with --language zh report.pdf is not written, HTML and JSON are",
            "pip install 'wsi-chat[cjk]' (or apt-get install fonts-noto-cjk), or name a font in WSI_CHAT_FONT_PATH.",
        )


def _memory() -> Check:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("PASS", "memory", "unknown on this system")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if total < 4:
        return Check("WARN", "memory", f"{total:.1f} GiB", "4 GiB are recommended; lower --batch-size.")
    return Check("PASS", "memory", f"{total:.1f} GiB")


def _output(out: Path | None) -> Check:
    """Whether a run folder can be made and written there. Nothing is made."""
    wanted = from_home(out or Path())
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
