"""The process in which slides are opened on trial; see `tilers.trial`.

Requests come as lines of JSON on standard input, answers go as words to what was standard output: libraries that print
write to nowhere. The process ends itself where a slide takes too long, when nothing was asked for a while, and when
whoever asks is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from tilers.opening import open_untried
from tilers.readers import register_reader
from tilers.slide import Slide

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

TILE_PX = 256
MAX_LEVELS = 16  # of which tiles are read, evenly
IDLE_SECONDS = 60.0  # after which the process ends: the next slide starts another one
LOOK_SECONDS = 5.0  # between two looks whether the parent still lives
SWOLLEN_BYTES = 2**30  # a process that was once so large makes room


class _Swollen(Exception):
    """More memory was wanted than the process may have."""


def serve(work_seconds: float, wait_seconds: float, memory: int) -> None:
    """Try slide after slide until standard input ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # they are meant for the parent, whose end is the end of this one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    requests, answers = _pipes()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _bound_memory(memory)
    parent = os.getppid()
    answers.write(b"ready\n")
    for line in _lines(requests, parent):
        with _bounded_time(work_seconds, wait_seconds):
            try:
                _try(json.loads(line), answers)
                answers.write(b"done\n")
            except _Swollen:
                answers.write(b"memory\n")
        if _peak() > SWOLLEN_BYTES:
            return


def _pipes() -> tuple[int, BinaryIO]:
    """Copies of standard input and output, whose places are taken by the null device."""
    requests, answers = os.dup(0), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return requests, answers


def _lines(requests: int, parent: int) -> Iterator[bytes]:
    """Requests as they come; ends with them, with the parent, or after a while without any."""
    kept = b""
    while True:
        line, end, kept = kept.partition(b"\n")
        if end:
            yield line
            continue
        kept = line
        if not _is_asked(requests, parent):
            return
        more = os.read(requests, 2**16)
        if not more:
            return
        kept += more


def _is_asked(requests: int, parent: int) -> bool:
    if sys.platform == "win32":
        return True  # reading waits
    for _ in range(int(IDLE_SECONDS / LOOK_SECONDS)):
        if select.select([requests], [], [], LOOK_SECONDS)[0]:
            return True
        if os.getppid() != parent:
            return False
    return False


def _bound_memory(memory: int) -> None:
    if resource is None:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))


@contextmanager
def _bounded_time(work_seconds: float, wait_seconds: float) -> Iterator[None]:
    """The process dies by SIGPROF or SIGALRM in the middle of whatever it does, Python or not."""
    if not hasattr(signal, "setitimer"):  # Windows: the parent ends the process
        yield
        return
    clocks = ((signal.ITIMER_PROF, work_seconds), (signal.ITIMER_REAL, wait_seconds))
    for clock, seconds in clocks:
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for clock, _ in clocks:
            signal.setitimer(clock, 0)


def _peak() -> int:
    """The most memory that the process has had, in bytes; 0 where it is not known.

    Linux counts in ru_maxrss what the parent had when it started this process, so that /proc is asked there.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    if resource is None or sys.platform == "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _try(request: Mapping[str, Any], answers: BinaryIO) -> None:
    """Open a slide and read of it. What it raises is nobody's concern here, but for memory."""

    def say(doing: str) -> None:
        answers.write(f"during {doing}\n".encode(errors="replace"))

    def trying(reader: str, error: BaseException | None) -> None:
        if error is not None:
            _require_room(error)
        else:
            say(f"the reader {reader} opened it")

    _register(request["registered"])
    try:
        with open_untried(Path(request["path"]), reader=request["reader"], trying=trying) as slide:
            for level, x, y in _places(slide):
                say(f"the reader {slide.reader} read from its level {level}")
                try:
                    width, height = (min(TILE_PX, side) for side in slide.level_sizes[level])
                    slide.read_region(x, y, level, width, height, z=slide.middle_plane)
                except Exception as error:
                    _require_room(error)
            say(f"the reader {slide.reader} closed it")
    except _Swollen:
        raise
    except Exception as error:
        _require_room(error)


def _require_room(error: BaseException) -> None:
    """Raise `_Swollen` where an error, or what it came from, is a lack of memory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            raise _Swollen from error
        seen = seen.__cause__ or seen.__context__


def _places(slide: Slide) -> Iterator[tuple[int, int, int]]:
    """The first, the middle and the last tile of each level: (level, x and y at level 0)."""
    levels = range(len(slide.level_sizes))
    for level in sorted({levels[i * (len(levels) - 1) // (MAX_LEVELS - 1)] for i in range(MAX_LEVELS)}):
        (width, height), scale = slide.level_sizes[level], slide.level_downsamples[level]
        room = [max(0, side - TILE_PX) for side in (width, height)]
        for part in (0.0, 0.5, 1.0):
            x, y = (int(int(free * part) * scale) for free in room)
            yield level, x, y


def _register(readers: Mapping[str, Sequence[Any]]) -> None:
    for name, (module, function, suffixes) in readers.items():
        with contextlib.suppress(Exception):  # one that cannot be had here opens nothing here
            register_reader(name, getattr(import_module(module), function), suffixes=suffixes)
