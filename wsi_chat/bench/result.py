"""What a measurement found: one record a stage, where the time of a whole slide goes, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

NEAR = 0.8
"""A stage that reaches this share of its limit has little left to gain but by a faster limit."""
OVER = 1.25
"""A stage faster than its limit by this factor: the two were not measured under the same conditions."""
BUSY = 0.5
"""Load for each core from which on other programs take so much of the machine that rates are too low."""
AHEAD = 1.2
"""Reading keeps an engine busy while it is faster than the engine by this factor."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: ``items`` of ``unit`` in ``seconds``, as the pipeline did them.

    ``limit``: items/s that could be had at most, and ``against`` what that is; None where there is none. ``whole``:
    seconds that the whole slide would take at this rate, None where the stage does not grow with it. ``settings`` are
    those that change it.
    """

    name: str
    seconds: float
    items: int = 1
    unit: str = "slide"
    limit: float | None = None
    against: str = ""
    whole: float | None = None
    settings: str = ""

    @property
    def rate(self) -> float:
        """Items/s."""
        return self.items / self.seconds if self.seconds > 0 else float("inf")

    @property
    def share(self) -> float | None:
        """Of the limit, at most 1: what lies above it is the noise of a short measurement."""
        return None if self.limit is None else min(1.0, self.rate / self.limit)


@dataclass(frozen=True, slots=True)
class Bench:
    """A measurement. ``tiles`` were screened of the slide's ``planned``; ``stages`` in the order of the pipeline."""

    slide: str
    model: str
    engine: str
    machine: dict[str, Any]
    tiles: int
    planned: int
    stages: tuple[Stage, ...]
    advice: tuple[str, ...] = field(default=())

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def whole_slide(self) -> float:
        """Seconds that the whole slide would take, the load of the model left out; reading goes on beside."""
        return sum(s.whole if s.whole is not None else s.seconds for s in self.stages if s.name not in ("load", "read"))

    def part(self, stage: Stage) -> float | None:
        """Share of the whole slide's time, 0..1; None for what is not in that sum."""
        if stage.name in ("load", "read") or self.whole_slide <= 0:
            return None
        return (stage.seconds if stage.whole is None else stage.whole) / self.whole_slide

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``: seconds, items/s and shares."""
        stages = [
            {
                **asdict(stage),
                "part": (part := self.part(stage)) and round(part, 3),
                "rate": round(stage.rate, 3),
                "share": stage.share and round(stage.share, 3),
            }
            for stage in self.stages
        ]
        return {**asdict(self), "stages": stages, "whole_slide_seconds": round(self.whole_slide, 3)}


def advise(
    stages: tuple[Stage, ...], *, workers: int, cores: int, engine: str, gpu: bool, load: float = 0.0
) -> tuple[str, ...]:
    """What to change, the stage that takes longest first; every line names a setting.

    Before that, what makes the figures doubtful: ``load`` is the machine's before anything was measured.
    """
    return (
        *_doubts(stages, cores=cores, load=load),
        *_changes(stages, workers=workers, cores=cores, engine=engine, gpu=gpu),
    )


def _doubts(stages: tuple[Stage, ...], *, cores: int, load: float) -> Iterator[str]:
    if load > BUSY * cores:
        yield (
            f"Other programs kept the machine busy (a load of {load:.1f} on {cores} cores before this began): every "
            "rate is too low, the limits too. Run it again when nothing else runs."
        )
    for stage in stages:
        if stage.limit is not None and stage.rate > OVER * stage.limit:
            yield (
                f"The {stage.name} row came out faster ({stage.rate:.3g} {stage.unit}/s) than its limit "
                f"({stage.limit:.3g}), which was measured at another moment: do not trust its share. More --tiles, "
                "and nothing else running, make both steadier."
            )


def _changes(stages: tuple[Stage, ...], *, workers: int, cores: int, engine: str, gpu: bool) -> tuple[str, ...]:
    by_name = {stage.name: stage for stage in stages}
    read, screen, detail = by_name["read"], by_name["screen"], by_name["detail"]
    documents, load = by_name["documents"], by_name["load"]
    lines: list[tuple[float, str]] = []
    if read.rate < AHEAD * (screen.limit or screen.rate):
        more = f"--workers {cores} (now {workers})" if workers < cores else "--reader fastslide, or a local disk"
        far = (
            "" if read.share is None or read.share >= NEAR else f", and only {read.share:.0%} of what the reader can do"
        )
        lines.append(
            (
                screen.whole or 0.0,
                f"Reading ({read.rate:.0f} tiles/s) does not keep ahead of the model{far}: try {more}.",
            )
        )
    if screen.share is not None and screen.share < NEAR and read.rate >= AHEAD * screen.rate:
        lines.append(
            (
                screen.whole or 0.0,
                f"Screening reaches {screen.share:.0%} of what the engine answers from memory: questions are built too "
                "slowly for it. Fewer --workers leave them more of the processor.",
            )
        )
    elif screen.share is not None:
        faster = (
            "a larger --batch-size, --gpus, or a smaller --model" if gpu
            else "a GPU (--device cuda), a smaller --model, or --limit for a first look"
        )  # fmt: skip
        coarser = "a larger --tile-mpp or a smaller --overlap asks fewer questions"
        lines.append((screen.whole or 0.0, f"Screening waits for the model ({engine}): {faster}; {coarser}."))
    if (detail.whole or 0.0) > (screen.whole or 0.0):
        lines.append(
            (
                detail.whole or 0.0,
                "The closer look takes longer than screening: a smaller --top-k looks at fewer tiles.",
            )
        )
    if documents.seconds > 0.25 * sum(s.whole or s.seconds for s in (screen, detail, documents)):
        lines.append(
            (
                documents.seconds,
                "Documents take a quarter of the time or more: name several slides in one command (they are written "
                "while the next one is asked about), or write fewer (--format json, a smaller --gallery).",
            )
        )
    if load.seconds > sum(s.whole or s.seconds for s in (screen, detail, documents)):
        lines.append(
            (
                load.seconds,
                "Loading the model takes longer than the slide: name several slides in one command, or serve the model "
                "once (wsi-chat serve-command) and give --base-url.",
            )
        )
    return tuple(line for _, line in sorted(lines, key=lambda item: -item[0]))
