"""Messages between processes whose pixels are moved as they lie, and not packed into a pickle first.

A picture of 512 px is 0.8 MB. Pickled whole it is copied four times on its way; here the kernel alone copies it, into
the memory that it stays in.
"""

from __future__ import annotations

import os
import pickle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray


def send(pipe: Connection, message: object) -> None:
    """Send a message for `receive`. Raises OSError where nobody listens."""
    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    pipe.send((packed, [view.nbytes for view in views]))
    for view in views:
        while view.nbytes:
            view = view[os.write(pipe.fileno(), view) :]


def receive(pipe: Connection) -> Any:
    """The next message. Raises EOFError where the sender is gone, OSError where the pipe is closed."""
    packed, sizes = pipe.recv()
    buffers: list[NDArray[np.uint8]] = []
    for size in sizes:
        buffers.append(np.empty(size, np.uint8))
        left = buffers[-1].data
        while left.nbytes:
            got = os.readv(pipe.fileno(), [left])
            if not got:
                raise EOFError
            left = left[got:]
    return pickle.loads(packed, buffers=buffers)
