"""Ctrl-C and SIGTERM: from the first import on, and with a second one on top, exit 130 or 143 with the state saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsi_chat.commands import signals
from wsi_chat.commands.signals import every_interrupt, signals_handled

RUN = (
    "import sys, time\nfrom wsi_chat.commands.signals import handle_signals\nhandle_signals()\n"
    "import wsi_chat.engines as engines\n"
    "def slowly(q):\n    time.sleep(0.05)\n    return {'A': 0.9, 'B': 0.1}\n"
    "engines.load_engine = lambda *a, **k: engines.ScriptedEngine(slowly)\n"
    "from wsi_chat.__main__ import main\n"
    "sys.argv = ['wsi-chat', 'analyze', sys.argv[1], '-o', sys.argv[2], '--top-k', '0']\n"
    "main()"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "function", "imported", "argument"),
    [
        ("importlib", "import_module", "wsi_chat.commands.doctor", "doctor"),  # a command; typer gave 130 after SIGTERM
        ("builtins", "__import__", "typer", "--help"),  # the program itself
    ],
)
def test_a_signal_during_an_import_ends_the_program_with_its_code(
    module: str, function: str, imported: str, argument: str, number: signal.Signals
) -> None:
    script = (
        f"import os, {module}\nreal = {module}.{function}\n"
        "def load(name, *rest, **more):\n"
        f"    if name == {imported!r}:\n        os.kill(os.getpid(), {int(number)})\n"
        "    return real(name, *rest, **more)\n"
        f"{module}.{function} = load\nfrom wsi_chat.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_impatient_second_signal_does_not_break_off_the_saving(
    number: signal.Signals, small_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(small_slide), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not list(out.glob("*/journal.sqlite")):
        time.sleep(0.02)
    while process.poll() is None:  # to the very end of the process
        os.kill(process.pid, number)
        time.sleep(0.005)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + number, shown
    assert "saved" in shown
    assert "Traceback" not in shown
    assert (out / "run.json").exists()


def test_only_the_first_of_two_signals_interrupts_and_a_late_one_does_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM)
    with signals_handled():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signals.exit_code() == 143
        now[0] += 5
        signal.raise_signal(signal.SIGINT)
        assert signals.exit_code() == 143  # the first one ended it
        now[0] += 6
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.exit_code() == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_a_conversation_every_interrupt_counts() -> None:
    with signals_handled(), every_interrupt():
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_sigterm_inside_of_an_exec_of_text_ends_with_143(tmp_path: Path) -> None:
    """CPython ended ``python -m`` by SIGINT after KeyboardInterrupt in exec("..."), as libraries do while imported."""
    (tmp_path / "program.py").write_text(
        "import runpy, sys\n"
        "import wsi_chat.cli\n"
        "from wsi_chat.commands.signals import exit_code\n"
        "def run():\n"
        "    try:\n"
        "        exec('import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)')\n"
        "    except KeyboardInterrupt:\n"
        "        print('saved')\n"
        "        sys.exit(exit_code())\n"
        "wsi_chat.cli.main = run\n"
        "runpy.run_module('wsi_chat', run_name='__main__', alter_sys=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "program"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (143, "saved\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_an_import_waits_until_the_module_is_whole(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's extension aborted the process where KeyboardInterrupt came out of its import."""
    (tmp_path / "heavy_one.py").write_text(
        f"import signal\nsignal.raise_signal({int(number)})\nbegan = True\n"
        "import heavy_two\nwhole = True\n"  # imports in an import, and code that would catch the exception
    )
    (tmp_path / "heavy_two.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n    broken = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signals, "LOOK_SECONDS", 1000)
    for name in ("heavy_one", "heavy_two"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with signals_handled():
        import heavy_one  # type: ignore[import-not-found]

        with pytest.raises(KeyboardInterrupt):
            signals.deliver_held()
        assert signals.exit_code() == 128 + number
        signals.deliver_held()  # once
    assert heavy_one.whole
    assert not hasattr(heavy_one.heavy_two, "broken")


def test_a_signal_that_was_held_comes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_three.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def run() -> None:
        with signals_handled():
            import heavy_three  # type: ignore[import-not-found]  # noqa: F401

            time.sleep(60)
            raise AssertionError("the signal waited for the sleep to end")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert signals.exit_code() == 143


def test_a_signal_in_a_del_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints what a ``__del__`` raises, and goes on."""
    monkeypatch.setattr(signals, "LOOK_SECONDS", 1000)

    class Gone:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with signals_handled():
        gone = Gone()
        del gone
        with pytest.raises(KeyboardInterrupt):
            signals.deliver_held()


def test_a_signal_that_was_delivered_is_not_delivered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to whoever handles signals next."""
    monkeypatch.setattr(signals, "_held", 0)
    monkeypatch.setattr(signals, "LOOK_SECONDS", 0)
    signals._look_again(signal.SIGINT)
    for _ in range(100):
        pass


def test_a_program_that_runs_within_an_import_is_interrupted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "analysis_in_a_module.py").write_text(
        "import signal\nfrom wsi_chat.commands.signals import signals_handled\n"
        "with signals_handled():\n    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n        came = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import analysis_in_a_module  # type: ignore[import-not-found]

    assert analysis_in_a_module.came
