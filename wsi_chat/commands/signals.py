"""Ctrl-C and SIGTERM end a run with its state saved, from the program's first import to its last line.

The exit code names the signal as a shell does: 128 and its number, 130 after Ctrl-C and 143 after SIGTERM. Imports
nothing but the standard library, so that it can come before everything else.

An exception in the middle of an import may meet C++ that cannot pass it on (torch then aborts the process), or code
that catches everything and goes on with half a module; in a ``__del__`` it is lost. There a signal is held until that
is over.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 10.0
"""Seconds in which a second signal does not break off what the first one began: saving the state."""

LOOK_SECONDS = 0.02
"""Between two looks whether what holds a signal is over."""

_interrupted_at = float("-inf")
_last: int = signal.SIGINT  # the signal that interrupted last; KeyboardInterrupt without one is as good as Ctrl-C


_held: int = 0  # the signal that waits for an import to end
_imports_outside = 0  # imports within which the handler was set: a program that a module runs is none that ends soon


def exit_code() -> int:
    """What an interrupted program exits with: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + _last


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _held, _interrupted_at, _last
    now = time.monotonic()
    if now - _interrupted_at < PATIENCE:
        return
    if _must_wait(frame):
        _held = _held or number
        _thread.start_new_thread(_look_again, (number,))  # threading.Thread takes a lock that this thread may hold
        return
    _interrupted_at, _last, _held = now, _held or number, 0
    raise KeyboardInterrupt


def _must_wait(frame: FrameType | None) -> bool:
    """Whether an exception would be raised inside of an import, or in a ``__del__``."""
    imports = 0
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        imports += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return imports > _imports_outside


def _look_again(number: int) -> None:
    time.sleep(LOOK_SECONDS)
    if not _held:  # it was delivered meanwhile, and whoever handles signals now has nothing to do with it
        return
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, number)  # unlike interrupt_main it ends a sleep, or a wait for a server
    else:
        _thread.interrupt_main(signal.Signals(number))


def deliver_held() -> None:
    """Raise KeyboardInterrupt where a signal waits: after an import, without waiting for the next look."""
    if _held:
        _interrupt(_held, sys._getframe())


def handle_signals() -> None:
    """Both signals raise KeyboardInterrupt in the main thread, once within `PATIENCE`; for the rest of the process."""
    global _imports_outside
    _imports_outside = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        _imports_outside += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    for number in SIGNALS:
        signal.signal(number, _interrupt)


@contextmanager
def exit_code_kept() -> Iterator[None]:
    """Interrupted, the process ends with the code that SystemExit carries out of the block.

    Where KeyboardInterrupt passes through ``exec`` of a text, as in an import of a large library, ``python -m`` would
    end by SIGINT whatever the code (CPython notes it as unhandled there, though it was handled further up).
    """
    code: list[int] = []

    def leave() -> None:
        if not code:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
                stream.flush()
        os._exit(code[0])

    atexit.register(leave)  # registered first, so that it runs last
    try:
        yield
    except SystemExit as leaving:
        if leaving.code == exit_code():
            code.append(exit_code())
        raise


def ignore_signals() -> None:
    """For the last moments of the process: all is saved, and only the exit code is still to be given."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def signals_handled() -> Iterator[None]:
    """As `handle_signals` within the block; nothing where that was called before, or outside the main thread."""
    global _held, _interrupted_at, _last
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if _interrupt in before.values():
        yield
        return
    try:
        handle_signals()
    except ValueError:  # not the main thread: whoever runs the threads decides about signals
        yield
        return
    _interrupted_at, _last, _held = float("-inf"), signal.SIGINT, 0
    try:
        yield
        deliver_held()
    finally:
        _held = 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def every_interrupt() -> Iterator[None]:
    """Within the block each Ctrl-C counts, as in a conversation, where one stops an answer and not the program."""
    try:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
