"""The page in a notebook: the same viewer in a frame, served by a process of its own on this machine."""

from __future__ import annotations

import atexit
import html
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wsi_chat.analysis.result import SlideResult
from wsi_chat.errors import OutputError, SettingError

HEIGHT = 720


class View:
    """A page that is being served. In a notebook it shows itself; elsewhere ``url`` is where it is. A context manager.

    It ends with `close`, or with this process.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, *, height: int) -> None:
        self.url = url
        self.height = height
        self._process = process
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<View {self.url}{'' if self.running else ' (closed)'}>"

    def _repr_html_(self) -> str:
        address = html.escape(self.url, quote=True)
        if not self.running:
            return f"<p>The page at {address} is closed.</p>"
        return (
            f'<iframe src="{address}" width="100%" height="{self.height}" style="border:1px solid #c9d1d4"'
            f' title="wsi-chat"></iframe><p><a href="{address}" target="_blank" rel="noopener">{address}</a></p>'
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the page; calling it twice is harmless."""
        atexit.unregister(self.close)
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def view(source: str | Path | SlideResult, *, height: int = HEIGHT, **options: Any) -> View:
    """Look at a result, a run folder, a slide's folder or a slide in the browser, or in the notebook's cell.

    Args:
        source: what `analyze` returned, or a path.
        height: of the frame in a notebook, in pixels.
        **options: those of ``wsi-chat view`` by their names: ``slide=...``, ``language="zh"``, ``model=...``.

    Raises:
        SettingError: the page's packages are not installed, or an option is none.
        OutputError: the page did not start.
    """
    if importlib.util.find_spec("nicegui") is None:
        raise SettingError(
            "The page needs a package that is not installed (nicegui).", hint="Run: pip install 'wsi-chat[app]'"
        )
    given = dict(options)
    path: str | Path
    if isinstance(source, SlideResult):
        path = source.folder
        if source.slide_path is not None:
            given.setdefault("slide", source.slide_path)
    else:
        path = source
    command = [sys.executable, "-m", "wsi_chat", "view", str(path), "--no-browser", "--json"]
    if "port" not in given:
        command += ["--port", "0"]
    for name, value in given.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # the page ends when its standard input does: also where this process is killed
        process = subprocess.Popen(
            [*command, "--until-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            return View(process, str(json.loads(line)["url"]), height=height)
        process.wait()
        process.stdout.close()
        errors.seek(0)
        reason = errors.read().strip()
    raise OutputError(f"The page did not start. {reason}".strip(), hint="Run wsi-chat view in a terminal to see why.")
