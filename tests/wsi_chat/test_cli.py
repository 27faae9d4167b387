"""The command line as a stranger meets it: help, bad input, exit codes, stdout for data and stderr for the rest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.commands import doctor
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import EngineDied

from ..tilers.test_bad_slides import CASES, make


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    command = [sys.executable, "-m", "wsi_chat.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedEngine]:
    """Every engine that the program loads follows a script: nothing abnormal, nothing found."""
    made: list[ScriptedEngine] = []

    def load(*args: object, **kwargs: object) -> ScriptedEngine:
        made.append(ScriptedEngine(lambda q: {"A": 0.9, "B": 0.1} if q.choices else f"No {q.target} is found."))
        return made[-1]

    monkeypatch.setattr("wsi_chat.engines.load_engine", load)
    return made


@pytest.mark.parametrize(
    "case", [c for c in CASES if "error" in c and not c.get("analyzed")], ids=lambda case: case["name"]
)
def test_bad_input_names_the_file_and_the_way_out(
    case: dict[str, Any], tmp_path: Path, shared_data: Path, scripted: list[ScriptedEngine],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    slide = make(case, tmp_path, shared_data)
    monkeypatch.setattr(sys, "argv", ["wsi-chat", "analyze", str(slide), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == case["exit"], shown.err
    assert [fragment for fragment in case["says"] if fragment not in shown.err] == []
    assert "fix:" in shown.err
    assert shown.out == ""
    assert scripted == []  # the file fails before any model is loaded
    assert slide.name in (tmp_path / "out" / "summary.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(("shade", "status"), [(255, "unsatisfactory"), (250, "unsatisfactory"), (0, "unsatisfactory")])
def test_an_all_white_and_an_all_black_slide_are_unsatisfactory_never_normal(
    shade: int, status: str, tmp_path: Path, scripted: list[ScriptedEngine]
) -> None:
    Image.fromarray(np.full((900, 1200, 3), shade, np.uint8)).save(tmp_path / "blank.png")
    done = CliRunner().invoke(
        cli.app, ["analyze", str(tmp_path / "blank.png"), "--mpp", "0.5", "-o", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert [row["status"] for row in json.loads(done.stdout)] == [status]


def test_a_slide_smaller_than_one_tile_is_one_tile(tmp_path: Path, scripted: list[ScriptedEngine]) -> None:
    pixels = np.full((90, 120, 3), 235, np.uint8)
    pixels[30:60, 40:70] = (90, 60, 130)
    Image.fromarray(pixels).save(tmp_path / "tiny.png")
    done = CliRunner().invoke(
        cli.app, ["analyze", str(tmp_path / "tiny.png"), "--mpp", "0.5", "-o", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)[0]
    assert (row["tiles_screened"], row["status"]) == (1, "normal")


def test_one_bad_slide_does_not_stop_the_others_and_the_exit_code_is_3(
    small_slide: Path, tmp_path: Path, scripted: list[ScriptedEngine]
) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        cli.app, ["analyze", str(tmp_path / "bad.svs"), str(small_slide), "-o", str(out), "--top-k", "0", "--json"]
    )
    assert done.exit_code == 3
    listing = [(row["file"], row["state"]) for row in json.loads(done.stdout)]
    assert listing == [("bad.svs", "failed"), (small_slide.name, "done")]
    assert "bad.svs" in done.stderr
    summary = (out / "summary.csv").read_text(encoding="utf-8-sig").splitlines()
    assert len(summary) == 3
    assert len(scripted) == 1  # the model is loaded once, and only when the first good slide needs it


def test_a_dead_engine_ends_the_run_with_3(small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(ScriptedEngine):
        def answer(self, queries):  # type: ignore[no-untyped-def]
            raise EngineDied("the engine died again", hint="Run it again.")
            yield

    monkeypatch.setattr("wsi_chat.engines.load_engine", lambda *a, **k: Dead({}))
    done = CliRunner().invoke(cli.app, ["analyze", str(small_slide), str(small_slide), "-o", str(tmp_path / "out")])
    assert done.exit_code == 3
    assert done.stderr.count("the engine died again") == 1


def test_unwritable_output_is_exit_1_before_any_slide_is_read(tmp_path: Path, scripted: list[ScriptedEngine]) -> None:
    (tmp_path / "file").write_text("")
    done = run("analyze", "x.svs", "-o", str(tmp_path / "file" / "out"))
    assert done.returncode == 1
    assert "-o" in done.stderr
    assert "fix:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["analyze"], "SLIDES"),
        (["analyze", "x.svs", "--overlap", "2"], "--overlap"),
        (["analyze", "x.svs", "--config", "absent.yaml"], "absent.yaml"),
        (["analyze", "x.svs", "--specimen", "moon-rock"], "moon-rock"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_an_unknown_specimen_lists_the_choices(
    small_slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["wsi-chat", "analyze", str(small_slide), "--specimen", "moon-rock", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "moon-rock" in shown
    assert "blood-smear" in shown


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom wsi_chat import cli\n"
        "done = CliRunner().invoke(cli.app, ['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'vllm', 'pandas'} & set(sys.modules)\n"
        "commands = {m for m in sys.modules if m.startswith('wsi_chat.commands.')} \n"
        "commands -= {'wsi_chat.commands.console', 'wsi_chat.commands.signals'}\n"
        "print(done.exit_code, sorted(heavy), sorted(commands), all(e.name in done.output for e in cli.COMMANDS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 [] [] True"


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_every_line_of_the_command_table_is_a_command_with_help_of_its_own(entry: cli.Entry) -> None:
    shown = CliRunner().invoke(cli.app, [entry.name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert f"wsi-chat {entry.name}" in " ".join(shown.output.split())


def test_the_help_of_a_command_loads_no_model_library() -> None:
    code = (
        "import contextlib, io, sys\nfrom wsi_chat import cli\n"
        "for entry in cli.COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        cli.app([entry.name, '--help'])\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_info_prints_the_slide_and_its_resolution(shared_data: Path) -> None:
    slide = str(shared_data / "slides" / "CMU-1-Small-Region.svs")
    done = CliRunner().invoke(cli.app, ["info", slide, "--json"])
    payload = json.loads(done.stdout)
    assert (payload["width"], payload["height"]) == (2220, 2967)
    assert (payload["mpp"], payload["mpp_source"]) == (0.499, "aperio.MPP")
    assert "2220 x 2967 px" in CliRunner().invoke(cli.app, ["info", slide]).stdout


def test_info_of_a_slide_without_resolution_names_the_flag(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "x.png")
    done = CliRunner().invoke(cli.app, ["info", str(tmp_path / "x.png")])
    assert done.exit_code == 0
    assert "--mpp" in done.stdout


def test_models_lists_the_embedded_checkpoint_and_a_broken_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["models", str(tmp_path / "nothing"), "--json"])
    first, second = json.loads(done.stdout)
    assert (first["name"], first["dialect"], first["state"]) == ("embedded", "embedded", "ready")
    assert first["architecture"].startswith("Qwen")
    assert 0 < first["weights_bytes"] <= 30 * 2**20
    assert second["state"] != "ready"
    assert "config.json" in second["state"]


def test_specimens_lists_what_can_be_named() -> None:
    rows = json.loads(CliRunner().invoke(cli.app, ["specimens", "--json"]).stdout)
    by_code = {code: row for row in rows for code in row["specimens"]}
    assert "HSIL" in by_code["cervix"]["asks"]
    assert by_code["blood-smear"]["sources"]


def test_the_effective_settings_and_their_sources_are_saved(
    small_slide: Path, tmp_path: Path, scripted: list[ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSI_CHAT_POOL", "mean")
    (tmp_path / "run.yaml").write_text("pool: max\nthreshold: 0.6\n")
    done = CliRunner().invoke(
        cli.app,
        [
            "analyze",
            str(small_slide),
            "--top-k=0",
            "-q",
            f"--out={tmp_path / 'o'}",
            f"--config={tmp_path / 'run.yaml'}",
        ],
    )
    assert done.exit_code == 0, done.output
    saved = json.loads((tmp_path / "o" / "run.json").read_text())
    assert (saved["config"]["pool"], saved["config"]["threshold"], saved["config"]["top_k"]) == ("mean", 0.6, 0)
    assert saved["origin"]["pool"] == "environment"
    assert done.stdout == ""


def test_ctrl_c_saves_the_state_and_the_rerun_goes_on(small_slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "import sys, time\nimport wsi_chat.engines as engines\n"
        "def slowly(q):\n    time.sleep(0.05)\n    return {'A': 0.9, 'B': 0.1}\n"
        "engines.load_engine = lambda *a, **k: engines.ScriptedEngine(slowly)\n"
        "from wsi_chat import cli\nsys.argv = ['wsi-chat', 'analyze', sys.argv[1], '-o', sys.argv[2], '--top-k', '0']\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", script, str(small_slide), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and _answers(out) < 5:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert "saved" in shown
    kept = _answers(out)
    assert kept >= 5
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    timings = json.loads(next(out.glob("*/report.json")).read_text())["timings"]
    assert timings["answers_reused"] == kept


def _answers(out: Path) -> int:
    from wsi_chat.errors import WsiChatError
    from wsi_chat.journal import Journal

    for path in out.glob("*/journal.sqlite"):
        try:
            with Journal(path, read_only=True) as journal:
                return len(journal)
        except WsiChatError:
            return 0
    return 0


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyError("choices"), "KeyError{}: 'choices'"), (AssertionError(), "AssertionError{}: it says no more")],
)
def test_an_error_of_an_engine_that_nobody_foresaw_is_a_sentence_with_a_way_out(
    tmp_path: Path,
    scripted: list[ScriptedEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    """A traceback that ended in its class name alone was all there was."""

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(ScriptedEngine, "_one", broken)
    Image.new("RGB", (64, 64)).save(tmp_path / "field.png")
    with pytest.raises(SystemExit) as left:
        cli.main(["ask", str(tmp_path / "field.png"), "Is it normal?"])
    assert left.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-2] == f"error: an unexpected {said.format(' in wsi_chat.engines.scripted')}"
    assert lines[-1] == "  fix: This is a fault of the program: please report it, with the lines above."


def test_doctor_has_a_fix_on_every_line_that_needs_one() -> None:
    done = CliRunner().invoke(cli.app, ["doctor", "--json"])
    checks = json.loads(done.stdout)
    assert {check["name"] for check in checks} >= {"openslide", "torch", "embedded checkpoint", "pdf", "output"}
    assert [c for c in checks if c["state"] not in ("PASS", "WARN", "FAIL")] == []
    assert [c["name"] for c in checks if c["state"] != "PASS" and not c["fix"]] == []
    assert done.exit_code == (1 if any(c["state"] == "FAIL" for c in checks) else 0)
    assert [c for c in checks if c["state"] == "FAIL"] == []


def test_doctor_names_versions_with_known_faults_and_the_way_past_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    installed = {"pillow": "12.1.9", "jinja2": "3.1.6", "torch": "2.6.0+cu124", "urllib3": "2.5"}

    def version(name: str) -> str:
        if name in installed:
            return installed[name]
        if name in doctor.FLOORS:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = doctor._known_faults()
    assert found.state == "WARN"
    assert found.fix == "pip install -U 'pillow>=13.0' 'urllib3>=2.6.3'"
    assert "crafted JPEG" in found.seen
    installed.update(pillow="13.0", urllib3="2.6.3rc1")
    assert doctor._known_faults().state == "PASS"


def test_doctor_fails_on_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(cli.app, ["doctor", "-o", str(tmp_path / "file" / "x"), "--json"])
    assert done.exit_code == 1
    assert [c["name"] for c in json.loads(done.stdout) if c["state"] == "FAIL"] == ["output"]
