"""Coverage-guided fuzzing of one target of `benchmarks.fuzz.parsers`, by libFuzzer through atheris.

    pip install atheris
    python -m benchmarks.fuzz.guided boxes -max_total_time=180 -seed=1 -timeout=20 -rss_limit_mb=2048 CORPUS
    python -m benchmarks.fuzz.parsers boxes --corpus CORPUS       what it found, by the parsers as they are in use

libFuzzer sees Python code that was instrumented when it was imported, and nothing else. So everything that a target
imports, late imports too, is imported here first; JSON and YAML, which the program parses in C, are parsed by the same
libraries in Python; and a third of the inputs are made by changing the tree of a JSON or YAML text, a sixth by words of
the samples, since a changed byte mostly ends at the first bracket. CORPUS keeps the inputs that reached something new.
"""

from __future__ import annotations

import json
import json.decoder
import json.scanner
import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris
import yaml

from benchmarks.fuzz.damage import as_json, damaged_tree
from benchmarks.fuzz.samples import SAMPLES

PACKAGES = ("wsi_chat", "tilers", "reports", "yaml", "csv")
MOST_BYTES = 8192
TREES = 1 / 3  # of the inputs
WORDS = 1 / 6


def parse_in_python() -> None:
    """JSON by the library's parser in Python, which can be watched; YAML and its reader are yet to be imported."""
    decoder: Any = json.decoder
    scanner: Any = json.scanner
    for function in (decoder.py_scanstring, decoder.JSONObject, decoder.JSONArray, scanner.py_make_scanner):
        atheris.instrument_func(function)
    decoder.scanstring = decoder.py_scanstring
    scanner.make_scanner = scanner.py_make_scanner
    json._default_decoder = json.JSONDecoder()  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]  # they are imported anew, to be watched


def watched(name: str) -> Any:
    """`benchmarks.fuzz.parsers`, with all that one target imports while it reads its samples."""
    with atheris.instrument_imports(include=list(PACKAGES)):
        vars(sys.modules.get("yaml") or __import__("yaml")).pop("CSafeLoader", None)
        from benchmarks.fuzz import parsers

        for sample in SAMPLES[name]:
            parsers.judge(name, sample)
    return parsers


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """An input made of another one: its tree changed, words of the samples put in, or as libFuzzer does it."""
    rng = random.Random(seed)
    how = rng.random()
    if how < TREES:
        made = _changed_tree(data, rng)
        if made and len(made) <= most:
            return made
    elif how < TREES + WORDS:
        at = rng.randrange(len(data) + 1)
        return (data[:at] + rng.choice(_WORDS) + data[at + rng.choice([0, 0, 1, 4]) :])[:most]
    return bytes(atheris.Mutate(data, most))


def _changed_tree(data: bytes, rng: random.Random) -> bytes | None:
    try:
        tree, is_json = (json.loads(data), True) if data[:1] in b"{[" else (yaml.safe_load(data), False)
        if not isinstance(tree, dict | list):
            return None
        tree = damaged_tree(tree, rng)[0]
        return as_json(tree) if is_json else yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
    except Exception:
        return None


_WORDS: list[bytes] = []


def main() -> None:
    logging.disable(logging.CRITICAL)
    name = sys.argv.pop(1)
    parse_in_python()
    parsers = watched(name)
    _WORDS.extend({word for sample in SAMPLES[name] for word in sample.replace(b",", b" , ").split()} | set(ODD_WORDS))
    _WORDS.sort()
    with tempfile.TemporaryDirectory(prefix=f"samples-{name}-") as samples:
        for number, sample in enumerate(SAMPLES[name]):
            (Path(samples) / str(number)).write_bytes(sample)
        folders = [word for word in sys.argv[1:] if not word.startswith("-")] or [tempfile.mkdtemp()]
        Path(folders[0]).mkdir(parents=True, exist_ok=True)
        options = [f"-max_len={MOST_BYTES}", "-len_control=0", *(w for w in sys.argv[1:] if w.startswith("-"))]
        arguments = [sys.argv[0], *options, *folders, samples]
        atheris.Setup(arguments, lambda data: parsers.judge(name, data), custom_mutator=mutated)
        atheris.Fuzz()


ODD_WORDS = (b"-1", b"1e999", b"NaN", b"null", b"[", b"]", b"{", b"}", b'"', b"&a", b"*a", b"<<:", b"!!", b"?", b"|",
             b"\xef\xbb\xbf", b"\r\n", b"\0", b"\\u0000", b"\xff", b"9" * 70, b"<think>", b"</think>")  # fmt: skip


if __name__ == "__main__":
    main()
