"""A checkpoint's chat template is a program: it is tried in a child process, with bounds, before it runs in this one.

The sandbox in which templates are rendered keeps them from files and code, not from looping or from filling memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

from wsi_chat.errors import EngineError

SECONDS = 5
"""Of processor time."""
LONGEST_WAIT = 30
"""Seconds by the clock, on a machine that is busy with other things."""
MEMORY = 1024**3
LONGEST = 1024**2
"""Characters that a short conversation may become."""

_CHILD = r"""
import json, re, sys
given = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (given["memory"], given["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (given["seconds"], given["seconds"]))
except (ImportError, ValueError, OSError):
    pass
from jinja2.sandbox import ImmutableSandboxedEnvironment
def stop(message=""):
    raise ValueError(message)
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
environment.globals.update(raise_exception=stop, strftime_now=lambda form: "")
environment.filters["tojson"] = lambda value, **how: json.dumps(value)
tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token", "image_token"), "")
text = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", given["template"])
for messages in given["conversations"]:
    try:
        written = environment.from_string(text).render(messages=messages, add_generation_prompt=True, **tokens)
    except MemoryError:
        sys.exit(4)
    except Exception:
        continue  # an error that ends: it is met, and named, where the template is used
    if len(written) > given["longest"]:
        sys.exit(3)
"""

_WORDS = [{"type": "image"}, {"type": "text", "text": "Locate all hsil."}]
_ANSWER = [{"type": "text", "text": "No hsil is found."}]
CONVERSATIONS = [
    [{"role": "user", "content": _WORDS}],
    [
        {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
        {"role": "user", "content": _WORDS},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _ANSWER},
    ],
    [{"role": "user", "content": "Locate all hsil."}],
]


def check_template(template: object, folder: Path | str) -> None:
    """Prove that a chat template ends, in bounded time and memory. The one that ships with the package is known to.

    Args:
        template: its text, or several by name.

    Raises:
        EngineError: it does not; ``folder`` is the checkpoint's.
    """
    texts = list(template.values()) if isinstance(template, dict) else [template]
    for text in texts:
        if isinstance(text, str) and text != _packaged():
            _try(text, folder)


def _packaged() -> str:
    path = resources.files("wsi_chat") / "embedded" / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _try(text: str, folder: Path | str) -> None:
    given = {
        "template": text, "conversations": CONVERSATIONS, "memory": MEMORY, "seconds": SECONDS, "longest": LONGEST,
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=json.dumps(given).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LONGEST_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(folder, f"does not end within {LONGEST_WAIT} s") from error
    if done.returncode == 3:
        raise _refused(folder, f"turns a short conversation into more than {LONGEST:,} characters")
    if done.returncode != 0:
        raise _refused(folder, f"takes more than {MEMORY // 1024**2} MiB or {SECONDS} s for a short conversation")


def _refused(folder: Path | str, what: str) -> EngineError:
    return EngineError(
        f"the chat template of {folder} {what}", hint="Replace it by the one that its makers publish, or leave it out."
    )
