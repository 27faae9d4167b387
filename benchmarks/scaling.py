"""What 1, 1,000 and 1,000,000 slides cost on 1, 8 and 256 GPUs: a model from stated constants, and its checks.

    python benchmarks/scaling.py [--price 3.0] [--check] [--measure]

Prints the tables of docs/scaling.md. ``--check`` compares what the model says with what was measured and ends with 1
where they differ by more than `TOLERANCE`. ``--measure`` first measures bytes and documents on this machine, with a
stand-in for the model on two rendered slides, and checks those too (a minute). Money is a parameter, not a claim.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TOLERANCE = 0.2


@dataclass(frozen=True)
class Slide:
    """A liquid-based cervical slide: one round deposit, scanned at 40x.

    ``stored_bytes_per_px``: of a level-0 pixel as stored; .29 in CMU-1-Small-Region.svs (1,938,955 bytes of
    2,220 x 2,967 px), a third more for the levels above.
    """

    deposit_mm: float = 13.0
    scan_mpp: float = 0.25
    tile_px: int = 512
    tile_mpp: float = 0.5
    overlap: float = 0.25
    stored_bytes_per_px: float = 0.29

    @property
    def area_um2(self) -> float:
        return math.pi * (self.deposit_mm * 500) ** 2

    @property
    def tiles(self) -> int:
        stride = self.tile_px * (1 - self.overlap) * self.tile_mpp
        return round(self.area_um2 / stride**2)

    @property
    def file_bytes(self) -> float:
        """The square around the deposit, with its levels."""
        return (self.deposit_mm * 1000 / self.scan_mpp) ** 2 * self.stored_bytes_per_px * 4 / 3

    @property
    def read_bytes(self) -> float:
        """The deposit at the level that tiles are read from."""
        return self.area_um2 / self.tile_mpp**2 * self.stored_bytes_per_px


@dataclass(frozen=True)
class Machine:
    """One GPU with its share of a host, and a model on it.

    ``engine``: screening questions/s from memory. ``kept``: what reading, questions and journal leave of it.
    ``detail``: questions/s of the closer look. ``start``: seconds until a model answers.
    """

    name: str
    engine: float
    kept: float
    detail: float
    start: float
    documents: float = 5.0
    plan: float = 5.0
    assumed: str = ""

    @property
    def screening(self) -> float:
        return self.engine * self.kept


# Measured on 2026-11-26 on one H200 (Qwen3-VL of 8B shape, bf16, vLLM 0.25, 512 px tiles): 55.6 and 53.2 questions/s.
# The closer look of that model was not timed: its rate is an assumption, 60 new tokens a question at 3,000 tokens/s.
H200_8B = Machine("8B, vLLM, H200", engine=55.6, kept=0.957, detail=50.0, start=75.6, assumed="detail 50 questions/s")

CLOSER_TILES, CLOSER_QUESTIONS = 24, 12
SAMPLE_TILES, SAMPLE_QUESTIONS = 16, 6
CONTROLS = 10
PROMPT_TOKENS, NEW_TOKENS = 321, 60
PARAMETERS, VISION_PARAMETERS, PATCHES = 8.0e9, 0.43e9, 1024
PEAK_FLOPS, USED = 989e12, 0.6  # dense bf16 of the card, and the share that large batches reach

# Bytes in a run folder, from rendered slides of 2,048 and 4,096 px with short answers; `--measure` checks two others.
JOURNAL_PER_ANSWER, JOURNAL_FIXED = 115.0, 11_000.0
DOCUMENTS_PER_TILE, DOCUMENTS_FIXED = 1_500.0, 2_530_000.0
SUMMARY_ROW = 420.0
WAL_PER_ANSWER = 4_120.0  # one page and its frame header, written and later written again into the file


@dataclass(frozen=True)
class Cost:
    """What a run costs. Times in seconds, sizes in bytes."""

    slides: int
    gpus: int
    wall: float
    gpu_seconds: float
    questions: float
    prompt_tokens: float
    new_tokens: float
    read: float
    staged: float
    folder: float
    money: float


def flops_per_question() -> float:
    """Two operations a parameter and token, for the language model and, per patch, for the vision tower."""
    return 2 * PARAMETERS * PROMPT_TOKENS + 2 * VISION_PARAMETERS * PATCHES


def arithmetic_limit() -> float:
    """Screening questions/s if the card did nothing but these products."""
    return PEAK_FLOPS * USED / flops_per_question()


def questions_of(slide: Slide) -> tuple[int, int]:
    """Screening questions (with controls), and questions of the closer look and the cell sample."""
    closer = min(CLOSER_TILES, slide.tiles) * CLOSER_QUESTIONS + min(SAMPLE_TILES, slide.tiles) * SAMPLE_QUESTIONS
    return slide.tiles + CONTROLS, closer


def seconds_per_slide(slide: Slide, machine: Machine) -> float:
    """Of one Ray actor with a GPU: it plans a slide, asks about it and writes its documents, one after the other."""
    screening, closer = questions_of(slide)
    return machine.plan + screening / machine.screening + closer / machine.detail + machine.documents


def folder_bytes(tiles: int, answers: int) -> float:
    return JOURNAL_FIXED + JOURNAL_PER_ANSWER * answers + DOCUMENTS_FIXED + DOCUMENTS_PER_TILE * tiles


def cost(slides: int, gpus: int, slide: Slide, machine: Machine, *, price: float, lost_per_hour: float = 0.0) -> Cost:
    """What a cohort costs.

    Args:
        price: of a GPU hour, in whatever money.
        lost_per_hour: preemptions of one GPU in an hour: each costs a start, the questions under way and half a plan.
    """
    screening, closer = questions_of(slide)
    one = seconds_per_slide(slide, machine)
    used = min(gpus, slides)
    rounds = math.ceil(slides / used)
    again = machine.start + 2 * 256 / machine.screening + machine.plan
    slower = 1 / max(0.05, 1 - lost_per_hour * again / 3600)
    wall = (machine.start + rounds * one) * slower
    gpu_seconds = (used * machine.start + slides * one) * slower
    answers = screening + closer
    return Cost(
        slides, gpus, wall, gpu_seconds, answers * slides, PROMPT_TOKENS * answers * slides,
        (screening + NEW_TOKENS * closer) * slides, slide.read_bytes * slides, slide.file_bytes * slides,
        folder_bytes(slide.tiles, answers) * slides, gpu_seconds / 3600 * price,
    )  # fmt: skip


class Load(NamedTuple):
    """What all GPUs together ask of everything else, each second."""

    gpus: int
    read: float
    staged: float
    answers: float
    journal: float
    slides_per_hour: float


def load(gpus: int, slide: Slide, machine: Machine) -> Load:
    one = seconds_per_slide(slide, machine)
    answers = sum(questions_of(slide)) / one
    return Load(
        gpus, gpus * slide.read_bytes / one, gpus * slide.file_bytes / one, gpus * answers,
        gpus * answers * 2 * WAL_PER_ANSWER, gpus * 3600 / one,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- checks


class Check(NamedTuple):
    what: str
    predicted: float
    measured: float
    source: str

    @property
    def off(self) -> float:
        return self.predicted / self.measured - 1


def checks() -> list[Check]:
    """The model against points that were not put into it."""
    measured = "2026-11-26, one H200"
    return [
        Check("8B: screening limit by arithmetic, questions/s", arithmetic_limit(), 95.0, "its authors' estimate"),
        Check(
            "8B: share of the time the GPU is busy",
            H200_8B.engine / arithmetic_limit(),
            0.505,
            f"{measured}: .36 to .65",
        ),
    ]


def measured_here() -> Iterator[Check]:
    """Bytes of run folders, with a stand-in for the model: the model's constants against two slides of this machine."""
    import wsi_chat
    from wsi_chat.datasets.render import render_slide
    from wsi_chat.engines import ScriptedEngine
    from wsi_chat.schema import Query

    def says(query: Query) -> str | dict[str, float]:
        if query.choices:
            return {"A": 0.7, "B": 0.3}
        return (
            f"{query.target} 1 is located at <region>100 100 140 140</region>." if query.target == "hsil" else "None."
        )

    with tempfile.TemporaryDirectory() as scratch:
        for side in (1536, 3072):
            path = Path(scratch) / f"{side}.tiff"
            render_slide(path, seed=side, width_px=side, height_px=side, recipe="abnormal")
            result = wsi_chat.analyze(path, out=Path(scratch) / "out", engine=ScriptedEngine(says), specimen="cervix")
            funnel, timings = result.report.funnel, result.report.timings
            files = [file for file in result.folder.rglob("*") if file.is_file()]
            journal = sum(file.stat().st_size for file in files if file.name.startswith("journal.sqlite"))
            rest = sum(file.stat().st_size for file in files) - journal
            answers = timings.answers_new
            yield Check(
                f"journal of {answers} answers, bytes", JOURNAL_FIXED + JOURNAL_PER_ANSWER * answers, journal, "here"
            )
            yield Check(
                f"documents of {funnel.selected} tiles, bytes", DOCUMENTS_FIXED + DOCUMENTS_PER_TILE * funnel.selected,
                rest, "here",
            )  # fmt: skip


def seconds_to_write_the_summary(rows: int) -> float:
    """Seconds in which summary.csv is written once; a cohort writes it as it goes."""
    from wsi_chat.analysis.run_folder import RunFolder
    from wsi_chat.analysis.summary import SUMMARY_COLUMNS, write_summary

    row = dict.fromkeys(SUMMARY_COLUMNS, "0.1234") | {"reason": "Every tile is below the threshold. " * 4}
    with tempfile.TemporaryDirectory() as scratch:
        table = [row | {"slide_id": f"slide-{n:08d}"} for n in range(rows)]
        began = time.perf_counter()
        write_summary(RunFolder(Path(scratch)).open(), table, keep_earlier=False)
        return time.perf_counter() - began


# ---------------------------------------------------------------------------------------------- tables


def size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def duration(seconds: float) -> str:
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(price: float, machine: Machine = H200_8B) -> dict[str, str]:
    """The tables of docs/scaling.md, by name."""
    slide = Slide()
    wall = [
        [f"{n:,}", *(duration(cost(n, gpus, slide, machine, price=price).wall) for gpus in (1, 8, 256))]
        for n in (1, 1_000, 1_000_000)
    ]
    totals = []
    for n in (1, 1_000, 1_000_000):
        c = cost(n, 8, slide, machine, price=price)
        totals.append(
            [f"{n:,}", f"{c.questions:.3g}", f"{c.prompt_tokens:.3g}", f"{c.new_tokens:.3g}",
             duration(c.gpu_seconds), size(c.read), size(c.staged), size(c.folder), f"{c.money:,.2f}"]
        )  # fmt: skip
    loads = [
        [str(one.gpus), f"{one.slides_per_hour:.0f}", size(one.read) + "/s", size(one.staged) + "/s",
         f"{one.answers:,.0f}/s", size(one.journal) + "/s"]
        for one in (load(gpus, slide, machine) for gpus in (1, 8, 256))
    ]  # fmt: skip
    undisturbed = cost(1000, 8, slide, machine, price=price).gpu_seconds
    slower = []
    for per_hour in (0.1, 0.5, 1.0, 4.0):
        disturbed = cost(1000, 8, slide, machine, price=price, lost_per_hour=per_hour).gpu_seconds
        slower.append([f"{per_hour:g}", f"{disturbed / undisturbed - 1:+.1%}"])
    return {
        "wall": table(["slides", "1 GPU", "8 GPUs", "256 GPUs"], wall),
        "totals": table(
            ["slides", "questions", "prompt tokens", "new tokens", "GPU time", "read", "if staged whole", "run folders",
             f"money at {price:g} a GPU hour"],
            totals,
        ),
        "loads": table(["GPUs", "slides/h", "read", "if staged whole", "answers", "journal writes"], loads),
        "preemption": table(["preemptions of a GPU in an hour", "GPU time"], slower),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=3.0, help="money for a GPU hour")
    parser.add_argument("--check", action="store_true", help="compare with what was measured")
    parser.add_argument("--measure", action="store_true", help="measure bytes here, and check them too")
    parser.add_argument(
        "--summary-rows", type=int, nargs="*", default=[], help="time writing a summary of so many rows"
    )
    given = parser.parse_args()
    for name, text in tables(given.price).items():
        print(f"{name}\n\n{text}\n")
    found = [*(checks() if given.check or given.measure else []), *(measured_here() if given.measure else [])]
    rows = [[c.what, f"{c.predicted:.3g}", f"{c.measured:.3g}", f"{c.off:+.0%}", c.source] for c in found]
    if rows:
        print(table(["", "model", "measured", "off by", "where"], rows))
    for count in given.summary_rows:
        print(json.dumps({"rows": count, "seconds": round(seconds_to_write_the_summary(count), 3)}))
    if any(abs(c.off) > TOLERANCE for c in found):
        sys.exit("the model is off by more than its tolerance")


if __name__ == "__main__":
    main()
