"""Text of unknown origin, a file's name or a model's answer, cannot steer the terminal."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.analysis.sample import Sample
from wsi_chat.commands import cohort, console
from wsi_chat.commands.chat import _Writer
from wsi_chat.commands.console import complain, say, say_json
from wsi_chat.commands.progress import slide_bar
from wsi_chat.commands.terminal import Console
from wsi_chat.control_characters import one_line, visible
from wsi_chat.datasets.mosaic import write_pyramid
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


REASON = (
    "The score 0.998 (calibrated by Platt scaling on 174 rendered slides, logistic regression) reaches the threshold "
    "0.500; highest tile t000160 at 1.000."
)
CHINESE = "评分 0.998（按 174 张渲染切片校准）达到阈值 0.500，最高的图块为 t000160。" * 3


@pytest.mark.parametrize("width", [12, 40, 80, 120])
@pytest.mark.parametrize("text", [REASON, CHINESE])
def test_a_long_text_is_wrapped_below_its_own_beginning_on_a_terminal(width: int, text: str) -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=width, highlight=False).hang("  reason    ", text)
    first, *rest = file.getvalue().splitlines()
    assert first.startswith(f"  reason    {text[:2]}")
    assert [line[:13] for line in rest if not re.match(" {12}[^ ]", line)] == []
    assert max(cell_len(line) for line in (first, *rest)) <= max(width, 32)
    assert [line for line in (first, *rest) if line.endswith(" ")] == []
    said = "".join(line[12:] for line in (first, *rest))
    assert said.replace(" ", "") == text.replace(" ", "")


def test_a_long_text_is_one_line_where_it_goes_to_a_file_and_steers_nothing() -> None:
    file = io.StringIO()
    Console(file=file, width=40, highlight=False).hang("  reason    ", REASON)
    Console(file=file, force_terminal=True, width=400, highlight=False).hang("  note: ", f"[red]{HOSTILE}\nfindings")
    assert file.getvalue() == f"  reason    {REASON}\n  note: [red]{SHOWN}␊findings\n"


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


BREAKS = "a\nb\u2028c\u2029d\x85e\rf\vg\fh.svs"
ONE_LINE = "a␊b\ufffdc\ufffdd\ufffde␍f␋g␌h.svs"


def test_a_name_with_line_breaks_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_line(BREAKS) == ONE_LINE
    say(BREAKS)
    file = io.StringIO()
    Console(file=file, soft_wrap=True).print(f"  {BREAKS}", markup=False)
    complain(WsiChatError(f"{BREAKS} is no slide.", hint=f"Rename {BREAKS}."))
    complain(WsiChatError("x\n  fix: forged"))
    console._ToStderr().emit(logging.LogRecord("x", logging.WARNING, "", 1, "%s", ("odd\nname.svs",), None))
    out, err = capsys.readouterr()
    assert (out, file.getvalue()) == (f"{ONE_LINE}\n", f"  {ONE_LINE}\n")
    assert err.splitlines() == [
        f"error: {ONE_LINE} is no slide.", f"  fix: Rename {ONE_LINE}.", "error: x␊  fix: forged",
        "WARNING: odd␊name.svs",
    ]  # fmt: skip


def test_a_list_of_faults_keeps_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    complain(WsiChatError("m.csv has 2 faults:\n  line 2: a\n  line 3: b"))
    assert capsys.readouterr().err.splitlines() == ["error: m.csv has 2 faults:", "  line 2: a", "  line 3: b"]


def test_a_slide_s_name_cannot_pass_for_a_result(tmp_path: Path) -> None:
    name = "new\nforged.svs  NORMAL"
    slide = tmp_path / f"{name}.tiff"
    cells = np.full((500, 600, 3), 236, np.uint8)
    cells[100:400, 100:400] = (90, 60, 120)
    write_pyramid(slide, cells, mpp=0.5)
    shown = CliRunner().invoke(cli.app, ["info", str(slide)]).output
    done = CliRunner().invoke(
        cli.app, ["analyze", str(slide), "-o", str(tmp_path / "out"), "--limit", "2", "--no-pdf", "--top-k", "0"]
    )
    listed = CliRunner().invoke(cli.app, ["cohort", str(tmp_path), "-o", str(tmp_path / "out2"), "--limit", "1",
                                          "--no-pdf", "--top-k", "0"])  # fmt: skip
    for output in (shown, done.stdout, listed.output):
        assert "new␊" in output
    for output in (shown, done.output, listed.output):
        assert [line for line in output.splitlines() if line.startswith("forged")] == []


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
