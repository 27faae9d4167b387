"""Coverage-guided fuzzing of one target of `benchmarks.fuzz.parsers`, by libFuzzer through atheris.

pip install atheris
python -m benchmarks.fuzz.guided boxes -runs=100000 -seed=1 -timeout=20 -rss_limit_mb=2048 [FOLDER for the corpus]
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["wsi_chat", "tilers", "reports", "yaml"]):
    from benchmarks.fuzz import parsers


def main() -> None:
    logging.disable(logging.CRITICAL)
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory(prefix=f"samples-{name}-") as samples:
        for number, sample in enumerate(parsers.SAMPLES[name]):
            (Path(samples) / str(number)).write_bytes(sample)
        folders = [word for word in sys.argv[1:] if not word.startswith("-")] or [tempfile.mkdtemp()]
        options = [word for word in sys.argv[1:] if word.startswith("-")]
        atheris.Setup([sys.argv[0], *options, *folders, samples], lambda data: parsers.judge(name, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
