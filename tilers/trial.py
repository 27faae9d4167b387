"""A slide is opened on trial, in a process of its own, before this process opens it.

The libraries that read slides are large and written in C. A file that makes one of them abort, never end or allocate
without bound does so there, and is refused here with an error that says how the trial ended. Everything else that may
be wrong with a file (no reader knows it, its pixels are damaged) is no matter of the trial: this process then meets it
itself. One process serves all slides one after another; it is started when it is first needed and after it has died.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilers.dicom import dicom_files
from tilers.remote import STORE_MARKS, RemotePath
from wsi_chat.declaration import ENV_PREFIX
from wsi_chat.errors import SettingError, SlideUnreadable

log = logging.getLogger(__name__)

VARIABLE = f"{ENV_PREFIX}TRIAL"
WORK_SECONDS = 20.0  # of processor time that a trial may take: others may load the machine
WAIT_SECONDS = 180.0  # that it may take by the clock: a share on the network may be slow
START_SECONDS = 120.0
END_SECONDS = 10.0  # in which a child that has closed its pipes comes to its end
MEMORY_BYTES = 4 * 2**30  # of private memory that the process may have; reading a slide stays far below it

# Pictures of single fields, by their first bytes and their suffix: decoded whole, on opening, by libjpeg-turbo, zlib
# and libwebp, which are tried with damaged files day and night. They are opened without a trial.
PICTURES = {
    ".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".bmp": b"BM", ".webp": b"RIFF",
}  # fmt: skip

# The end of a process that says nothing of what it did: somebody else ended it.
_FROM_OUTSIDE = {-getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)}
_OUT_OF_TIME = {-getattr(signal, name) for name in ("SIGPROF", "SIGALRM") if hasattr(signal, name)}

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tilers.trial_child import serve; "
    "serve({work}, {wait}, {memory})"
)
Registered = Mapping[str, tuple[str, str, tuple[str, ...]]]
"""Name of a reader -> the module and the name of the function that opens files, and its suffixes."""


def wanted(trial: bool | None) -> bool:
    """Whether slides are tried: as the caller says, else as the environment does, else yes.

    Raises:
        SettingError: the environment says neither yes nor no.
    """
    if trial is not None:
        return trial
    said = os.environ.get(VARIABLE, "").strip().lower()
    if said in ("", "1", "true", "yes", "on"):
        return True
    if said in ("0", "false", "no", "off"):
        return False
    raise SettingError(f"{VARIABLE}: {said!r} is neither yes nor no.", hint="Set it to true or false.")


def needs_trial(path: Path) -> bool:
    """Whether a file is of a kind that is tried: not an address, not a picture of a field nor a folder of them."""
    if isinstance(path, RemotePath):
        return False
    try:
        if path.is_dir():  # each of several photographs is opened, and tried, by itself
            return any((path / mark).is_file() for mark in STORE_MARKS) or bool(dicom_files(path))
        magic = PICTURES.get(path.suffix.lower())
        if magic is None:
            return True
        with path.open("rb") as file:
            return file.read(len(magic)) != magic
    except OSError:
        return False  # whoever opens it says what is wrong


@dataclass(frozen=True, slots=True)
class End:
    """How a trial ended that went wrong: what the slide did, and while what was done with it.

    ``outside``: somebody else may have ended the process, or it ended of itself.
    """

    did: str
    during: str
    outside: bool = False


class Trial:
    """Opens slides in a child process, one after another; any thread may call it.

    Args:
        work_seconds, wait_seconds: of processor time, and by the clock, that one slide may take.
        memory: bytes of private memory that the child may have.
    """

    def __init__(
        self, *, work_seconds: float = WORK_SECONDS, wait_seconds: float = WAIT_SECONDS, memory: int = MEMORY_BYTES
    ) -> None:
        self._limits = {"work": work_seconds, "wait": wait_seconds, "memory": memory}
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = self._fresh = False
        self._impossible = False
        self._told: dict[tuple[object, ...], End | None] = {}
        self.started = 0  # child processes so far
        self.tried = 0  # slides

    def check(self, path: Path, *, reader: str | None = None, registered: Registered | None = None) -> None:
        """Try a slide, unless it was tried before and has not changed since.

        Args:
            reader: the only reader to try.
            registered: readers of this process alone that the child must know too.

        Raises:
            SlideUnreadable: it made the process in which it was opened die, never end, or swell.
        """
        end = self._end(path, reader, registered or {})
        if end is not None:
            raise SlideUnreadable(
                f"{path.name} is refused: opened on trial, in a process of its own, it {end.did} while {end.during}.",
                hint="Copy the file again from its source; it looks damaged. If it is sound and you trust it, "
                f"set trial: false in a configuration file, or {VARIABLE}=false, to open it without a trial.",
            )

    def start(self) -> None:
        """Start the child if it does not run, without waiting until it is there."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the child; the next trial starts another one."""
        with self._lock:
            self._end_child()

    # ------------------------------------------------------------------------------------------ one slide

    def _end(self, path: Path, reader: str | None, registered: Registered) -> End | None:
        with self._lock:
            try:
                file = path.stat()
            except OSError:
                return None
            key = (str(path.absolute()), reader, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
            if key not in self._told:
                request = {"path": str(path), "reader": reader, "registered": registered}
                self._told[key] = self._try(json.dumps(request).encode() + b"\n")
                self.tried += 1
            return self._told[key]

    def _try(self, request: bytes) -> End | None:
        """The verdict of a child that has seen no other slide before, or of one that lived."""
        end: End | None = None
        for _ in range(2):
            child = self._running()
            if child is None:
                return None
            fresh = self._fresh
            self._fresh = False
            try:
                end = self._ask(child, request)
            except BaseException:  # an interrupt: what the child says next is no answer to what is asked next
                self._end_child()
                raise
            if end is None or (fresh and not end.outside):
                return end
        return end

    def _ask(self, child: subprocess.Popen[bytes], request: bytes) -> End | None:
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()
        timer = threading.Timer(self._limits["wait"] + (0 if self._ready else START_SECONDS), _kill, (child, late))
        timer.daemon = True
        timer.start()
        during = "it was opened"
        try:
            with contextlib.suppress(OSError):  # it has just ended
                child.stdin.write(request)
                child.stdin.flush()
            while line := child.stdout.readline():
                word, _, rest = line.decode(errors="replace").strip().partition(" ")
                if word == "ready":
                    self._ready = True
                elif word == "during":
                    during = rest
                elif word == "memory":
                    self._end_child()
                    return End(f"wanted more than {self._limits['memory'] / 2**30:.3g} GiB of memory", during)
                elif word == "done":
                    return None
        finally:
            timer.cancel()
        code = self._end_child(wait=True)
        if not self._ready:
            self._cannot_start(code)
            return None
        if late.is_set() or code in _OUT_OF_TIME:
            limits = f"{self._limits['work']:.3g} s of processor time or {self._limits['wait']:.3g} s by the clock"
            return End(f"took more than {limits}", during)
        return End(_how(code), during, outside=code in _FROM_OUTSIDE or code == 0)

    def _cannot_start(self, code: int) -> None:
        """No verdict: slides are opened as if no trial had been asked for."""
        self._impossible = True
        log.warning(
            "slides cannot be opened on trial: %s -c ... %s before it was ready; "
            "a file that makes a library abort will end the run",
            sys.executable,
            _how(code),
        )

    # ------------------------------------------------------------------------------------------ the child

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._impossible or not sys.executable or getattr(sys, "frozen", False):
            return None
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end_child()
        # numbers of threads: it decodes a few tiles; arenas: they would count as memory that is in use
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
        options: dict[str, Any] = {} if sys.platform == "win32" else {"start_new_session": True}
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _START.format(**self._limits), json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **alone, VARIABLE: "false"},
                **options,
            )
        except OSError as error:
            self._impossible = True
            log.warning("slides cannot be opened on trial: %s cannot be started: %s", sys.executable, error)
            return None
        self.started += 1
        self._ready, self._fresh = False, True
        return self._child

    def _end_child(self, *, wait: bool = False) -> int:
        """End the child, or with ``wait`` let it come to its own end first; gives its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        if wait:  # what ended it is wanted, and not that it was ended here
            # not wait(timeout): that looks again and again, and where a preloaded clock makes sleeping fail, so does it
            timer = threading.Timer(END_SECONDS, child.kill)
            timer.daemon = True
            timer.start()
            try:
                child.wait()
            finally:
                timer.cancel()
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # what it never read
                if pipe is not None:
                    pipe.close()
        return child.wait()

    def _forget_child(self) -> None:
        """In a forked process: the child is its parent's."""
        self._lock = threading.Lock()
        self._child = None


def _kill(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    child.kill()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended it with exit code {code}"
    try:
        return f"ended it by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended it by signal {-code}"


trial = Trial()
"""The one that `tilers.open_slide` asks."""

atexit.register(trial.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=trial._forget_child)
