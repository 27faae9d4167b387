"""Ctrl-C and SIGTERM at random instants of the first seconds of `wsi-chat analyze`: exit codes, and what is left.

    PYTHONPATH=. python benchmarks/interrupts.py --tries 60 [--span 4] [--seed 1]

Each try starts a run of the embedded checkpoint on a small rendered slide, waits until the program handles signals (the
kernel says so), and sends one of the two after up to ``--span`` seconds, on a busy machine more: that is when torch and
transformers are imported. The exit code must be 130 or 143, without a traceback, a hidden file or a mark. Linux only.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from wsi_chat.datasets.render import render_slide

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=60)
    parser.add_argument("--span", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    codes: Counter[str] = Counter()
    odd, waits = [], []
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tiff"
        render_slide(slide, width_px=1024, height_px=1024, seed=1)
        for number in range(given.tries):
            sent, after = rng.choice(SIGNALS), rng.uniform(0, given.span)
            code, wait, faults = interrupt(slide, Path(folder) / f"out{number}", sent, after)
            codes[f"{sent.name} {code}"] += 1
            waits.append(wait)
            if code != 128 + sent:
                faults.append(f"exit code {code}")
            if faults:
                odd.append(f"{sent.name} after {after:.2f} s: {', '.join(faults)}")
    print("| signal and exit code | tries |\n|---|---|")
    for name, count in sorted(codes.items()):
        print(f"| {name} | {count} |")
    print(f"odd: {len(odd)}; seconds from the signal to the end: at most {max(waits):.1f}", *odd, sep="\n")


def interrupt(slide: Path, out: Path, sent: signal.Signals, after: float) -> tuple[int, float, list[str]]:
    """One run and its interruption: exit code, seconds until the end, what is wrong."""
    words = [sys.executable, "-m", "wsi_chat", "analyze", str(slide), "--specimen", "cervix", "-o", str(out)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_heed_signals
    )
    while process.poll() is None and not _handles_signals(process.pid):
        time.sleep(0.002)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(sent)
    began = time.monotonic()
    said = process.communicate(timeout=600)[0]
    left = [path.name for path in out.rglob(".*") if path.suffix in (".part", ".reading")]
    faults = [f"left {name}" for name in left] + ["a traceback"] * ("Traceback" in said)
    return process.returncode, time.monotonic() - began, faults


def _heed_signals() -> None:
    for number in SIGNALS:  # a shell starts what runs in the background with Ctrl-C ignored
        signal.signal(number, signal.SIG_DFL)


def _handles_signals(process: int) -> bool:
    caught = int(Path(f"/proc/{process}/status").read_text().split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


if __name__ == "__main__":
    main()
