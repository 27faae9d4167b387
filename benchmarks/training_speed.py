"""How fast the embedded checkpoint is fine-tuned: LoRA and full, against one conversation at a time.

    python benchmarks/training_speed.py [--samples 64] [--batch 8] [--method lora full]

The same conversations for every row, the same optimiser steps: in batches of like length (the default of
`wsi-chat train`), in batches as they come, and one by one. Prints samples/s and the ratios to one by one, all of one
run; processor seconds beside them, since other work on the machine slows the clock and not the count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wsi_chat.datasets.annotated import Renaming
from wsi_chat.datasets.build import build_dataset
from wsi_chat.datasets.render import render_fields
from wsi_chat.datasets.sources import read_rendered_fields
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import get_dialect
from wsi_chat.terminology import load_system
from wsi_chat.training.finetune import finetune
from wsi_chat.training.settings import settings_of
from wsi_chat.training.state import METRICS, read_metrics


@dataclass(frozen=True)
class Speed:
    """Samples per second of the clock, and per second of processor time."""

    clock: float
    processor: float


def conversations(folder: Path, samples: int) -> Path:
    """A JSONL of ``samples`` conversations about rendered fields, of every kind."""
    dialect = get_dialect("embedded")
    truth = render_fields(folder / "fields", 700_000, max(2, samples // 10), size=256, mpp=0.5)
    pictures = read_rendered_fields(truth, rename=Renaming({}, dialect.known_label))
    names = Names(load_system("cervix"))
    build_dataset(pictures, folder / "data", dialect=dialect, names=names, fractions={"train": 1.0}, name="speed")
    file = folder / "data" / "speed_train.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    # spread over all pictures and kinds
    file.write_text("".join(lines[:: max(1, len(lines) // samples)][:samples]))
    return file


def measure(data: Path, out: Path, *, method: str, batch: int, accumulate: int, steps: int, grouped: bool) -> Speed:
    """Train for some steps; the first is left out, since it warms up."""
    marks: list[tuple[int, float, float]] = []

    def tell(row: dict[str, float]) -> None:
        if "steps" in row:
            marks.append((int(row["step"]), time.perf_counter(), time.process_time()))

    settings = settings_of(
        datasets=(str(data),), out=out, method=method, batch_size=batch, accumulate=accumulate, steps=steps,
        group_by_length=grouped, eval_dataset="none", eval_every=steps, device="cpu",
    )  # fmt: skip
    finetune(settings, tell=tell)
    assert len([row for row in read_metrics(out / METRICS) if "loss" in row]) >= 1
    samples = (marks[-1][0] - marks[0][0]) * batch * accumulate
    return Speed(samples / (marks[-1][1] - marks[0][1]), samples / (marks[-1][2] - marks[0][2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--method", nargs="+", choices=("lora", "full"), default=("lora", "full"))
    options = parser.parse_args()
    steps, batch = max(2, options.samples // options.batch), options.batch
    ways = {
        "one by one": (1, batch, False),
        f"batches of {batch}": (batch, 1, False),
        f"batches of {batch}, grouped by length": (batch, 1, True),
    }
    with tempfile.TemporaryDirectory() as folder:
        data = conversations(Path(folder), options.samples)
        for method in options.method:
            speeds = {
                name: measure(
                    data, Path(folder) / f"{method}-{number}", method=method, batch=size, accumulate=accumulate,
                    steps=steps, grouped=grouped,
                )
                for number, (name, (size, accumulate, grouped)) in enumerate(ways.items())
            }  # fmt: skip
            base = speeds["one by one"]
            for name, speed in speeds.items():
                print(
                    f"{method:<5} {name:<34} {speed.clock:6.2f} samples/s  x{speed.clock / base.clock:4.2f}   "
                    f"{speed.processor:6.2f} per processor second  x{speed.processor / base.processor:4.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
