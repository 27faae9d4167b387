"""Readers that do what a library in C may do with a file that nobody foresaw. Imported by name, also by the child."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from tilers.readers import Backend, Pixels, WindowBackend
from wsi_chat.errors import SlideUnsupported

SUFFIX = ".bad"
MEGABYTES = 2048


class Calm(WindowBackend):
    """A slide of one grey level, 1000 x 700 px, whose reading does as the file says."""

    level_sizes = ((1000, 700), (500, 350))
    level_downsamples = (1.0, 2.0)

    def __init__(self, path: Path, what: str) -> None:
        self._what = what
        self._path = path

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        if level == 1 and x > 0:
            misbehave(self._what, self._path)
        return np.full((height, width, 3), 128, np.uint8)

    def close(self) -> None: ...


def misbehave(what: str, path: Path) -> None:
    """Abort, crash, end, never end, or swell."""
    if what == "abort":
        os.abort()
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "exit":
        os._exit(3)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "sleep":
        time.sleep(600)
    elif what == "loop":
        while True:
            pass
    elif what == "linger":  # as a large process does, whose memory is given back after its files
        os.closerange(0, 256)
        time.sleep(0.5)
        os._exit(3)
    elif what == "swell":
        np.ones(MEGABYTES * 2**20, np.uint8)
    elif what == "print":
        os.write(1, b"done\nmemory\n")
        print("done", flush=True)
    elif what == "poison":  # the process is damaged, and dies of the next slide
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        marker = path.with_name(f"poisoned-{os.getpid()}")
        marker.touch()


def open_bad(path: Path) -> Backend:
    """A file that holds two words: ``open`` or ``read``, and what happens then."""
    if path.suffix != SUFFIX:
        raise SlideUnsupported("no bad slide")
    when, what = path.read_text().split()
    if path.with_name(f"poisoned-{os.getpid()}").exists():
        os.abort()
    if when == "open":
        misbehave(what, path)
    return Calm(path, what if when == "read" else "")
