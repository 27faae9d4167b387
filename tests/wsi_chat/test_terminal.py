"""Text of unknown origin, a file's name or a model's answer, cannot steer the terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.analysis.manifest import Sample
from wsi_chat.commands import cohort, console
from wsi_chat.commands.chat import _Writer
from wsi_chat.commands.console import complain, say, say_json, visible
from wsi_chat.commands.progress import slide_bar
from wsi_chat.commands.terminal import Console
from wsi_chat.errors import WsiChatError

HOSTILE = "a\x1b[2Jb\x9b1m\x07\r\u202ec\udcff"
SHOWN = "a␛[2Jb\ufffd1m␇␍\ufffdc\ufffd"


def test_controls_become_symbols_and_layout_stays() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("line\n\tnext µm 细胞 \U0001f52c") == "line\n\tnext µm 细胞 \U0001f52c"


def test_lines_errors_and_answers_as_they_come_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    complain(WsiChatError(HOSTILE, hint=HOSTILE))
    for width in (None, 40):
        writer = _Writer(width)
        writer.write(HOSTILE)
        writer.end()
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n{SHOWN}{SHOWN}"
    # an error spells out a byte that is no UTF-8, so that the file can be named
    spelled = SHOWN[:-1] + "\\xff"
    assert err == f"error: {spelled}\n  fix: {spelled}\n"


def test_json_keeps_the_data_and_escapes_the_controls(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"name": HOSTILE, "unit": "µm"})
    out = capsys.readouterr().out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert json.loads(out) == {"name": HOSTILE, "unit": "µm"}
    assert "µm" in out


def test_a_console_keeps_its_own_styles_and_no_others() -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard", highlight=False).print(
        HOSTILE[:5], style="bold", markup=False
    )
    assert file.getvalue() == "\x1b[1ma␛[2J\x1b[0m\n"


def test_the_name_of_a_slide_is_harmless(tmp_path: Path) -> None:
    slide = tmp_path / "bad\x1b[31m.svs"
    slide.write_text("no slide")
    done = CliRunner().invoke(cli.app, ["analyze", str(slide), "-o", str(tmp_path / "out")])
    assert "\x1b" not in done.output
    assert "bad␛[31m.svs" in done.stderr


def test_no_command_prints_but_through_these_functions() -> None:
    folder = Path(console.__file__).parent
    own = {"console.py", "terminal.py"}
    plain = re.compile(r"(?<![\w.])print\(|typer\.echo\(|^\s*from rich\.console import Console$", re.M)
    assert [p.name for p in folder.glob("*.py") if p.name not in own and plain.search(p.read_text("utf-8"))] == []


def test_the_bars_of_a_cohort_show_a_name_and_obey_none_of_it() -> None:
    """A file named [link=x] made a link of the terminal's."""
    file = io.StringIO()
    shown = Console(file=file, force_terminal=True, color_system="standard", width=120)
    name = "[red]a[bold] [link=x]y.tif"
    with slide_bar(shown, Path(name), quiet=False) as bar:
        bar(name, 1, 2)
    with cohort._watch(shown, quiet=False) as watcher:
        watcher.planned(2, [])
        watcher.begun(Sample("s", Path(name)))("screen", 1, 2)
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert told.count(name[:26]) >= 3
    assert "\x1b" not in told
