"""Cases run in a forked process that may crash, hang or swell; the next one starts where it ended."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import random
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wsi_chat.errors import WsiChatError

HANG = 20.0  # seconds of processor time that a case may take; others may load the machine
WAIT = 20.0  # times as long may it take by the clock
PEAK = 1200 * 2**20  # resident bytes that a case may reach beyond what its process started with
ADDRESS_SPACE = 6 * 2**30  # beyond what the process has mapped when it starts
ROOT = Path(__file__).resolve().parents[2]

Row = dict[str, Any]
Case = Callable[[random.Random, int, Path], Row]
"""Does one case in a scratch folder. What it returns is added to its row; what it raises is told apart here, and the
error's attribute ``fuzz``, a Row, is added too."""


def run(case: Case, numbers: Sequence[int], name: str, *, hang: float = HANG) -> Iterator[Row]:
    """Rows of the numbered cases, in order. ``name`` and the number seed the case's random numbers."""
    left = list(numbers)
    while left:
        done, ended = 0, ""
        for row in _child(case, left, name, hang):
            if "ended" in row:
                ended = str(row["ended"])
                break
            done += 1
            yield row
        if not ended:
            left = left[done:]
            continue
        kind, _, where = ended.partition("|")
        outcome = {"timeout": "hang", "SIGPROF": "hang", "SIGKILL": "memory"}.get(kind, "abort")
        yield {"number": left[done], "outcome": outcome, "kind": kind, "where": where}
        left = left[done + 1 :]


def _child(case: Case, numbers: Sequence[int], name: str, hang: float) -> Iterator[Row]:
    """Rows of a process of its own; the last one has ``ended`` where it did not finish its work."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as trace, tempfile.TemporaryDirectory(dir=_memory_disk()) as scratch:
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                _work(case, numbers, name, hang, write, trace.fileno(), Path(scratch))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(3)
        os.close(write)
        with os.fdopen(read, "rb") as answers:
            for line in answers:
                if line.endswith(b"\n"):
                    yield json.loads(line)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        trace.seek(0)
        told = trace.read().decode(errors="replace")
        reason = "timeout" if told.startswith("Timeout") else signal.Signals(-code).name if code < 0 else f"exit {code}"
        yield {"ended": f"{reason}|{_frames_of_dump(told)}"}


def _memory_disk() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _work(case: Case, numbers: Sequence[int], name: str, hang: float, answers: int, trace: int, scratch: Path) -> None:
    os.environ["WSI_CHAT_TRIAL"] = "false"  # what a library does to the process that reads is what is looked for
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)  # what libraries print of damaged files
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE,) * 2)
    started = _peak()
    gc.freeze()  # modules and seeds stay: only what a case leaves is looked through
    faulthandler.enable(trace, all_threads=False)
    faulthandler.register(signal.SIGPROF, trace, all_threads=False, chain=True)  # then it ends the process
    for number in numbers:
        os.ftruncate(trace, 0)
        os.lseek(trace, 0, os.SEEK_SET)
        faulthandler.dump_traceback_later(hang * WAIT, exit=True, file=trace)
        signal.setitimer(signal.ITIMER_PROF, hang)
        row = {"number": number, **attempt(case, random.Random(f"{name}/{number}"), number, scratch)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        peak = _peak() - started
        if peak > PEAK:
            row |= {"peak_mib": peak // 2**20, "was": row["outcome"], "outcome": "memory"}
        os.write(answers, json.dumps(row, default=str).encode() + b"\n")
        if peak > PEAK or number % 5000 == 4999:
            break  # a peak is never forgotten: a fresh process for the next case
        if number % 50 == 0:
            gc.collect()
    os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(case: Case, rng: random.Random, number: int, scratch: Path) -> Row:
    """The row of one case, whatever it raises."""
    try:
        return {"outcome": "ok", **case(rng, number, scratch)}
    except BaseException as error:
        return {**getattr(error, "fuzz", {}), **_of(error)}


def _of(error: BaseException) -> Row:
    kind = type(error).__name__
    if isinstance(error, WsiChatError):
        if error.hint:
            return {"outcome": "typed", "kind": kind}
        return {"outcome": "untyped", "kind": f"{kind} without a way out", "why": error.message[:200], **_where(error)}
    if isinstance(error, MemoryError):
        return {"outcome": "memory", "kind": kind, **_where(error)}
    return {"outcome": "untyped", "kind": kind, "why": str(error)[:200], **_where(error)}


def _where(error: BaseException) -> Row:
    """The last frame of this project, and the very last."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parent
    ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT) and not Path(f.filename).is_relative_to(here)]
    picked = [*frames[-1:], *(f for f in ours[-1:] if f is not frames[-1])]
    return {"where": " < ".join(f"{_short(f.filename)}:{f.lineno}" for f in picked)}


def _short(file: str) -> str:
    with contextlib.suppress(ValueError):
        return str(Path(file).relative_to(ROOT))
    return "/".join(Path(file).parts[-2:])


def _frames_of_dump(told: str) -> str:
    """The innermost frames of what faulthandler wrote, the last of this project among them."""
    frames = []
    for line in told.splitlines():
        if line.strip().startswith('File "'):
            _, file, rest = line.split('"', 2)
            frames.append((file, f"{_short(file)}:{rest.split(',')[1].split()[1]}"))
    ours = [text for file, text in frames if file.startswith(str(ROOT)) and "benchmarks/fuzz" not in file]
    return " < ".join([text for _, text in frames[:1]] + [text for text in ours[:1] if text != frames[0][1]])
